"""How far two scorers agree on the same texts.

The texts of one prompt are not independent, so intervals resample whole prompts. A replicate is a weight for each text,
how often its prompt is there; every measure here takes such weights, all replicates at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int

from polydetox.stats.bootstrap import percentile_interval, weighted_replicates

Measure = Callable[[Float[np.ndarray, "replicates n"]], Float[np.ndarray, " replicates"]]


def auc(toxic: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Area under the ROC curve of the texts that have a score; NaN where only one class is left."""
    toxic, scores = np.asarray(toxic, dtype=bool), np.asarray(scores, dtype=np.float64)
    known = ~np.isnan(scores)
    return float(weighted_auc(toxic[known], scores[known], np.ones((1, int(known.sum()))))[0])


def verdicts(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], first_threshold: float, second_threshold: float
) -> dict[str, float]:
    """How two scorers' verdicts (score at or above the threshold) agree on the texts that both scored.

    ``same_verdict``, the fraction of equal verdicts; ``kappa``, that corrected for chance (Cohen 1960), NaN where
    one scorer gives every text the same verdict; ``flagged_first`` and ``flagged_second``, the fractions called toxic.
    """
    first, second = both(first, second)
    if len(first) == 0:
        return dict.fromkeys(("same_verdict", "kappa", "flagged_first", "flagged_second"), float("nan"))
    left, right, once = first >= first_threshold, second >= second_threshold, np.ones((1, len(first)))
    return {
        "same_verdict": float((left == right).mean()),
        "kappa": float(weighted_kappa(left, right, once)[0]),
        "flagged_first": float(left.mean()),
        "flagged_second": float(right.mean()),
    }


def both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the texts that both scored."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    known = ~(np.isnan(first) | np.isnan(second))
    return first[known], second[known]


# --- with weights -----------------------------------------------------------------------------------------------


def weighted_spearman(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], weights: Float[np.ndarray, "replicates n"]
) -> Float[np.ndarray, " replicates"]:
    """Spearman's correlation as if text i were there ``weights[:, i]`` times; equal scores have their mean rank."""
    if len(first) < 2:
        return np.full(len(weights), np.nan)
    total, ranks = weights.sum(axis=1, keepdims=True), []
    for values in (first, second):
        weight, owner = _by_value(values, weights)
        ranks.append((weight.cumsum(axis=1) - (weight - 1) / 2)[:, owner])  # from 1, of all repetitions together
    left, right = (rank - (weights * rank).sum(axis=1, keepdims=True) / total for rank in ranks)
    scale = (weights * left**2).sum(axis=1) * (weights * right**2).sum(axis=1)
    varies = scale > 1e-12
    return np.where(varies, (weights * left * right).sum(axis=1) / np.sqrt(np.where(varies, scale, 1.0)), np.nan)


def weighted_auc(
    toxic: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], weights: Float[np.ndarray, "replicates n"]
) -> Float[np.ndarray, " replicates"]:
    """Area under the ROC curve as if text i were there ``weights[:, i]`` times: the chance that a toxic text scores
    above one that is not, ties counting half (Mann and Whitney 1947); NaN without either class."""
    if len(scores) == 0:
        return np.full(len(weights), np.nan)
    positive, _ = _by_value(scores, weights * toxic)  # (replicates, distinct scores)
    negative, _ = _by_value(scores, weights * ~toxic)
    won = (positive * (negative.cumsum(axis=1) - negative / 2)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan)


def weighted_kappa(
    first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "replicates n"]
) -> Float[np.ndarray, " replicates"]:
    """Cohen's kappa as if text i were there ``weights[:, i]`` times; NaN where a side has one verdict for all."""
    total = weights.sum(axis=1)
    equal, p, q = (weights @ verdict / total for verdict in (first == second, first, second))
    chance = p * q + (1.0 - p) * (1.0 - q)
    informative = (p > 0) & (p < 1) & (q > 0) & (q < 1)
    return np.where(informative, (equal - chance) / np.where(informative, 1.0 - chance, 1.0), np.nan)


def _by_value(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight of each distinct value, ascending: ``(replicates, distinct)``; and which one each text has."""
    _, owner = np.unique(values, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(owner.max() + 1))
    return np.add.reduceat(weights[:, order], starts, axis=1), owner


# --- intervals by prompt ----------------------------------------------------------------------------------------


def by_prompt(
    measure: Measure, prompts: Int[np.ndarray, " n"], *, samples: int, confidence: float, seed: int
) -> dict[str, float]:
    """A measure with its percentile interval from a bootstrap over prompts: ``value``, ``low``, ``high``.

    ``prompts`` says which prompt each text belongs to. Replicates in which the measure is not defined (all their
    texts have one verdict) do not count; NaN where none is.
    """
    if len(prompts) == 0:
        return dict.fromkeys(("value", "low", "high"), float("nan"))
    _, owner = np.unique(prompts, return_inverse=True)
    found = weighted_replicates(measure, owner, samples=samples, seed=seed)
    low, high = percentile_interval(found[~np.isnan(found)], confidence)
    return {"value": float(measure(np.ones((1, len(owner))))[0]), "low": low, "high": high}


def cluster_auc(
    toxic: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], prompts: Int[np.ndarray, " n"],
    *, samples: int = 1000, confidence: float = 0.95, seed: int = 0,
) -> dict[str, float | None]:  # fmt: skip
    """Area under the ROC curve with its interval by prompt; all three None where the texts have one label."""
    if toxic.all() or not toxic.any():
        return {"value": None, "low": None, "high": None}
    measure = partial(weighted_auc, toxic, np.asarray(scores, dtype=np.float64))
    return {**by_prompt(measure, prompts, samples=samples, confidence=confidence, seed=seed)}
