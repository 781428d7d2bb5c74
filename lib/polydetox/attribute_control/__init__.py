"""Attribute-controlled fine-tuning (Meng et al. 2024): its methods, their evaluation, and the tables and figures."""
