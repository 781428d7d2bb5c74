"""Sampling continuations of prompts, with transformers or vLLM."""

from polydetox.generation.engines import Drawing, Sampling, choose_engine, generate

__all__ = ["Drawing", "Sampling", "choose_engine", "generate"]
