"""Checkpoints: finding, converting, loading and trimming them."""
