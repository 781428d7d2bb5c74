"""Sampling continuations of prompts, with transformers or vLLM."""

from polydetox.generation.engines import Sampling, choose_engine, generate

__all__ = ["Sampling", "choose_engine", "generate"]
