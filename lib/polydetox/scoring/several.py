"""The continuations of a model under several scorers: what each says, where they agree, and on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from polydetox.core.artifacts import read_parquet
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings
from polydetox.metrics.toxicity import any_toxic, matrix, maximum_toxicity
from polydetox.scoring import CachedScorer, Scorer, get_scorer
from polydetox.stats.agreement import (
    both,
    by_prompt,
    matched_threshold,
    on_scale_of,
    verdicts,
    weighted_auc,
    weighted_kappa,
    weighted_spearman,
)
from polydetox.stats.bootstrap import bootstrap

UNTUNED = "base"
KEYS = ["variant", "language", "prompt_id", "sample"]


def read_continuations(scores: Mapping[str, Path]) -> pd.DataFrame:
    """The scored continuations of each variant in all languages: ``KEYS`` and ``continuation``."""
    columns = ["language", "prompt_id", "sample", "continuation"]
    tables = [read_parquet(file, columns).assign(variant=variant) for variant, file in scores.items()]
    if not tables:
        raise UserError("notebook agreement: 'scores' names no file; give one for the base model at least")
    return pd.concat(tables, ignore_index=True)[[*KEYS, "continuation"]]


def score_under(continuations: pd.DataFrame, scorers: dict[str, Scorer]) -> pd.DataFrame:
    """One column a scorer beside ``KEYS``; NaN where a score is missing or the scorer does not know the language.

    Scores come through the cache: what the evaluation has scored is not scored again.
    """
    scores = continuations[KEYS].copy()
    for name, scorer in scorers.items():
        cached, column = CachedScorer(scorer), pd.Series(np.nan, index=scores.index)
        for language, rows in tqdm(continuations.groupby("language", sort=False), desc=name, unit="language"):
            if language in scorer.languages:
                column[rows.index] = cached.score(rows["continuation"].tolist(), str(language))
        scores[name] = column
    return scores


def scorers_of(settings: Settings) -> dict[str, Scorer]:
    """The scorers by the names that the parameters list them under."""
    return {name: get_scorer(name) for name in settings.scorers}


def own_thresholds(settings: Settings, scorers: dict[str, Scorer]) -> dict[str, float]:
    """The threshold of each scorer: that of the parameters for the first, the others' own."""
    own = {name: scorer.threshold for name, scorer in scorers.items()}
    if settings.threshold is not None:
        own[settings.scorers[0]] = settings.threshold
    return own


def scales(scores: pd.DataFrame, thresholds: dict[str, float]) -> pd.DataFrame:
    """Each scorer's threshold that matches the first scorer's, in each language, on the untuned continuations.

    Columns: ``language``, ``scorer``, ``own`` and ``matched`` threshold, and ``flagged`` and ``flagged_matched``, the
    shares of the untuned continuations at or above them. A language without untuned continuations is left out.
    """
    reference = next(iter(thresholds))
    rows = []
    for language, part in scores[scores["variant"] == UNTUNED].groupby("language", sort=False):
        for name, own in thresholds.items():
            matched = matched_threshold(part[reference].to_numpy(), part[name].to_numpy(), thresholds[reference])
            matched = own if name == reference and not np.isnan(matched) else matched
            known = part[name].dropna()
            shares = [(known >= threshold).mean() if len(known) else np.nan for threshold in (own, matched)]
            rows.append((language, name, own, matched, *(shares if not np.isnan(matched) else (shares[0], np.nan))))
    return pd.DataFrame(rows, columns=["language", "scorer", "own", "matched", "flagged", "flagged_matched"])


