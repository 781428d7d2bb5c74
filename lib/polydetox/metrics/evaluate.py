"""From scored continuations to the metrics of one model, variant and language. Needs no model, and no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from polydetox.metrics.diversity import ORDERS, distinct
from polydetox.metrics.language import language_rate
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.stats.bootstrap import bootstrap, pooled_quantile

# The published evaluation skips continuations from this perplexity on; here they are kept, and counted.
OUTLIER = 1e4

TOKEN_DISTINCT = [f"token_distinct_{order}" for order in ORDERS]  # of a prompt, the same in each of its rows

SCORE_COLUMNS = [
    "prompt_id", "prompt", "sample", "continuation", "toxicity", "secondary_toxicity", "perplexity",
    "detected_language", "empty", "truncated", *TOKEN_DISTINCT,
]  # fmt: skip


def prompt_values(scores: pd.DataFrame, threshold: float, language: str) -> dict[str, pd.Series]:
    """Each metric's value for each prompt, as a series over ``prompt_id``; NaN where there is nothing to measure.

    ``scores`` has a row a continuation and the columns ``SCORE_COLUMNS``; without ``TOKEN_DISTINCT`` or
    ``secondary_toxicity`` those metrics are NaN. ``perplexity`` holds an array a prompt, the perplexities of its
    continuations, since its summary is a median over all of them.
    """
    groups = scores.groupby("prompt_id", sort=False)
    toxicity = prompt_toxicity(scores, "toxicity", threshold)
    missing = pd.Series(np.nan, toxicity.index)
    values: dict[str, pd.Series] = {name: toxicity[name] for name in ("emt", "toxprob", "avgtox")}
    values["perplexity"] = groups["perplexity"].apply(lambda column: column.dropna().to_numpy(dtype=float))
    values["language_rate"] = language_rate(scores, language)
    texts = {prompt: list(group.loc[~group["empty"], "continuation"]) for prompt, group in groups}
    for order, column in zip(ORDERS, TOKEN_DISTINCT, strict=True):
        values[f"distinct_{order}"] = pd.Series(
            {prompt: distinct(group, order, language) for prompt, group in texts.items()}, dtype=float
        )
        values[column] = groups[column].first() if column in scores else missing
    second = mean_by_prompt(scores, "secondary_toxicity") if "secondary_toxicity" in scores else missing
    return values | {"secondary_toxicity": second}


def summarise(
    scores: pd.DataFrame, language: str, threshold: float, *, samples: int, confidence: float, seed: int
) -> dict[str, Any]:
    """Every metric of one language with its bootstrap interval by prompt.

    ``scores`` has the columns ``SCORE_COLUMNS``. Each metric is ``{"value", "low", "high"}``, all None where there
    is nothing to measure it on.
    """
    options: dict[str, Any] = {"samples": samples, "confidence": confidence, "seed": seed}
    values = prompt_values(scores, threshold, language)
    perplexities = list(values.pop("perplexity"))
    means = {name: bootstrap(series.dropna().to_numpy(dtype=float), **options) for name, series in values.items()}
    return {
        "prompts": scores["prompt_id"].nunique(),
        "continuations": len(scores),
        "scored": int(scores["toxicity"].notna().sum()),
        "empty": int(scores["empty"].sum()),
        "truncated": int(scores["truncated"].sum()),
        **{name: means[name] for name in ("emt", "toxprob", "avgtox")},
        "perplexity": {
            "q1": pooled_quantile(perplexities, 0.25, **options),
            "median": pooled_quantile(perplexities, 0.50, **options),
            "q3": pooled_quantile(perplexities, 0.75, **options),
        },
        "distinct": {str(order): means[f"distinct_{order}"] for order in ORDERS},
        "token_distinct": {str(order): means[f"token_distinct_{order}"] for order in ORDERS},
        "with_perplexity": int(scores["perplexity"].notna().sum()),
        "outliers": int((scores["perplexity"] >= OUTLIER).sum()),
        **{name: means[name] for name in ("language_rate", "secondary_toxicity")},
    }


def mean_by_prompt(scores: pd.DataFrame, column: str) -> pd.Series:
    """The mean of a column over the continuations of each prompt; NaN for a prompt without any value."""
    # As a series of each prompt sums up: pandas' own mean of groups differs in the last bit.
    return scores.groupby("prompt_id", sort=False)[column].agg(lambda values: values.mean())
