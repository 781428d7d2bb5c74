"""Toxicity from sentence embeddings: an encoder that embeds texts, and a small head that reads toxicity from them.

The notebook ``scorer_head`` trains the heads of ``data/*_head.json`` and measures them in each language. They rank well
within a language; their level differs between languages, whose scores are not comparable.
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
from polydetox.core.errors import UserError
from polydetox.core.paths import relative
from polydetox.scoring.base import Score, Scorer

DATA = Path(__file__).parent / "data"


class Encoder(Protocol):
    """Texts to sentence embeddings."""

    sha256: str  # of the weights

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield (positions, float32 embeddings of shape ``(len(positions), dimension)``), each position once."""


def embed(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """The embeddings of one text or more, in their order: float32 of shape ``(len(texts), dimension)``."""
    positions, embeddings = zip(*encoder.batches(texts), strict=True)
    return np.concatenate(embeddings)[np.argsort(np.concatenate(positions))]


def same_length(tokens: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Positions of texts of equally many tokens, ``most`` tokens a batch: no vector depends on its neighbours."""
    by_length: dict[int, list[int]] = {}
    for position, ids in enumerate(tokens):
        by_length.setdefault(len(ids), []).append(position)
    for length, positions in sorted(by_length.items()):
        size = max(1, most // length)
        yield from (positions[start : start + size] for start in range(0, len(positions), size))


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
    def load(path: Path) -> Head:
        """Read what the notebook ``scorer_head`` writes."""
        content = read_json(path)
        for name in ("encoder", "languages", "weights_sha256", "weights", "bias"):
            if name not in content:
                raise UserError(f"{relative(path)}: no {name!r}; give a head that the notebook scorer_head has written")
        try:
            weights, bias = (np.array(content.pop(name), dtype=np.float64) for name in ("weights", "bias"))
        except (TypeError, ValueError):  # words, lists of several lengths
            weights, bias = np.empty((0, 0)), np.empty(0)
        if weights.ndim != 1 or bias.ndim or not (np.isfinite(weights).all() and np.isfinite(bias)):
            raise UserError(f"{relative(path)}: 'weights' should be a list of numbers, 'bias' a number; write the head "
                            "again with the notebook scorer_head")  # fmt: skip
        return Head(weights, float(bias), content)


class EmbeddedScorer(Scorer):
    """What a head reads from a sentence embedding, in the languages in which it was measured.

    ``load`` gives the encoder, when texts are first scored, of the weights with the SHA-256 that the head belongs to.
    """

    def __init__(self, scorer_id: str, load: Callable[[str], Encoder], head: Head):
        self.id, self.head, self._load = scorer_id, head, load
        self.languages, self._sha256 = frozenset(head.metadata["languages"]), str(head.metadata["weights_sha256"])
        self.revision = f"{head.metadata['encoder']}-{self._sha256[:12]}+head-{head.sha256[:12]}"

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded when first needed."""
        return self._load(self._sha256)

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        for positions, embeddings in self.encoder.batches(texts) if texts else ():
            yield list(zip(positions, map(Score, self.head.scores(embeddings).tolist()), strict=True))
