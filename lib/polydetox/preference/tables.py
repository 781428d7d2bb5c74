"""The tables of ablations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polydetox.preference.ablations import MEAN
from polydetox.results.collect import METRICS
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, number

Lines = list[list[Cell | str]]


SHOWN = ["emt", "toxprob", "perplexity", "distinct_2", "language_rate"]


def ablation_table(
    table: pd.DataFrame, *, differences: bool = False, below: Mapping[str, pd.Series] | None = None
) -> PaperTable:
    """Each configuration of each family after the tuning, beside the base model.

    ``differences`` adds those from the reference; ``below`` further lines by heading: values by family and metric.
    """
    groups = []
    for family, rows in _means(table).groupby("family", sort=False):
        first, by_label = rows.iloc[0], rows.set_index(["label", "metric"])
        labels = list(rows["label"].unique())
        base = next((label for label in labels if pd.notna(by_label.loc[(label, "emt"), "before"])), labels[0])
        ran = [label for label in labels if by_label.loc[(label, "emt"), "languages"]]
        lines: Lines = [["base model", *_cells(by_label.loc[base], "before")]]
        lines += [[label, *_cells(by_label.loc[label], "after")] for label in labels]
        for heading, values in (below or {}).items():
            figures = (
                number(values.get((family, metric), float("nan")), METRICS[metric].digits + 1) for metric in SHOWN
            )
            lines.append([heading, *figures])
        if differences:
            lines += [[f"{label} less {first['reference']}", *_cells(by_label.loc[label], "difference",
                                                                      both={label, first["reference"]} <= set(ran))]
                      for label in labels if label != first["reference"]]  # fmt: skip
        prompts, continuations = rows[["prompts", "continuations"]].max()
        ground = (f": mean over {rows['languages'].max()} languages, {prompts} prompts each, {continuations} "
                  "continuations a prompt") if prompts else ""  # fmt: skip
        groups.append(Group(f"{family}{ground}", lines))
    return _table(["", *(METRICS[metric].title for metric in SHOWN)], groups)


def sets_table(table: pd.DataFrame) -> PaperTable:
    """Each configuration before and after, in the languages that its family shares: EMT and ToxProb."""
    sides, metrics = ["before", "after", "drop"], ["emt", "toxprob"]
    groups = []
    for family, rows in _means(table).groupby("family", sort=False):
        lines: Lines = []
        for label, mine in rows.groupby("label", sort=False):
            by_metric, prompts = mine.set_index("metric"), mine["prompts"].max()
            cells = [cell for metric in metrics for side in sides for cell in _cells(by_metric, side, [metric])]
            lines.append([str(label), Cell(str(prompts) if prompts else NOT_APPLICABLE), *cells])
        languages = rows["languages"].max()
        groups.append(Group(f"{family}, mean over {languages} languages" if languages else family, lines))
    spans = [("", 2), *((METRICS[metric].title, len(sides)) for metric in metrics)]
    return _table(["", "Prompts", *sides * len(metrics)], groups, spans)


def _means(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["language"] == MEAN]


def _cells(row: pd.DataFrame, side: str, metrics: list[str] = SHOWN, *, both: bool = True) -> list[Cell]:
    """One side of some metrics with its interval; ``row`` has a line a metric."""
    ran = both and bool(row["languages"].max())
    return [number(row.loc[metric, side], METRICS[metric].digits, row.loc[metric, f"{side}_low"],
                   row.loc[metric, f"{side}_high"], missing=NOT_MEASURED if ran else NOT_RUN)
            for metric in metrics]  # fmt: skip


def _table(columns: list[str], groups: list[Group], spans: Any = ()) -> PaperTable:
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * (len(columns) - 1)]])], spans)
