"""Toxicity, fluency, diversity and language of continuations, with bootstrap intervals by prompt."""
