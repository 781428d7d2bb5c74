"""Does the drop of toxicity in a language go with how near that language lies to English? (section 5, Figure 4)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polydetox.core.parameters import Settings
from polydetox.stats.correlation import correlation, leave_one_out

COLUMNS = ["language", "before", "after", "relative_drop", "accuracy", "aligned_cosine"]


def transfer_table(before: Mapping[str, Any], after: Mapping[str, Any], retrieval: Mapping[str, Any]) -> pd.DataFrame:
    """EMT before and after, its relative drop ``(before - after) / before``, and retrieval, a row a language.

    ``before`` and ``after`` hold the metrics of each language, ``retrieval`` what was retrieved in it. English, the
    language of the pairs, is skipped, as it retrieves itself; so is what has no relative drop because a side has no
    scored continuation, as of a model that writes nothing.
    """
    rows = []
    for language in before:
        if language == "en" or language not in after or language not in retrieval:
            continue
        high, low = (side[language]["emt"]["value"] for side in (before, after))
        if high and low is not None:
            found = retrieval[language]
            rows.append((language, high, low, (high - low) / high, found["accuracy"], found["aligned_cosine"]))
    return pd.DataFrame(rows, columns=COLUMNS)


def transfer_figures(table: pd.DataFrame, settings: Settings) -> dict[str, Any]:
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
