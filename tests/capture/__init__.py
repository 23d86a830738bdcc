"""Tests of `get_local`: what is captured, kept, shown and said."""
