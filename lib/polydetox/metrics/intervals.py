"""Bootstrap intervals with the prompt as the unit: the continuations of one prompt are not independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

Statistic = Callable[[np.ndarray], np.ndarray | np.floating]


def mean(values: np.ndarray) -> np.ndarray | np.floating:
    """The mean over the last axis."""
    return values.mean(axis=-1)


def bootstrap(
    values: Float[np.ndarray, " units"],
    statistic: Statistic = mean,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float | None]:
    """A statistic with its percentile bootstrap interval: ``value``, ``low``, ``high``.

    ``values`` has one entry a prompt; ``statistic`` works along the last axis. Without any value all three are None.
    """
    if len(values) == 0:
        return {"value": None, "low": None, "high": None}
    draws = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(statistic(values[draws]), [tail, 1.0 - tail])
    return {"value": float(statistic(values)), "low": float(low), "high": float(high)}


def cluster_quantile(
    groups: list[np.ndarray], quantile: float, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, float | None]:
    """A quantile over all values of all groups, its interval by resampling whole groups (prompts)."""
    groups = [group for group in groups if len(group)]
    if not groups:
        return {"value": None, "low": None, "high": None}
    values = np.concatenate(groups)
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    draws = np.random.default_rng(seed).integers(len(groups), size=(samples, len(groups)))
    replicates = np.empty(samples)
    for row, draw in enumerate(draws):
        # How often each value is in this resample; its quantile then needs no second sort.
        weight = np.bincount(draw, minlength=len(groups))[owner].cumsum()
        replicates[row] = values[np.searchsorted(weight, quantile * weight[-1])]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return {"value": float(np.quantile(values, quantile)), "low": float(low), "high": float(high)}


def cluster_roc_auc(
    logits: Float[np.ndarray, " texts"],
    labels: Int[np.ndarray, " texts"],
    groups: Int[np.ndarray, " texts"],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float | None]:
    """Area under the ROC curve, its interval by resampling whole groups (prompts): ``value``, ``low``, ``high``.

    All three are None where the texts have one label. Resamples of one label are left out.
    """
    if len(np.unique(labels)) < 2:
        return {"value": None, "low": None, "high": None}
    _, place = np.unique(logits, return_inverse=True)
    _, owner = np.unique(groups, return_inverse=True)
    count = owner.max() + 1

    def area(weight: np.ndarray) -> float:
        """The share of pairs of a toxic and a benign text in which the toxic one has the higher logit; ties half."""
        toxic, benign = np.bincount(place, weight * labels), np.bincount(place, weight * (1 - labels))
        below = benign.cumsum() - benign / 2.0
        pairs = toxic.sum() * benign.sum()
        return float(toxic @ below / pairs) if pairs else np.nan

    rng = np.random.default_rng(seed)
    replicates = [area(np.bincount(rng.integers(count, size=count), minlength=count)[owner]) for _ in range(samples)]
    tail = (1.0 - confidence) / 2.0
    low, high = np.nanquantile(replicates, [tail, 1.0 - tail])
    return {"value": area(np.ones(len(labels))), "low": float(low), "high": float(high)}
