"""See attention where it is computed, without changing what is computed."""