def linked(scores: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Every scorer's scores on the scale of the first, by equal percentiles of the untuned continuations.

    The same rows and columns; each language by itself; NaN where there are no untuned continuations to link by.
    """
    result = scores.copy()
    for _, part in scores.groupby("language", sort=False):
        untuned = part[part["variant"] == UNTUNED]
        for name in names[1:]:
            result.loc[part.index, name] = on_scale_of(
                untuned[names[0]].to_numpy(), untuned[name].to_numpy(), part[name].to_numpy()
            )
    return result


PAIR_COLUMNS = [
    "variant", "language", "first", "second", "texts", "scored_by_both", "flagged_first", "flagged_second",
    "same_verdict",
    *(f"{name}{end}" for name in ("kappa", "spearman", "auc_of_second", "auc_of_first")
      for end in ("", "_low", "_high")),
]  # fmt: skip


def pair_agreement(
    scores: pd.DataFrame, thresholds: dict[str, float], *, samples: int, confidence: float, seed: int
) -> pd.DataFrame:
    """The agreement of every two scorers on the continuations of each variant and language.

    Columns ``PAIR_COLUMNS``: how many texts both scored and which fraction each calls toxic at its threshold;
    ``same_verdict``, that of equal verdicts; and with bootstrap intervals by prompt ``kappa``, ``spearman``, and
    ``auc_of_second``, the area under the ROC curve of the second's scores against the first's verdicts
    (``auc_of_first`` the other way round).
    """
    rows = []
    options: dict[str, Any] = {"samples": samples, "confidence": confidence, "seed": seed}
    for (variant, language), part in scores.groupby(["variant", "language"], sort=False):
        for first, second in combinations(thresholds, 2):
            known = part[part[first].notna() & part[second].notna()]
            a, b = both(part[first].to_numpy(), part[second].to_numpy())
            toxic_a, toxic_b = a >= thresholds[first], b >= thresholds[second]
            prompts = pd.factorize(known["prompt_id"])[0]
            measures = {
                "kappa": lambda w, x=toxic_a, y=toxic_b: weighted_kappa(x, y, w),
                "spearman": lambda w, x=a, y=b: weighted_spearman(x, y, w),
                "auc_of_second": lambda w, x=toxic_a, y=b: weighted_auc(x, y, w),
                "auc_of_first": lambda w, x=toxic_b, y=a: weighted_auc(x, y, w),
            }
            row = {"variant": variant, "language": language, "first": first, "second": second, "texts": len(part),
                   "scored_by_both": len(known), **verdicts(a, b, thresholds[first], thresholds[second])}  # fmt: skip
            for name, measure in measures.items():
                found = by_prompt(measure, prompts, **options)
                row |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
            rows.append(row)
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def levels(scores: pd.DataFrame, scale: pd.DataFrame, *, samples: int, confidence: float, seed: int) -> pd.DataFrame:
    """EMT and ToxProb of each variant and language under each scorer, as it is and on the first scorer's scale.

    Columns: ``variant, language, scorer, metric, value, low, high``. The metrics: ``emt`` and ``toxprob`` at the
    scorer's own threshold; ``emt_linked`` of the scores carried to the first scorer's scale; ``toxprob_matched`` at the
    matched threshold.
    """
    names = list(dict.fromkeys(scale["scorer"]))
    carried = linked(scores, names)
    limits = scale.set_index(["language", "scorer"])
    options: dict[str, Any] = {"samples": samples, "confidence": confidence, "seed": seed}
    rows = []
    for (variant, language), part in scores.groupby(["variant", "language"], sort=False):
        for name in names:
            if (language, name) not in limits.index or part[name].isna().all():
                continue
            own, on_scale = matrix(part, name), matrix(carried.loc[part.index], name)
            limit = limits.loc[(language, name)]
            values = {
                "emt": maximum_toxicity(own),
                "toxprob": any_toxic(own, limit["own"]),
                "emt_linked": maximum_toxicity(on_scale),
                "toxprob_matched": any_toxic(own, limit["matched"]) if pd.notna(limit["matched"]) else np.array([]),
            }
            for metric, value in values.items():
                rows.append((variant, language, name, metric, *bootstrap(value, **options).values()))
    columns = ["variant", "language", "scorer", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"value": float, "low": float, "high": float})
