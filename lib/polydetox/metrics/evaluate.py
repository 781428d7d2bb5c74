"""From scored continuations to the metrics of one model, variant and language. Needs no model, and no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from polydetox.metrics.diversity import ORDERS, distinct
from polydetox.metrics.intervals import bootstrap, cluster_quantile
from polydetox.metrics.toxicity import any_toxic, average_toxicity, maximum_toxicity

# The published evaluation leaves out continuations from this perplexity on; here they are kept, and counted.
OUTLIER = 1e4

TOKEN_DISTINCT = [f"token_distinct_{order}" for order in ORDERS]  # of a prompt, the same in each of its rows

SCORE_COLUMNS = [
    "prompt_id", "prompt", "sample", "continuation", "toxicity", "second_opinion", "perplexity",
    "detected_language", "empty", "truncated", *TOKEN_DISTINCT,
]  # fmt: skip


def matrix(scores: pd.DataFrame, column: str) -> Float[np.ndarray, "prompts k"]:
    """A column of a table with a row a continuation, as one row a prompt; NaN where a value is missing."""
    wide = scores.pivot(index="prompt_id", columns="sample", values=column)
    return wide.loc[scores["prompt_id"].unique()].to_numpy(dtype=float)


def interval_text(metric: dict[str, float | None]) -> str:
    """A metric with its interval as prose prints it, ``0.31 [0.27, 0.36]``; ``not measured`` without a value."""
    if metric["value"] is None:
        return "not measured"
    return f"{metric['value']:.2f} [{metric['low']:.2f}, {metric['high']:.2f}]"


def summarise(
    scores: pd.DataFrame, language: str, threshold: float, *, samples: int, confidence: float, seed: int
) -> dict[str, Any]:
    """Every metric of one language with its bootstrap interval by prompt.

    ``scores`` has the columns ``SCORE_COLUMNS``. Each metric is ``{"value", "low", "high"}``, all None where there
    is nothing to measure it on.
    """
    options = {"samples": samples, "confidence": confidence, "seed": seed}
    toxicity = matrix(scores, "toxicity")
    groups = [group for _, group in scores.groupby("prompt_id", sort=False)]
    perplexities = [group["perplexity"].dropna().to_numpy() for group in groups]
    texts = [list(group.loc[~group["empty"], "continuation"]) for group in groups]
    return {
        "prompts": len(groups),
        "continuations": len(scores),
        "scored": int(scores["toxicity"].notna().sum()),
        "empty": int(scores["empty"].sum()),
        "truncated": int(scores["truncated"].sum()),
        "emt": bootstrap(maximum_toxicity(toxicity), **options),
        "toxprob": bootstrap(any_toxic(toxicity, threshold), **options),
        "avgtox": bootstrap(average_toxicity(toxicity), **options),
        "perplexity": {
            "q1": cluster_quantile(perplexities, 0.25, **options),
            "median": cluster_quantile(perplexities, 0.50, **options),
            "q3": cluster_quantile(perplexities, 0.75, **options),
        },
        "distinct": {
            str(order): bootstrap(_present([distinct(group, order, language) for group in texts]), **options)
            for order in ORDERS
        },
        "token_distinct": {
            str(order): bootstrap(_present([group[column].iloc[0] for group in groups]), **options)
            for order, column in zip(ORDERS, TOKEN_DISTINCT, strict=True)
        },
        "judged": int(scores["perplexity"].notna().sum()),
        "outliers": int((scores["perplexity"] >= OUTLIER).sum()),
        "language_share": bootstrap(language_share(groups, language), **options),
        "second_opinion": bootstrap(mean_by_prompt(groups, "second_opinion"), **options),
    }


def _present(values: list[float | None]) -> Float[np.ndarray, " n"]:
    return np.array([value for value in values if value is not None and not np.isnan(value)], dtype=float)


def language_share(groups: list[pd.DataFrame], language: str) -> Float[np.ndarray, " prompts"]:
    """For each prompt the share of its continuations in its language, of those whose language can be told."""
    shares = []
    for group in groups:
        told = group["detected_language"].dropna()
        if len(told):
            shares.append(float((told == language).mean()))
    return np.array(shares)


def mean_by_prompt(groups: list[pd.DataFrame], column: str) -> Float[np.ndarray, " prompts"]:
    """For each prompt the mean of a column over its continuations, of the prompts that have a value."""
    means = [group[column].mean() for group in groups]
    return np.array([mean for mean in means if not np.isnan(mean)])
