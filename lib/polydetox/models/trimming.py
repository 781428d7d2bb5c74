"""Byte-pair encodings that ``trim.ipynb`` can trim, and how they derive a token.

The kept tokens are closed under the merges of the byte-pair encoding: with each token, every token on the way to
it. A text whose tokens are all kept is then tokenised exactly as before, since its merges are all still there and
no new ones are; any other text falls back on shorter tokens and at last on bytes, which always stay.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from polydetox.core.errors import UserError


def derivation(token: str, vocabulary: Mapping[str, int], ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Every token on the way from single characters to ``token``, itself included, as a byte-pair encoding merges."""
    pieces = list(token)
    seen = {piece for piece in pieces if piece in vocabulary}
    while len(pieces) > 1:
        pairs = enumerate(itertools.pairwise(pieces))
        candidates = [(ranks[pair], position) for position, pair in pairs if pair in ranks]
        if not candidates:
            break
        _, position = min(candidates)
        pieces[position : position + 2] = [pieces[position] + pieces[position + 1]]
        seen.add(pieces[position])
    return seen


def specification(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The serialised fast tokenizer; only byte-pair encodings over characters can be trimmed."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("vocabulary trimming needs a fast tokenizer; remove 'trim:' from the profile")
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback"):
        raise UserError(
            "vocabulary trimming knows byte-pair encodings with byte fallback (Gemma, Llama 2, ...), and this "
            f"tokenizer is {model['type']}{'' if model.get('byte_fallback') else ' without byte fallback'}; remove "
            "'trim:' from the profile"
        )
    return parts


def merges(parts: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files write them as one string with a space."""
    listed = parts["model"]["merges"]
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in listed]
