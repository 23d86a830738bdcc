"""Tests of `capture()`."""
