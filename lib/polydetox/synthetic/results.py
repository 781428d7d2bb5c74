"""The models of the synthetic multilingual setting as tidy tables, and what correlates with their drop of insults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core.artifacts import read_json, read_parquet
from polydetox.results.collect import ENGLISH, Results
from polydetox.stats.correlation import correlation, line

MEASURES = [
    "before",
    "after",
    "relative_drop",
    "kept_before",
    "kept_after",
    "kept_drop",
    "well_formed_before",
    "well_formed_after",
    "accuracy",
    "centred_accuracy",
    "direction_cosine",
    "tone_effect",
]


COLUMNS = ["cell", "size", "alignment", "seed", "parameters", "language", *MEASURES]


def _done(results: Results) -> list[Path]:
    return [run.folder for run in results.stages if run.stage == "world_transfer" and run.done]


def files(results: Results) -> list[Path]:
    """The tables of :func:`measurements`."""
    return [folder / name for folder in _done(results) for name in ("metrics.json", "languages.parquet")]


def measurements(results: Results) -> pd.DataFrame:
    """Every model and language that was measured, a row each."""
    tables = []
    for folder in _done(results):
        metrics = read_json(folder / "metrics.json")
        table = read_parquet(folder / "languages.parquet", ["language", *MEASURES])
        # Readers know a size by its parameters, not by the profile's name for it.
        shown = {**metrics, "cell": folder.parent.name, "size": f"{metrics['parameters'] / 1e6:.1f} M parameters"}
        tables.append(table.assign(**{key: shown[key] for key in COLUMNS[:5]})[COLUMNS])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def by_alignment(table: pd.DataFrame) -> pd.DataFrame:
    """Of each size and alignment the mean over seeds of each model's mean over languages, and its deviation.

    Columns: ``size, alignment, models``, each of ``MEASURES`` (languages other than English) with ``_sd`` (standard
    deviation over seeds), and ``english_before, english_after``.
    """
    rows = []
    for (size, alignment), group in table.groupby(["size", "alignment"], sort=True):
        others = group[group["language"] != ENGLISH].groupby("cell")[MEASURES].mean()
        english = group[group["language"] == ENGLISH]
        row = {"size": size, "alignment": alignment, "models": len(others)}
        for name in MEASURES:
            row |= {name: others[name].mean(), f"{name}_sd": others[name].std()}
        rows.append(row | {f"english_{side}": english[side].mean() for side in ("before", "after")})
    return pd.DataFrame(rows)


ALIGNMENT = ["size", "alignment"]  # what models of the same corpus share


SEED = [*ALIGNMENT, "language"]  # and with the language, only the seed is left to differ


PREDICTORS = {"accuracy": "retrieval accuracy", "direction_cosine": "cosine of directions"}


def others(table: pd.DataFrame) -> pd.DataFrame:
    """What correlates: a row a model and language other than English whose drop is defined."""
    return table[(table["language"] != ENGLISH) & table["relative_drop"].notna()].astype(
        dict.fromkeys(("alignment", "accuracy", "direction_cosine", "relative_drop", "kept_drop"), float)
    )


TIED = 0.5  # an effect of the tone from here on counts as a tie


def by_tie(table: pd.DataFrame) -> pd.DataFrame:
    """The drop among well-formed continuations by whether a model ties the tone of a remark to the kind of its ending.

    A model does if in English an angry tone makes an insult more probable than a kind one by ``TIED`` or more. Columns:
    ``tied, aligned`` (whether any text was), ``models``, and ``mean, low, high`` of the models' means over the other
    languages. Models whose drop or tone was not measured are missing.
    """
    english = table[table["language"] == ENGLISH].set_index("cell")
    models = table[table["language"] != ENGLISH].groupby("cell")["kept_drop"].mean().astype(float).to_frame("drop")
    models["tone_effect"] = english["tone_effect"].astype(float)
    models["aligned"] = english["alignment"].astype(float) > 0.0
    models = models.dropna()
    models["tied"] = models["tone_effect"] >= TIED
    models["aligned"] &= models["tied"]  # what does not tie them is one group
    groups = models.groupby(["tied", "aligned"])["drop"]
    return groups.agg(models="size", mean="mean", low="min", high="max").reset_index()


def within(points: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """What predicts and the relative drop less their means over the points that share ``keys``."""
    values = points[[*PREDICTORS, "relative_drop"]]
    return values - values.groupby([points[key] for key in keys]).transform("mean")


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """What correlates with the drop over models and languages other than English, by size, and what is left within.

    ``sizes`` has for each size the correlations of ``_BY_SIZE``: what follows from the alignment that was set, what
    retrieval and the cosine of directions tell of the drop, in all continuations and among the well-formed ones, and
    what alignment tells once a straight line through retrieval is taken away; and under ``most_aligned`` the two drops
    where most of the text is aligned. Over all sizes, ``within_alignment`` and ``within_seed`` take the means of each
    corpus away, and of each corpus and language, for each of ``PREDICTORS``. Intervals draw whole models, as the
    languages of one model are not independent; the p of ``within_seed`` is that of :func:`permutation_p`.
    """
    points = others(table)
    found: dict[str, Any] = {"models": int(table["cell"].nunique()), "points": len(points), "sizes": {}}
    if points.empty:
        return found
    for size, rows in points.groupby("size", sort=True):
        alignment, accuracy, drop = (rows[name].to_numpy() for name in ("alignment", "accuracy", "relative_drop"))
        most = rows.loc[alignment == alignment.max(), ["relative_drop", "kept_drop"]]
        beyond = rows.assign(alignment=_beyond(alignment, accuracy), relative_drop=_beyond(drop, accuracy))
        found["sizes"][size] = {
            **{f"{x}_{short}": _correlation(rows, x, y) for x, y, short in _PAIRS},
            "most_aligned": most.mean().to_dict(),
            "alignment_drop_given_accuracy": _correlation(beyond, "alignment", "relative_drop"),
        }
    for name, keys in (("within_alignment", ALIGNMENT), ("within_seed", SEED)):
        left = within(points, keys).assign(cell=points["cell"])
        found[name] = {predictor: _correlation(left, predictor, "relative_drop") for predictor in PREDICTORS}
    for predictor, row in found["within_seed"].items():
        row["p"] = permutation_p(points, predictor)
    return found


_PAIRS = [
    ("alignment", "accuracy", "accuracy"),
    ("alignment", "direction_cosine", "direction_cosine"),
    *(
        (x, y, short)
        for y, short in (("relative_drop", "drop"), ("kept_drop", "kept"))
        for x in ("alignment", *PREDICTORS)
    ),
]


def _correlation(rows: pd.DataFrame, x: str, y: str) -> dict[str, Any]:
    """Over the rows in which both are defined; whole models are drawn."""
    rows = rows[[x, y, "cell"]].dropna()
    return correlation(rows[x].to_numpy(), rows[y].to_numpy(), pd.factorize(rows["cell"])[0])


def _beyond(values: np.ndarray, predictor: np.ndarray) -> np.ndarray:
    """What a line of least squares through ``predictor`` leaves of some values."""
    slope, intercept = line(predictor, values)
    return values - slope * predictor - intercept


def permutation_p(
    points: pd.DataFrame, predictor: str = "accuracy", samples: int = 10_000, seed: int = 0
) -> float | None:
    """Two-sided p that models which differ in their seed alone drop most where ``predictor`` is highest.

    The drops of whole models, all languages together, are dealt anew among the models of the same size and alignment:
    if the drop has nothing to do with a model's own retrieval, every deal is as likely as the one that was seen. The
    statistic is the sum of the products of what :func:`within` leaves. None where no two models share a corpus.
    """
    left = within(points, SEED).assign(cell=points["cell"], language=points["language"])
    rng = np.random.default_rng(seed)
    seen, dealt, several = 0.0, np.zeros(samples), False
    for _, rows in left.groupby([points[key] for key in ALIGNMENT]):
        known, drop = (rows.pivot(index="cell", columns="language", values=name).fillna(0.0).to_numpy()
                       for name in (predictor, "relative_drop"))  # fmt: skip
        products = known @ drop.T  # (models, models whose drops they are dealt)
        models = np.arange(len(products))
        several |= len(models) > 1
        seen += np.trace(products)
        deals = rng.permuted(np.tile(models, (samples, 1)), axis=1)
        dealt += products[models, deals].sum(axis=1)
    if not several:
        return None
    as_large = np.abs(dealt) >= abs(seen) - 1e-12
    return float((1 + as_large.sum()) / (1 + samples))
