"""Correlation and lines over points: languages, or the languages of several models."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from polydetox.stats.bootstrap import percentile_interval, replicates


def correlation(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"] | None = None,
    *,
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """Pearson's r and its two-sided p, a bootstrap interval over the points, and the range of r without one point.

    Where points belong together (the languages of one model), ``groups`` numbers what they belong to: whole groups are
    then resampled and skipped, and there is no p, which would count the points as independent. Figures are None where
    there are fewer than four points or three groups, or where one side does not vary.
    """
    from scipy import stats

    names = ["r", "p", "low", "high", "least_without_one", "most_without_one"]
    _, group = np.unique(np.arange(len(x)) if groups is None else groups, return_inverse=True)
    if len(x) < 4 or len(np.unique(group)) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"points": len(x), **dict.fromkeys(names)}
    result = stats.pearsonr(x, y)
    left, right = x - x.mean(), y - y.mean()
    # r is a function of sums over points, so that a replicate adds up the sums of its groups.
    sums = np.zeros((group.max() + 1, 6))
    np.add.at(sums, group, np.stack([np.ones(len(x)), left, right, left**2, right**2, left * right], axis=1))
    found = replicates(lambda groups: _pearson(groups.sum(axis=1)), sums, samples=samples, seed=seed)
    low, high = percentile_interval(found[~np.isnan(found)], confidence)
    without = _pearson(sums.sum(axis=0) - sums)
    return {
        "points": len(x),
        "r": float(result.statistic),
        "p": float(result.pvalue) if groups is None else None,
        "low": low,
        "high": high,
        "least_without_one": float(np.nanmin(without)),
        "most_without_one": float(np.nanmax(without)),
    }


def _pearson(sums: Float[np.ndarray, "samples 6"]) -> Float[np.ndarray, " samples"]:
    """r from the count and the sums of x, y, x², y² and xy; NaN where one side does not vary."""
    count, x, y, xx, yy, xy = sums.T
    scale = (count * xx - x**2) * (count * yy - y**2)
    varies = scale > 1e-24
    return np.where(varies, (count * xy - x * y) / np.sqrt(np.where(varies, scale, 1.0)), np.nan)


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope and intercept of the line of least squares; level at the mean where ``x`` does not vary."""
    if np.ptp(x) == 0:
        return 0.0, float(np.mean(y))
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)
