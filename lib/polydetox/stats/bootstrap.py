"""The bootstrap (Efron 1979) over units that are independent: prompts, items, models.

The continuations of one prompt are not independent, so whole prompts are resampled. ``seed`` is a number, a list of
numbers or a generator, as ``numpy.random.default_rng`` takes it; a generator continues from one call to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

Interval = dict[str, float | None]  # value, low, high; all None where there is nothing to measure
Seed = int | Sequence[int] | np.random.Generator

# Elements of a (samples, values) array of weights that are worked on at once.
_CHUNK = 1 << 22


def mean(values: np.ndarray) -> np.ndarray | np.floating:
    """The mean over the last axis."""
    return values.mean(axis=-1)


def resampled(units: int, samples: int, seed: Seed) -> Int[np.ndarray, "samples units"]:
    """The units of each replicate, with replacement."""
    return np.random.default_rng(seed).integers(units, size=(samples, units))


def counts(places: Int[np.ndarray, "samples units"]) -> Int[np.ndarray, "samples units"]:
    """How often each replicate has each unit."""
    return np.stack([np.bincount(row, minlength=places.shape[1]) for row in places])


def replicates(
    statistic: Callable[..., np.ndarray | np.floating], *values: np.ndarray, samples: int, seed: Seed
) -> Float[np.ndarray, " samples"]:
    """A statistic of each replicate. Each of ``values`` has a row a unit; ``statistic`` gets (samples, units, ...)."""
    places = resampled(len(values[0]), samples, seed)
    return np.asarray(statistic(*(value[places] for value in values)))


def weighted_replicates(
    measure: Callable[[Float[np.ndarray, "samples n"]], Float[np.ndarray, " samples"]],
    owner: Int[np.ndarray, " n"],
    *,
    samples: int,
    seed: Seed,
) -> Float[np.ndarray, " samples"]:
    """A measure of values that belong to units: value i has a weight, how often the replicate has ``owner[i]``.

    Of measures that are costly to compute from repeated values; ``owner`` numbers the units from 0.
    """
    places = resampled(int(owner.max()) + 1, samples, seed)
    size = max(1, _CHUNK // len(owner))
    chunks = (places[start : start + size] for start in range(0, samples, size))
    return np.concatenate([measure(counts(chunk)[:, owner].astype(np.float64)) for chunk in chunks])


def percentile_interval(replicates: Float[np.ndarray, " samples"], confidence: float) -> tuple[float, float]:
    """The central ``confidence`` fraction of replicates, as its lower and upper end; NaN where any is NaN."""
    if len(replicates) == 0 or np.isnan(replicates).any():
        return float("nan"), float("nan")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return float(low), float(high)


def bootstrap(
    *values: np.ndarray, statistic: Callable[..., np.ndarray | np.floating] = mean, samples: int = 1000,
    confidence: float = 0.95, seed: Seed = 0,
) -> Interval:  # fmt: skip
    """A statistic with its percentile interval: ``value``, ``low``, ``high``; None without any value.

    ``values`` have an entry a unit, and ``statistic`` works along their last axis.
    """
    if len(values[0]) == 0:
        return {"value": None, "low": None, "high": None}
    low, high = percentile_interval(replicates(statistic, *values, samples=samples, seed=seed), confidence)
    return {"value": float(statistic(*values)), "low": low, "high": high}


def pooled_replicates(
    groups: list[np.ndarray],
    times: Int[np.ndarray, "samples groups"],
    places: Callable[[int], float | list[int]],
    *,
    side: Literal["left", "right"] = "left",
) -> Float[np.ndarray, " samples"]:
    """A quantile over all values of all groups, of replicates that repeat group g ``times[:, g]`` times.

    ``places`` gives of a number of values which of them in order are averaged; ``side`` as in ``numpy.searchsorted``.
    """
    values, owner = np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    # How often each value is there, summed up: no replicate needs a sort, nor is it written out.
    weights = (repeated[owner].cumsum() for repeated in times)
    return np.array([values[np.searchsorted(weight, places(weight[-1]), side=side)].mean() for weight in weights])


def pooled_quantile(
    groups: list[np.ndarray], quantile: float, *, samples: int = 1000, confidence: float = 0.95, seed: Seed = 0
) -> Interval:
    """A quantile over all values of all groups, its interval by resampling whole groups (prompts)."""
    groups = [group for group in groups if len(group)]
    if not groups:
        return {"value": None, "low": None, "high": None}
    times = counts(resampled(len(groups), samples, seed))
    low, high = percentile_interval(pooled_replicates(groups, times, lambda size: quantile * size), confidence)
    return {"value": float(np.quantile(np.concatenate(groups), quantile)), "low": low, "high": high}
