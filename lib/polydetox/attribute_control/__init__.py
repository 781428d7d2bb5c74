"""Attribute-controlled fine-tuning (Meng et al. 2024): its algorithms, their evaluation, and the tables and figures."""
