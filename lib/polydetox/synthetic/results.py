"""The models of the synthetic multilingual setting as a tidy table, and what goes with their drop of insults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from polydetox.core.artifacts import read_json, read_parquet
from polydetox.results.collect import ENGLISH, Results

MEASURES = [
    "before", "after", "relative_drop", "kept_before", "kept_after", "kept_drop", "well_formed_before",
    "well_formed_after", "accuracy", "centred_accuracy", "direction_cosine", "tone_effect",
]  # fmt: skip
PREDICTORS = {"accuracy": "retrieval accuracy", "direction_cosine": "cosine of directions"}
OF_MODEL = ["configuration", "size", "alignment", "seed", "parameters"]
ALIGNMENT = ["size", "alignment"]  # what models of the same corpus have in common
SEED = [*ALIGNMENT, "language"]  # and with the language, only the seed is left to differ


def folders(results: Results) -> list[Path]:
    """Where the finished models of :func:`measurements` are."""
    return [run.folder for run in results.stages if run.stage == "world_transfer" and run.done]


def measurements(results: Results) -> pd.DataFrame:
    """Every model and language that was measured, a row each: ``OF_MODEL``, ``language`` and ``MEASURES``."""
    tables = []
    for folder in folders(results):
        metrics = read_json(folder / "metrics.json")
        table = read_parquet(folder / "languages.parquet", ["language", *MEASURES])
        # Readers know a size by its parameters, not by the profile's name for it.
        size = f"{metrics['parameters'] / 1e6:.1f} M parameters"
        shown = {**metrics, "configuration": folder.parent.name, "size": size}
        tables.append(table.assign(**{name: shown[name] for name in OF_MODEL}))
    columns = [*OF_MODEL, "language", *MEASURES]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def others(table: pd.DataFrame) -> pd.DataFrame:
    """What correlates: a row a model and language other than English whose drop is defined."""
    return table[(table["language"] != ENGLISH) & table["relative_drop"].notna()].astype(
        dict.fromkeys(("alignment", "accuracy", "direction_cosine", "relative_drop", "kept_drop"), float)
    )


def within(points: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """What predicts and the relative drop less their means over the points that have the same ``keys``."""
    values = points[[*PREDICTORS, "relative_drop"]]
    return values - values.groupby([points[key] for key in keys]).transform("mean")


def permutation_p(
    points: pd.DataFrame, predictor: str = "accuracy", samples: int = 10_000, seed: int = 0
) -> float | None:
    """Two-sided p that models which differ in their seed alone drop most where ``predictor`` is highest.

    The drops of whole models, all languages together, are permuted among the models of the same size and alignment: if
    the drop has nothing to do with a model's own retrieval, every order is as likely as the one that was seen. The
    statistic is the sum of the products of what :func:`within` leaves. None where no two models have the same corpus.
    """
    left = within(points, SEED).assign(configuration=points["configuration"], language=points["language"])
    rng = np.random.default_rng(seed)
    seen, permuted, several = 0.0, np.zeros(samples), False
    for _, rows in left.groupby([points[key] for key in ALIGNMENT]):
        known, drop = (rows.pivot(index="configuration", columns="language", values=name).fillna(0.0).to_numpy()
                       for name in (predictor, "relative_drop"))  # fmt: skip
        products = known @ drop.T  # (models, models whose drops they are given)
        models = np.arange(len(products))
        several |= len(models) > 1
        seen += np.trace(products)
        permuted += products[models, rng.permuted(np.tile(models, (samples, 1)), axis=1)].sum(axis=1)
    as_large = np.abs(permuted) >= abs(seen) - 1e-12
    return float((1 + as_large.sum()) / (1 + samples)) if several else None
