"""Before and after under every available scorer, and where they disagree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from polydetox.core.artifacts import read_parquet
from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import Results
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, number

# EMT and ToxProb as each scorer has them, and on the scale of the first one.
TITLES = {"emt": "EMT", "toxprob": "ToxProb", "emt_linked": "EMT, linked", "toxprob_matched": "ToxProb, matched"}
DROPS = [f"{side}{end}" for side in ("before", "after", "drop") for end in ("", "_low", "_high")]


def agreement_folders(results: Results) -> dict[str, Path]:
    """The folder of each model's finished agreement stage, by the model's folder name."""
    return {run.model: run.folder for run in results.stages if run.stage == "agreement" and run.done}


def read_all(folders: dict[str, Path], name: str, columns: list[str]) -> pd.DataFrame:
    """A table of every model's agreement stage, with the column ``model``."""
    files = {model: folder / f"{name}.parquet" for model, folder in folders.items()}
    tables = [read_parquet(file, columns).assign(model=model) for model, file in files.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["model", *columns])


def means_table(results: Results, means: pd.DataFrame, metrics: tuple[str, str]) -> PaperTable:
    """Means over languages of two metrics before and after under each scorer."""
    spans = [("", 2), *((TITLES[metric], 3) for metric in metrics)]
    groups = []
    for comparison in results.comparisons:
        mine = means[means["comparison"] == comparison.name]
        both = all(results.evaluated(comparison, results.profile.languages).values())
        lines: list[list[Cell | str]] = []
        for scorer, rows in mine.groupby("scorer", sort=False):
            rows, cells = rows.set_index("metric"), []
            for metric in metrics:
                before, after, drop, low, high = rows.loc[metric, ["before", "after", "drop", "drop_low", "drop_high"]]
                sides = ((before,), (after,), (drop, 2, low, high))
                cells += [number(value, 2, *rest[1:], missing=NOT_MEASURED if both else NOT_RUN)
                          for value, *rest in sides]  # fmt: skip
            lines.append([str(scorer), Cell(str(int(rows["languages"].max()))), *cells])
        groups.append(Group(comparison.title, lines or [["", Cell(""), *[Cell(NOT_RUN)] * 6]]))
    return PaperTable(["Scorer", "Languages", *["before", "after", "drop"] * len(metrics)], groups, spans)


def agreement_by_language_table(
    results: Results, agreed: pd.DataFrame, scales: pd.DataFrame, drops: pd.DataFrame
) -> PaperTable:
    """Of each language how the first scorer and each other one agree, and the drop of ToxProb under both.

    Rank correlation and area under the curve are of the base model's continuations, ``drops`` of ToxProb, matched.
    """
    columns = ["Language", "Spearman", "AUC", "threshold", "first", "other", "direction"]
    spans = [("", 1), ("Agreement before tuning", 2), ("Matched", 1), ("Drop of ToxProb, matched", 3)]
    agreed = agreed[(agreed["variant"] == "base") & (agreed["scored_by_both"] > 0)]
    agreed = agreed.set_index(["model", "first", "second", "language"])
    matched = scales.set_index(["model", "scorer", "language"])["matched"]
    groups = []
    for comparison in results.comparisons:
        rows = drops[drops["comparison"] == comparison.name]
        seen = rows.set_index(["scorer", "language"])
        first, *others = dict.fromkeys(rows["scorer"]) or [""]
        for other in others:
            lines: list[list[Cell | str]] = []
            for language, title in {each: LANGUAGES[each] for each in results.profile.languages}.items():
                key = (comparison.model, first, other, language)
                if key not in agreed.index:
                    lines.append([title, *[Cell(NOT_APPLICABLE)] * 6])
                    continue
                sides = [seen.loc[(name, language)] for name in (first, other)]
                lines.append([
                    title,
                    *(_bounded(agreed.loc[key], name) for name in ("spearman", "auc_of_second")),
                    number(matched[comparison.model, other, language], 2, missing=NOT_APPLICABLE),
                    *(_bounded(side, "drop") for side in sides),
                    direction(*sides),
                ])  # fmt: skip
            groups.append(Group(f"{comparison.title}: {first} and {other}", lines))
    empty: list[list[Cell | str]] = [["", *[number(None, 2)] * (len(columns) - 1)]]
    return PaperTable(columns, groups or [Group(None, empty)], spans)


def _bounded(row: pd.Series, name: str) -> Cell:
    """A value with its interval; a dash where it is not defined, as where a scorer says one thing of every text."""
    return number(row[name], 2, row[f"{name}_low"], row[f"{name}_high"], missing=NOT_APPLICABLE)


def direction(first: pd.Series, other: pd.Series) -> str:
    """Whether two scorers see the same change: ``same``, ``opposite``, or ``opposite, clearly`` where neither interval
    of the drop has zero in it; a dash where one of them sees none at all or was not run."""
    signs = np.sign([first["drop"], other["drop"]])
    if np.isnan(signs).any() or 0.0 in signs:
        return NOT_APPLICABLE
    if signs[0] == signs[1]:
        return "same"
    clear = all(row["drop_low"] > 0 or row["drop_high"] < 0 for row in (first, other))
    return "opposite, clearly" if clear else "opposite"


def levels_table(levels: pd.DataFrame) -> PaperTable:
    """EMT and ToxProb of each variant under each scorer, as they are and on the first one's scale, by language."""
    groups = []
    for (scorer, variant), rows in levels.groupby(["scorer", "variant"], sort=False):
        wide = rows.rename(columns={"low": "value_low", "high": "value_high"}).set_index(["language", "metric"])
        lines: list[list[Cell | str]] = [
            [LANGUAGES[language], *(_bounded(wide.loc[(language, metric)], "value") for metric in TITLES)]
            for language in dict.fromkeys(rows["language"])
        ]
        groups.append(Group(f"{scorer}, {'base model' if variant == 'base' else variant}", lines))
    return PaperTable(["Language", *TITLES.values()], groups)
