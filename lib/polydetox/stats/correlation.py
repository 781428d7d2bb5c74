"""Correlation and lines over points: languages, or the languages of several models."""

from __future__ import annotations

from itertools import combinations
from typing import Any

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


def leaving_out(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], count: int) -> dict[str, Any]:
    """Pearson's r over every choice of ``count`` points that are left out; 0: of all points, and of ranks Spearman's.

    ``least`` and ``most`` are the range of r, ``p`` the largest two-sided p and ``out`` the points left out for it;
    ``points`` stay. None where fewer than three stay, or where a side never varies.
    """
    from scipy import stats

    found = []
    for out in combinations(range(len(x)), count) if len(x) - count >= 3 else ():
        left, right = np.delete(x, out), np.delete(y, out)
        if np.ptp(left) > 0 and np.ptp(right) > 0:
            result = stats.pearsonr(left, right)
            found.append((float(result.pvalue), float(result.statistic), out))
    if not found:
        return {"points": len(x) - count, **dict.fromkeys(("least", "most", "p", "out"))}
    (p, _, out), r = max(found), [each[1] for each in found]
    return {"points": len(x) - count, "least": min(r), "most": max(r), "p": p, "out": list(out)}


def partial_correlation(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], given: Float[np.ndarray, " n"]
) -> dict[str, float | int | None]:
    """Pearson's r of what lines over ``given`` leave of x and of y, and its two-sided p (n - 3 degrees of freedom).

    Both are None with fewer than five points, or where nothing is left of a side.
    """
    from scipy import stats

    if len(x) < 5:
        return {"points": len(x), "r": None, "p": None}
    rest = [values - slope * given - at for values in (x, y) for slope, at in [line(given, values)]]
    if min(map(np.ptp, rest)) < 1e-12:
        return {"points": len(x), "r": None, "p": None}
    r, free = float(np.corrcoef(rest[0], rest[1])[0, 1]), len(x) - 3
    t = abs(r) * np.sqrt(free / max(1.0 - r**2, 1e-16))
    return {"points": len(x), "r": r, "p": float(2.0 * stats.t.sf(t, free))}


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope and intercept of the line of least squares; level at the mean where ``x`` does not vary."""
    if np.ptp(x) == 0:
        return 0.0, float(np.mean(y))
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)
