"""Cells with an interval, and the table of win rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, number


def interval(row: Mapping[str, Any] | None, digits: int, scale: float = 1.0) -> Cell:
    """``value``, ``low`` and ``high`` times ``scale``."""
    if row is None:
        return Cell(NOT_RUN)
    if row["value"] is None:
        return Cell(NOT_MEASURED)
    value, low, high = (scale * row[name] for name in ("value", "low", "high"))
    return number(value, digits, low, high, missing=NOT_MEASURED)


def percent(row: Mapping[str, Any] | None) -> Cell:
    """The same of a fraction, in percent."""
    return interval(row, 1, 100.0)


def win_table(rates: Mapping[str, Sequence[Mapping[str, Any]]], titles: Mapping[str, str]) -> PaperTable:
    """The win rate (%) of the algorithm of a row against that of a column, in a group for each key of ``rates``."""
    groups = []
    for heading, rows in rates.items():
        found = {(row["algorithm"], row["opponent"]): percent(row) for row in rows}
        groups.append(Group(heading, [
            [title, *(found.get((name, opponent), Cell(NOT_APPLICABLE if name == opponent else NOT_RUN))
                      for opponent in titles)]
            for name, title in titles.items()
        ]))  # fmt: skip
    return PaperTable(["", *titles.values()], groups)
