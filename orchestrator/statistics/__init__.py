"""Intervals and power laws, for studies and for evaluation. Imports neither torch nor Ray."""
