"""Distinct n-grams (Li et al. 2016): how varied the continuations of one prompt are.

Two ways of counting. :func:`distinct` is over words, so that it can be compared between models and tokenizers, and
divides by the number of n-grams. :func:`published_distinct` is what the code of Li, Yong and Bach computes, which its
figures have to be compared with: over the tokens of the judge's tokenizer, each decoded by itself, and divided by the
number of tokens, whatever the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
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

    NaN for a prompt without tokens; see :func:`distinct_tokens`.
    """
    texts = [text for continuations in prompts for text in continuations]
    rows = tokenizer(texts)["input_ids"] if texts else []
    return distinct_tokens(rows, [len(continuations) for continuations in prompts], tokenizer)


def distinct_tokens(
    rows: Sequence[Sequence[int]], sizes: Sequence[int], tokenizer: Any
) -> Float[np.ndarray, "prompts 3"]:
    """The same of token ids, a row a continuation; the first ``sizes[0]`` rows belong to the first prompt, and so on.

    A token is its own decoded string: two ids that decode to the same are one, and one that decodes to nothing is left
    out. An n-gram is the strings joined by underscores, as published.
    """
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    tokens = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
    strings, piece = _decoded(tokens, tokenizer)
    visible = (strings != "")[piece]
    piece, text_of = piece[visible], np.repeat(np.arange(len(rows)), lengths)[visible]
    prompt_of = np.repeat(np.arange(len(sizes)), sizes)[text_of]

    total = np.bincount(prompt_of, minlength=len(sizes))
    result = np.full((len(sizes), len(ORDERS)), np.nan)
    # An n-gram is numbered by its prompt, the n-gram before its last piece, and that piece.
    gram, owner = prompt_of, np.arange(len(sizes))  # (tokens,): of order 0; (grams,): the prompt of each
    outside = len(strings)
    for order in ORDERS:
        count = max(0, len(piece) - order + 1)
        ends, whole = piece[len(piece) - count :], text_of[len(piece) - count :] == text_of[:count]
        keys = gram[:count] * (outside + 1) + np.where(whole, ends, outside)
        gram, found = pd.factorize(keys)
        owner = owner[found // (outside + 1)]
        inside = found % (outside + 1) != outside  # the n-gram does not leave its text
        distinct_grams = np.bincount(owner[inside], minlength=len(sizes))
        distinct_grams -= _joined_to_one(strings, piece, gram, owner, inside, order, len(sizes))
        np.divide(distinct_grams, total, out=result[:, order - 1], where=total > 0)
    return result


def _decoded(tokens: np.ndarray, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The distinct strings that tokens decode to, each by itself, and which of them each token is."""
    position, used = pd.factorize(tokens)
    decoded = [tokenizer.decode(token, skip_special_tokens=True) for token in used.tolist()]
    number: dict[str, int] = {}
    string_of_used = np.array([number.setdefault(string, len(number)) for string in decoded], dtype=np.int64)
    return np.array(list(number), dtype=object), string_of_used[position]


def _joined_to_one(
    strings: np.ndarray, piece: np.ndarray, gram: np.ndarray, owner: np.ndarray, inside: np.ndarray, order: int,
    prompts: int,
) -> np.ndarray:  # fmt: skip
    """For each prompt how many of its distinct n-grams join to a string that an earlier one of them joins to as well.

    Only n-grams whose pieces hold an underscore themselves can do so.
    """
    doubles = np.zeros(prompts, dtype=np.int64)
    holds = np.array(["_" in string for string in strings], dtype=bool)
    if order == 1 or not holds.any():
        return doubles
    first = np.empty(len(owner), dtype=np.int64)
    first[gram[::-1]] = np.arange(len(gram))[::-1]  # where each n-gram begins for the first time
    grams = np.stack([piece[first[inside] + step] for step in range(order)], axis=1)  # (n-grams, order)
    risky = holds[grams].any(axis=1)
    seen: set[tuple[int, str]] = set()
    for prompt, pieces in zip(owner[inside][risky].tolist(), grams[risky], strict=True):
        joined = (prompt, "_".join(strings[pieces]))
        doubles[prompt] += joined in seen
        seen.add(joined)
    return doubles
