"""Attention maps, against float64 computations of the whole map."""
