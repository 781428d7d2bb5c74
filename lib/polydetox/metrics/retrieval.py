"""Bilingual sentence retrieval: true nearest-neighbour accuracy, and what the authors' script prints (section 5)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def cosines(
    left: Float[np.ndarray, "sentences hidden"], right: Float[np.ndarray, "sentences hidden"]
) -> Float[np.ndarray, "sentences sentences"]:
    """The cosine of every sentence on the left to every one on the right."""

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)

    return unit(left.astype(np.float64)) @ unit(right.astype(np.float64)).T


def retrieval_figures(
    english: Float[np.ndarray, "sentences hidden"], other: Float[np.ndarray, "sentences hidden"]
) -> dict[str, float]:
    """How well translations find each other at one depth; row i of both is the same sentence.

    ``to_english`` and ``from_english`` are the fractions of sentences whose nearest neighbour by cosine on the other
    side is their translation (ties go to the first), ``accuracy`` their mean. ``aligned_cosine`` is the mean cosine of
    the aligned pairs, which the authors' script prints as accuracy; ``other_cosine`` that of all other pairs.
    """
    matrix = cosines(english, other)
    index = np.arange(len(matrix))
    from_english = float((matrix.argmax(axis=1) == index).mean())
    to_english = float((matrix.argmax(axis=0) == index).mean())
    aligned = float(np.diag(matrix).mean())
    pairs = matrix.size - len(matrix)
    return {
        "from_english": from_english,
        "to_english": to_english,
        "accuracy": (from_english + to_english) / 2.0,
        "aligned_cosine": aligned,
        "other_cosine": float((matrix.sum() - np.trace(matrix)) / pairs) if pairs else float("nan"),
    }
