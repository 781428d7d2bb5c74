"""Preference pairs, and direct preference optimisation on them."""
