"""Distinct n-grams over words (Li et al. 2016): how varied the continuations of one prompt are.

Those over the tokens of the reference model's tokenizer, as published, are counted in the notebook score.
"""

from __future__ import annotations

from collections.abc import Sequence

from polydetox.core.languages import UNSPACED

ORDERS = (1, 2, 3)


def distinct(texts: Sequence[str], order: int, language: str) -> float | None:
    """Distinct n-grams over all n-grams of the continuations of one prompt, in [0, 1]; None without any.

    Of words, or of characters where a language writes no spaces.
    """
    grams = []
    for text in texts:
        words = _words(text, language)
        grams += [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(continuation: str, language: str) -> float:
    """The fraction of words that repeat an earlier one, or of characters where a language writes no spaces; NaN without
    text.
    """
    words = _words(continuation, language)
    return 1.0 - len(set(words)) / len(words) if words else float("nan")


def _words(text: str, language: str) -> list[str]:
    return list("".join(text.split())) if language in UNSPACED else text.split()
