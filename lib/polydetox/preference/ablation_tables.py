"""The tables of the chapter *Ablations*."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from polydetox.preference import ablations
from polydetox.preference.ablations import (
    BASE,
    MEAN,
    QUANTILES,
    SHOWN,
    TAIL,
    Family,
    means,
    perplexity_figures,
    set_title,
)
from polydetox.results.collect import METRICS, Results
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, number


def family_table(found: list[tuple[Family, pd.DataFrame]]) -> PaperTable:
    """Each member of each family after the tuning, beside the untuned model; below, what a family's kind asks for."""
    columns = ["", *(METRICS[metric].title for metric in SHOWN)]
    groups = [Group(_ground(family, table), _family_lines(family, table)) for family, table in found]
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * len(SHOWN)]])])


def _ground(family: Family, table: pd.DataFrame) -> str:
    row = table[table["language"] == MEAN].iloc[0]
    if row["prompts"] == 0:
        return family.title
    return (
        f"{family.title}: mean over {row['languages']} languages, {row['prompts']} prompts each, "
        f"{row['continuations']} continuations a prompt"
    )


def _family_lines(family: Family, table: pd.DataFrame) -> list[list[Cell | str]]:
    by_metric = {metric: means(table, metric).set_index("variant") for metric in SHOWN}
    measured = next((member for member in family.members
                 if pd.notna(by_metric["emt"].loc[member.variant, "before"])), family.members[0])  # fmt: skip
    run = set(table.loc[table["language"] != MEAN, "variant"])  # where there was something to measure or not
    lines: list[list[Cell | str]] = [
        [BASE, *(_side(by_metric[m].loc[measured.variant], "before", m, bool(run)) for m in SHOWN)]
    ]
    for member in family.members:
        cells = [_side(by_metric[m].loc[member.variant], "after", m, member.variant in run) for m in SHOWN]
        lines.append([member.label, *cells])
    if family.kind == "seed":
        lines.append(["deviation of the drop", *(_spread(table, m, "deviation") for m in SHOWN)])
        lines.append(["half its interval", *(_spread(table, m, "half_width") for m in SHOWN)])
    if family.kind in ("method", "pairs"):
        reference = family.label(family.reference)
        for member in family.members:
            if member.variant != family.reference:
                both = {member.variant, family.reference} <= run
                cells = [_side(by_metric[m].loc[member.variant], "difference", m, both) for m in SHOWN]
                lines.append([f"{member.label} less {reference}", *cells])
    return lines


def _side(row: pd.Series, side: str, metric: str, was_run: bool) -> Cell:
    return number(row[side], METRICS[metric].digits, row[f"{side}_low"], row[f"{side}_high"],
                  missing=NOT_MEASURED if was_run else NOT_RUN)  # fmt: skip


def _spread(table: pd.DataFrame, metric: str, name: str) -> Cell:
    return number(ablations.seed_spread(table, metric)[name], METRICS[metric].digits + 1)


def sets_table(results: Results, table: pd.DataFrame) -> PaperTable:
    """Each comparison on each set of prompts, in the languages that the sets share."""
    metrics = ["emt", "toxprob"]
    columns = ["", "Prompts", *["before", "after", "drop"] * len(metrics)]
    spans = [("", 2), *((METRICS[metric].title, 3) for metric in metrics)]
    means_ = table[table["language"] == MEAN]
    groups = []
    for (title, _), rows in means_.groupby(["comparison", "beside"], sort=False):
        lines: list[list[Cell | str]] = []
        for name, mine in rows.groupby("set", sort=False):
            by_metric = mine.set_index("metric")
            cells: list[Cell] = []
            for metric in metrics:
                row, digits, was_run = by_metric.loc[metric], METRICS[metric].digits, bool(rows["languages"].max())
                cells += [number(row[side], digits, missing=NOT_MEASURED if was_run else NOT_RUN)
                          for side in ("before", "after")]  # fmt: skip
                cells.append(_side(row, "drop", metric, was_run))
            asked = int(by_metric.loc["emt", "prompts"])
            lines.append([set_title(results, str(name)), Cell(str(asked) if asked else NOT_APPLICABLE), *cells])
        languages = int(rows["languages"].max())
        where = f", mean over {languages} languages" if languages else ""
        groups.append(Group(f"{title}{where}", lines))
    missing: list[list[Cell | str]] = [["", *[Cell(NOT_RUN)] * (len(columns) - 1)]]
    return PaperTable(columns, groups or [Group(None, missing)], spans)


def perplexity_table(found: Mapping[str, Mapping[str, np.ndarray]]) -> PaperTable:
    """Quantiles of the perplexity before and after, and the share of its tail."""
    columns = ["", "Continuations", *(f"{share:.0%}" for share in QUANTILES), f"above {TAIL:g}"]
    groups = []
    for title, sides in found.items():
        lines: list[list[Cell | str]] = []
        for side, values in sides.items():
            row = perplexity_figures(values)
            quantiles = [number(row[f"q{round(100 * share):02d}"], 1) for share in QUANTILES]
            lines.append([side, number(row["continuations"], 0), *quantiles, Cell(f"{row['above']:.1%}")])
        groups.append(Group(title, lines))
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * (len(columns) - 1)]])])
