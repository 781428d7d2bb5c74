"""From scored continuations to the value of each metric for each prompt. Needs no model, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from polydetox.metrics.diversity import ORDERS, distinct
from polydetox.metrics.language import language_rate
from polydetox.metrics.toxicity import prompt_toxicity

# The published evaluation skips continuations from this perplexity on; here they are kept, and counted.
OUTLIER = 1e4

TOKEN_DISTINCT = [f"token_distinct_{order}" for order in ORDERS]  # of a prompt, the same in each of its rows

SCORE_COLUMNS = [
    "prompt_id", "prompt", "sample", "continuation", "toxicity", "secondary_toxicity", "perplexity",
    "detected_language", "empty", "truncated", *TOKEN_DISTINCT,
]  # fmt: skip


def common_ground(tables: Mapping[Any, pd.DataFrame]) -> dict[Any, pd.DataFrame]:
    """Scored continuations in one language, cut to the prompts and samples that all tables have."""
    samples = min(int(table["sample"].max()) + 1 for table in tables.values())
    prompts = set.intersection(*(set(table["prompt_id"]) for table in tables.values()))
    ground = {
        key: table[(table["sample"] < samples) & table["prompt_id"].isin(prompts)] for key, table in tables.items()
    }
    # The notebook score has counted tokens over all continuations of a prompt, and they grow less distinct with these.
    known = {key: table["sample"].max() == tables[key]["sample"].max() for key, table in ground.items()}
    return {key: table if known[key] else table.drop(columns=TOKEN_DISTINCT, errors="ignore")
            for key, table in ground.items()}  # fmt: skip


def prompt_values(scores: pd.DataFrame, threshold: float, language: str) -> dict[str, pd.Series]:
    """Each metric's value for each prompt, as a series over ``prompt_id``; NaN where there is nothing to measure.

    ``scores`` has a row a continuation and the columns ``SCORE_COLUMNS``, and ``secondary_perplexity`` under a second
    reference model; without one of ``TOKEN_DISTINCT`` or ``secondary_*`` that metric is NaN. A perplexity holds an
    array a prompt, those of its continuations, since its summary is a median over all of them.
    """
    groups = scores.groupby("prompt_id", sort=False)
    toxicity = prompt_toxicity(scores, "toxicity", threshold)
    missing = pd.Series(np.nan, toxicity.index)
    values: dict[str, pd.Series] = {name: toxicity[name] for name in ("emt", "toxprob", "avgtox")}
    for name in ("perplexity", "secondary_perplexity"):
        measured = scores.get(name, pd.Series(np.nan, scores.index)).groupby(scores["prompt_id"], sort=False)
        values[name] = measured.apply(lambda found: found.dropna().to_numpy(dtype=float))
    values["language_rate"] = language_rate(scores, language)
    texts = {prompt: list(group.loc[~group["empty"], "continuation"]) for prompt, group in groups}
    for order, column in zip(ORDERS, TOKEN_DISTINCT, strict=True):
        values[f"distinct_{order}"] = pd.Series(
            {prompt: distinct(group, order, language) for prompt, group in texts.items()}, dtype=float
        )
        values[column] = groups[column].first() if column in scores else missing
    second = mean_by_prompt(scores, "secondary_toxicity") if "secondary_toxicity" in scores else missing
    return values | {"secondary_toxicity": second}


def mean_by_prompt(scores: pd.DataFrame, column: str) -> pd.Series:
    """The mean of a column over the continuations of each prompt; NaN for a prompt without any value."""
    # As a series of each prompt sums up: pandas' own mean of groups differs in the last bit.
    return scores.groupby("prompt_id", sort=False)[column].agg(lambda values: values.mean())
