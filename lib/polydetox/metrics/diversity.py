"""Distinct n-grams (Li et al. 2016): how varied the continuations of one prompt are.

Two ways of counting. :func:`distinct` is over words, so that it can be compared between models and tokenizers, and
divides by the number of n-grams. :func:`published_distinct` is what the code of Li, Yong and Bach computes, which its
figures have to be compared with: over the tokens of the reference model's tokenizer, each decoded alone, and divided by
the number of tokens, whatever the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from jaxtyping import Float

from polydetox.core.languages import UNSPACED

ORDERS = (1, 2, 3)


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


def repetition(continuation: str) -> float:
    """The fraction of words that repeat an earlier one, characters where a text has no spaces; NaN without text."""
    words = continuation.split()
    if len(words) < 2:
        words = list(continuation.strip())
    return 1.0 - len(set(words)) / len(words) if words else float("nan")


def published_distinct(prompts: Sequence[Sequence[str]], tokenizer: Any) -> Float[np.ndarray, "prompts 3"]:
    """Distinct n-grams of the orders 1 to 3 over the number of tokens, for the continuations of each prompt.

    A token is its own decoded string: two ids that decode to the same are one, and one that decodes to nothing is
    skipped. An n-gram is the strings joined by underscores, as published. NaN for a prompt without tokens.
    """
    texts = [text for continuations in prompts for text in continuations]
    rows = tokenizer(texts)["input_ids"] if texts else []
    decoded = {token: tokenizer.decode(token, skip_special_tokens=True) for token in set(chain.from_iterable(rows))}
    strings = iter([string for token in row if (string := decoded[token])] for row in rows)
    result = np.full((len(prompts), len(ORDERS)), np.nan)
    for prompt, continuations in enumerate(prompts):
        of_prompt = list(islice(strings, len(continuations)))
        total = sum(map(len, of_prompt))
        for column, order in enumerate(ORDERS if total else ()):
            shifted = ([text[start:] for start in range(order)] for text in of_prompt)
            grams = set().union(*(map("_".join, zip(*parts, strict=False)) for parts in shifted))
            result[prompt, column] = len(grams) / total
    return result
