"""The table of the drop that retrieval across languages predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polydetox.core.languages import LANGUAGES
from polydetox.results.tables import NOT_APPLICABLE, NOT_RUN, Cell, Group, PaperTable, number


def prediction_table(found: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]) -> PaperTable:
    """The relative drop of each language as all others predict it, and as it was measured."""
    columns = ["Language", "Retrieval accuracy", "Predicted drop", "Measured drop", "Error"]
    groups = []
    for title, (table, metrics) in found.items():
        predicted = metrics["accuracy"]["predicted"]
        lines: list[list[Cell | str]] = []
        for position, row in enumerate(table.itertuples()):
            guess = None if predicted is None else predicted[position]
            error = None if guess is None else row.relative_drop - guess
            lines.append([LANGUAGES[str(row.language)], number(row.accuracy, 2),
                          number(guess, 2, missing=NOT_APPLICABLE), number(row.relative_drop, 2),
                          number(error, 2, missing=NOT_APPLICABLE)])  # fmt: skip
        if predicted is not None:
            for said, key in (("error of the line", "error"), ("error of the mean of the others", "mean_error")):
                lines.append([f"root mean squared {said}", *[Cell("")] * 3, number(metrics["accuracy"][key], 3)])
        groups.append(Group(title if len(found) > 1 else None, lines or [["", *[Cell(NOT_RUN)] * 4]]))
    return PaperTable(columns, groups or [Group(None, [["this run", *[Cell(NOT_RUN)] * 4]])])
