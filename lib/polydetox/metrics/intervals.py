"""Bootstrap intervals with the prompt as the unit: the continuations of one prompt are not independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Statistic = Callable[[np.ndarray], np.ndarray | np.floating]


def mean(values: np.ndarray) -> np.ndarray | np.floating:
    """The mean over the last axis."""
    return values.mean(axis=-1)


def percentile_interval(replicates: Float[np.ndarray, " samples"], confidence: float) -> tuple[float, float]:
    """The central ``confidence`` share of bootstrap replicates, as its lower and upper end; NaN where any is NaN."""
    if len(replicates) == 0 or np.isnan(replicates).any():
        return float("nan"), float("nan")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return float(low), float(high)


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
    low, high = percentile_interval(np.asarray(statistic(values[draws])), confidence)
    return {"value": float(statistic(values)), "low": low, "high": high}


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
    low, high = percentile_interval(replicates, confidence)
    return {"value": float(np.quantile(values, quantile)), "low": low, "high": high}
