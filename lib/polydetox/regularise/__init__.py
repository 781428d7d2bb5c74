"""Attribute-controlled fine-tuning (Meng et al. 2024): a NADO head, and a regulariser towards what it allows."""
