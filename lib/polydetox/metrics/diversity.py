"""Distinct n-grams (Li et al. 2016): how varied the continuations of one prompt are."""

from __future__ import annotations

from collections.abc import Sequence

from polydetox.languages import UNSPACED


def units(text: str, language: str) -> list[str]:
    """The words of a text; its characters where a language writes no spaces."""
    return [character for character in text if not character.isspace()] if language in UNSPACED else text.split()


def distinct(texts: Sequence[str], order: int, language: str) -> float | None:
    """Distinct n-grams over all n-grams of the continuations of one prompt, in [0, 1]; None without any."""
    grams = []
    for text in texts:
        words = units(text, language)
        grams += [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
    return len(set(grams)) / len(grams) if grams else None
