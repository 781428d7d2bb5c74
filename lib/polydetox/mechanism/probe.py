"""A linear toxicity probe on the residual stream (Li et al. 2024, section 4.1; Lee et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV

from polydetox.core.artifacts import atomic_path
from polydetox.core.errors import UserError
from polydetox.stats.agreement import cluster_auc


@dataclass(frozen=True)
class Probe:
    """``weight @ x + bias`` is the logit that a text with mean residual stream ``x`` is toxic.

    ``scale`` is the unit in which each direction of the residual stream was measured for the training (ones, or its
    standard deviation over the texts); angles to the probe are taken in these units.
    """

    weight: Float[np.ndarray, " hidden"]
    bias: float
    scale: Float[np.ndarray, " hidden"]

    def logits(self, features: Float[np.ndarray, "texts hidden"]) -> Float[np.ndarray, " texts"]:
        """The logit of each text."""
        return features @ self.weight + self.bias

    def save(self, path: Path) -> None:
        """Write the probe as safetensors, atomically."""
        tensors = {"weight": self.weight, "bias": np.array([self.bias]), "scale": self.scale}
        with atomic_path(path) as temporary:
            save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, temporary)

    @staticmethod
    def load(path: Path) -> Probe:
        """Read a probe that :meth:`save` wrote."""
        stored = load_file(path)
        return Probe(stored["weight"], float(stored["bias"][0]), stored["scale"])


def split(table: pd.DataFrame, fractions: tuple[float, float], seed: int) -> pd.Series:
    """``train``, ``validation`` or ``test`` for each row, by ``group``: no group is in two of them."""
    groups = np.random.default_rng(seed).permutation(table["group"].unique())
    validation, test = (max(1, round(fraction * len(groups))) for fraction in fractions)
    if validation + test >= len(groups):
        raise UserError(f"probe: only {len(groups)} groups of texts, too few to hold any out")
    held_out = dict.fromkeys(groups[: validation + test], "test") | dict.fromkeys(groups[:validation], "validation")
    return table["group"].map(held_out).fillna("train")


def logistic_regression(features: Float[np.ndarray, "texts hidden"], labels: Int[np.ndarray, " texts"]) -> Probe:
    """The same probe from scikit-learn's logistic regression on standardised features, as a check.

    How strongly it is regularised is chosen by cross-validation, for the highest area under the ROC curve.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": np.logspace(-5, 0, 6)}, scoring="roc_auc")
    fitted = search.fit((features - mean) / scale, labels).best_estimator_
    weight = fitted.coef_[0] / scale
    return Probe(weight.astype(np.float32), float(fitted.intercept_[0] - weight @ mean), scale)


def quality(
    probe: Probe, features: Float[np.ndarray, "texts hidden"], texts: pd.DataFrame
) -> dict[str, float | int | None]:
    """Accuracy, ROC-AUC and average precision of a probe; None where the texts have one label.

    ``texts`` has a row a row of ``features``: its ``label`` and its ``group`` (prompt), whole ones of which the
    bootstrap interval of the ROC-AUC samples.
    """
    truth, logits = texts["label"].to_numpy(), probe.logits(features)
    area = cluster_auc(truth == 1, logits, pd.factorize(texts["group"])[0])
    return {
        "texts": len(truth),
        "toxic_fraction": float(truth.mean()) if len(truth) else None,
        "accuracy": float(((logits >= 0) == truth).mean()) if len(truth) else None,
        "roc_auc": area["value"],
        "roc_auc_low": area["low"],
        "roc_auc_high": area["high"],
        "average_precision": None if area["value"] is None else float(average_precision_score(truth, logits)),
    }
