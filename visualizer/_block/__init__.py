"""One with-block of `capture()`: what it takes, and the record of that."""
