"""Does the drop of toxicity in a language go with how near that language lies to English? (section 5, Figure 4)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from polydetox import paths
from polydetox.artifacts import Stage, finished, read_json
from polydetox.params import TransferParameters, load_model, load_profile

if TYPE_CHECKING:
    from jaxtyping import Float

COLUMNS = ["language", "before", "after", "relative_drop", "accuracy", "aligned_cosine"]


def transfer_table(settings: TransferParameters, stage: Stage) -> pd.DataFrame:
    """EMT before and after, its relative drop ``(before - after) / before``, and retrieval, a row a language.

    English, the language of the pairs, is left out, as it retrieves itself; so is what was not run.
    """
    profile, model = load_profile(settings.profile), load_model(settings.model).name
    rows = []
    for language in profile.languages:
        folders = [paths.evaluate(profile.name, model, variant, language) for variant in ("base", settings.variant)]
        retrieval = paths.retrieval(profile.name, model, language)
        if language == "en" or not all(finished(folder) for folder in (*folders, retrieval)):
            continue
        before, after = (read_json(stage.reads(folder / "metrics.json"))["emt"]["value"] for folder in folders)
        found = read_json(stage.reads(retrieval / "metrics.json"))
        if before:
            rows.append((language, before, after, (before - after) / before, found["accuracy"],
                         found["aligned_cosine"]))  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def correlation(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    *,
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """Pearson's r and its two-sided p, a bootstrap interval over the points, and the range of r without one point.

    Figures are None where there are fewer than four points, or where one side does not vary.
    """
    from scipy import stats

    names = ["r", "p", "low", "high", "least_without_one", "most_without_one"]
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"points": len(x), **dict.fromkeys(names)}
    result = stats.pearsonr(x, y)
    draws = np.random.default_rng(seed).integers(len(x), size=(samples, len(x)))
    left, right = x[draws], y[draws]
    left, right = left - left.mean(axis=1, keepdims=True), right - right.mean(axis=1, keepdims=True)
    scale = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    replicates = (left * right).sum(axis=1)[scale > 1e-12] / scale[scale > 1e-12]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    kept = [np.delete(np.arange(len(x)), out) for out in range(len(x))]
    without = [float(np.corrcoef(x[rows], y[rows])[0, 1]) for rows in kept if np.ptp(x[rows]) and np.ptp(y[rows])]
    return {
        "points": len(x),
        "r": float(result.statistic),
        "p": float(result.pvalue),
        "low": float(low),
        "high": float(high),
        "least_without_one": min(without),
        "most_without_one": max(without),
    }


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope and intercept of the line of least squares; level at the mean where ``x`` does not vary."""
    if np.ptp(x) == 0:
        return 0.0, float(np.mean(y))
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


def leave_one_out(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """Predict each point from a line through the others, and from their mean alone.

    ``error`` and ``mean_error`` are the root mean squared errors of the two: ``x`` predicts only where the first is
    the smaller. None with fewer than four points.
    """
    if len(x) < 4 or np.ptp(x) == 0:
        return {"predicted": None, "error": None, "mean_error": None}
    predicted, means = [], []
    for out in range(len(x)):
        rest = np.delete(np.arange(len(x)), out)
        slope, intercept = line(x[rest], y[rest])
        predicted.append(slope * float(x[out]) + intercept)
        means.append(float(y[rest].mean()))
    return {
        "predicted": predicted,
        "error": float(np.sqrt(np.mean((np.array(predicted) - y) ** 2))),
        "mean_error": float(np.sqrt(np.mean((np.array(means) - y) ** 2))),
    }


def transfer_figures(table: pd.DataFrame, settings: TransferParameters) -> dict[str, Any]:
    """Correlation and prediction of the relative drop, from retrieval accuracy and from the mean aligned cosine."""
    drop = table["relative_drop"].to_numpy(dtype=float)
    figures: dict[str, Any] = {"languages": len(table)}
    for name in ("accuracy", "aligned_cosine"):
        x = table[name].to_numpy(dtype=float)
        figures[name] = {
            **correlation(x, drop, samples=settings.bootstrap_samples, confidence=settings.confidence,
                          seed=settings.seed),
            **leave_one_out(x, drop),
        }  # fmt: skip
    return figures
