"""The head of the embedded scorer: 385 numbers that turn a sentence embedding into a toxicity score."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polydetox.core.artifacts import read_json, write_json
from polydetox.core.errors import UserError

DATA = Path(__file__).parent / "data"
HEAD_FILE = DATA / "embedded_head.json"


@dataclass(frozen=True)
class Head:
    """A logistic regression on embeddings: ``weights`` of shape (384,) and a ``bias``."""

    weights: np.ndarray
    bias: float
    metadata: dict[str, Any] = field(default_factory=dict)

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Log-odds of being toxic: ``(n, 384)`` to float64 ``(n,)``."""
        return embeddings.astype(np.float64) @ self.weights + self.bias

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """Toxicity in [0, 1]: ``(n, 384)`` to float64 ``(n,)``."""
        return sigmoid(self.logits(embeddings))

    @property
    def sha256(self) -> str:
        """Of the 385 numbers."""
        return hashlib.sha256(np.append(self.weights, self.bias).astype("<f8").tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write weights, bias and metadata as JSON."""
        weights = [round(float(weight), 6) for weight in self.weights]
        write_json(path, {**self.metadata, "bias": round(self.bias, 6), "weights": weights})

    @staticmethod
    def load(path: Path = HEAD_FILE) -> Head:
        """Read a head; a ``UserError`` names a file that holds none."""
        content = read_json(path)
        try:
            weights = np.array(content.pop("weights"), dtype=np.float64)
            bias = float(content.pop("bias"))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{path}: no head: it needs the fields 'weights' (384 numbers) and 'bias'") from None
        if weights.ndim != 1 or not np.isfinite(np.append(weights, bias)).all():
            raise UserError(f"{path}: field 'weights' is not a list of finite numbers; train the head again")
        return Head(weights, bias, content)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The logistic function, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))
