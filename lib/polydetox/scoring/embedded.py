"""Toxicity from sentence embeddings: an encoder that embeds texts, and a small head that reads toxicity from them.

The notebook ``scorer_head`` trains the head of ``data/embedded_head.json`` and measures it in each language. It ranks
well within a language; its level differs between languages, whose scores are not comparable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polydetox.core.artifacts import read_json
from polydetox.scoring.base import Score, Scorer

DATA = Path(__file__).parent / "data"
HEAD_FILE = DATA / "embedded_head.json"


class Encoder(Protocol):
    """Texts to sentence embeddings."""

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield (positions, float32 embeddings of shape ``(len(positions), dimension)``), each position once."""


def embed(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """The embeddings of one text or more, in their order: float32 of shape ``(len(texts), dimension)``."""
    positions, embeddings = zip(*encoder.batches(texts), strict=True)
    return np.concatenate(embeddings)[np.argsort(np.concatenate(positions))]


@dataclass(frozen=True)
class Head:
    """A logistic regression on embeddings: ``weights`` of shape ``(dimension,)`` and a ``bias``."""

    weights: np.ndarray
    bias: float
    metadata: dict[str, Any] = field(default_factory=dict)

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """Toxicity in [0, 1]: ``(n, dimension)`` to float64 ``(n,)``."""
        log_odds = embeddings.astype(np.float64) @ self.weights + self.bias
        return 0.5 * (1.0 + np.tanh(0.5 * log_odds))  # the logistic function, without overflow

    @property
    def sha256(self) -> str:
        """Of weights and bias."""
        return hashlib.sha256(np.append(self.weights, self.bias).astype("<f8").tobytes()).hexdigest()

    @staticmethod
    def load(path: Path = HEAD_FILE) -> Head:
        """Read what the notebook ``scorer_head`` writes."""
        content = read_json(path)
        return Head(np.array(content.pop("weights"), dtype=np.float64), float(content.pop("bias")), content)


class EmbeddedScorer(Scorer):
    """What a head reads from a sentence embedding, in the languages in which it was measured.

    ``load`` gives the encoder, when texts are first scored, of the weights with the SHA-256 that the head belongs to.
    """

    def __init__(
        self, scorer_id: str, encoder_id: str, load: Callable[[str], Encoder], head: Head, languages: frozenset[str]
    ):
        self.id, self.languages, self.head, self._load = scorer_id, languages, head, load
        self._weights_sha256 = str(head.metadata.get("weights_sha256", ""))
        self.revision = f"{encoder_id}-{self._weights_sha256[:12]}+head-{head.sha256[:12]}"

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded when first needed."""
        return self._load(self._weights_sha256)

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        for positions, embeddings in self.encoder.batches(texts) if texts else ():
            yield list(zip(positions, map(Score, self.head.scores(embeddings).tolist()), strict=True))
