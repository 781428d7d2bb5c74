"""Does the drop of toxicity in a language go with how near that language lies to English? (section 5, Figure 4)"""

from __future__ import annotations

from typing import Any

import pandas as pd

from polydetox import paths
from polydetox.artifacts import Stage, finished, read_json
from polydetox.params import TransferParameters, load_model, load_profile
from polydetox.stats.correlation import correlation, leave_one_out

COLUMNS = ["language", "before", "after", "relative_drop", "accuracy", "aligned_cosine"]


def transfer_table(settings: TransferParameters, stage: Stage) -> pd.DataFrame:
    """EMT before and after, its relative drop ``(before - after) / before``, and retrieval, a row a language.

    English, the language of the pairs, is left out, as it retrieves itself; so is what was not run, and what has no
    relative drop because a side has no scored continuation, as of a model that writes nothing.
    """
    profile, model = load_profile(settings.profile), load_model(settings.model).name
    rows = []
    folder = paths.retrieval(profile.name, model)
    retrieved = read_json(stage.reads(folder / "metrics.json"))["languages"] if finished(folder) else {}
    for language in profile.languages:
        folders = [paths.evaluate(profile.name, model, variant, language) for variant in ("base", settings.variant)]
        if language == "en" or language not in retrieved or not all(map(finished, folders)):
            continue
        before, after = (read_json(stage.reads(folder / "metrics.json"))["emt"]["value"] for folder in folders)
        found = retrieved[language]
        if before and after is not None:  # a side without any score, or nothing to drop from: no relative drop
            rows.append((language, before, after, (before - after) / before, found["accuracy"],
                         found["aligned_cosine"]))  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


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
