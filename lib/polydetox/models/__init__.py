"""Checkpoints: finding, converting and loading them."""
