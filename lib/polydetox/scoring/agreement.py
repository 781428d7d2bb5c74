"""How far two scorers agree on the same texts."""

from __future__ import annotations

import numpy as np
import pandas as pd


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation over the texts that both scored; NaN where a scorer gave one value to all."""
    from scipy.stats import spearmanr

    first, second = _both(first, second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def kappa(first: np.ndarray, second: np.ndarray, first_threshold: float, second_threshold: float) -> float:
    """Cohen's kappa (1960) of toxic or not over the texts that both scored.

    1 for full agreement, 0 for what chance would give; NaN where both put all texts into one class.
    """
    first, second = _both(first, second)
    if len(first) == 0:
        return float("nan")
    a, b = first >= first_threshold, second >= second_threshold
    observed = (a == b).mean()
    expected = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def agreement_by_language(
    scores: pd.DataFrame, first: str, second: str, first_threshold: float = 0.5, second_threshold: float = 0.5
) -> pd.DataFrame:
    """Agreement of the columns ``first`` and ``second`` of ``scores``, by its column ``language``.

    Columns: ``language``; ``texts``; ``both`` (scored by both); ``spearman``; ``kappa``; ``first_toxic`` and
    ``second_toxic``, the shares that each calls toxic of those that both scored.
    """
    rows = []
    for language, part in scores.groupby("language", sort=False):
        a, b = part[first].to_numpy(np.float64), part[second].to_numpy(np.float64)
        shared_a, shared_b = _both(a, b)
        rows.append(
            {
                "language": language,
                "texts": len(part),
                "both": len(shared_a),
                "spearman": spearman(a, b),
                "kappa": kappa(a, b, first_threshold, second_threshold),
                "first_toxic": (shared_a >= first_threshold).mean() if len(shared_a) else np.nan,
                "second_toxic": (shared_b >= second_threshold).mean() if len(shared_b) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    known = ~(np.isnan(first) | np.isnan(second))
    return first[known], second[known]
