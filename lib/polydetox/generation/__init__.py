"""Sampling continuations of prompts, with transformers or vLLM."""

from polydetox.generation.engines import Sampler, Sampling, choose_engine, generate

__all__ = ["Sampler", "Sampling", "choose_engine", "generate"]
