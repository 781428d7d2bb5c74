"""Mechanism: toxicity probe, MLP value vectors, neuron activations, and interventions on them (Li et al. 2024)."""
