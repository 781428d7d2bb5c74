"""The tables of how retrieval across languages goes with the drop of toxicity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polydetox.core.languages import LANGUAGES
from polydetox.results.published import PAPER, paper_table
from polydetox.results.tables import NOT_APPLICABLE, NOT_RUN, Cell, Group, PaperTable, fixed, number


def correlation_table(metrics: Mapping[str, Mapping[str, Any]]) -> PaperTable:
    """Pearson's r of each comparison, from accuracy and from the aligned cosine; below, the paper's."""
    columns = ["Against the relative drop of EMT", "Languages", "Pearson's r", "p", "without one language"]
    groups = []
    for title, row in metrics.items():
        lines: list[list[Cell | str]] = []
        for key, said in (("accuracy", "retrieval accuracy"), ("aligned_cosine", "mean cosine of aligned pairs")):
            found = row[key]
            if found["r"] is None:
                lines.append([said, number(found["points"], 0), *[Cell(NOT_APPLICABLE)] * 3])
                continue
            span = f"{fixed(found['least_without_one'], 2)} to {fixed(found['most_without_one'], 2)}"
            lines.append([said, number(found["points"], 0), number(found["r"], 2, found["low"], found["high"]),
                          number(found["p"], 3), Cell(span)])  # fmt: skip
        groups.append(Group(title, lines))
    if not metrics:
        groups.append(Group(None, [["this run", *[Cell(NOT_RUN)] * 4]]))
    paper: list[list[Cell | str]] = [
        [f"{row.model} ({row.figure})", Cell(NOT_APPLICABLE), Cell(fixed(row.pearson_r, 2)), Cell(f"< {row.p_below:g}"),
         Cell(NOT_APPLICABLE)]
        for row in paper_table("retrieval_correlation").itertuples()
    ]  # fmt: skip
    groups.append(Group(PAPER, paper))
    return PaperTable(columns, groups)


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
