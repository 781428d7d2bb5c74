"""The tables of the chapter *Why it transfers*; models and comparisons stand under their titles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polydetox.results.published import PAPER, paper_table
from polydetox.results.tables import NOT_APPLICABLE, NOT_RUN, Cell, Group, PaperTable, number

GROUPS = {"sources": "actual sources", "random": "random neurons of the same layers",
          "matched": "neurons of the same layers and activation"}  # fmt: skip


def of_paper(label: str, width: int, quantities: Mapping[int, tuple[str, int]]) -> list[Cell | str]:
    """A row of figures that the text of the paper's section 4 gives for mGPT: by column, their name and decimals."""
    table = paper_table("mechanism_mgpt").set_index("quantity")["value"]
    found = {column: number(float(table[name]), digits) for column, (name, digits) in quantities.items()}
    return [label, *(found.get(column, Cell(NOT_APPLICABLE)) for column in range(1, width))]


def probe_table(qualities: Mapping[str, pd.DataFrame]) -> PaperTable:
    """Each model's probe, and the logistic regression beside it, on held-out English texts; below, the paper's."""
    columns = ["Classifier", "Test texts", "toxic", "Validation accuracy", "ROC-AUC", "Average precision"]
    groups = [] if qualities else [Group(None, [["probe", *[Cell(NOT_RUN)] * 5]])]
    for title, quality in qualities.items():
        lines: list[list[Cell | str]] = []
        for name, rows in quality.groupby("classifier", sort=False):
            parts = rows.set_index("texts_of")
            test = parts.loc["test"]
            lines.append([
                str(name), number(test["texts"], 0), number(test["toxic_fraction"], 2),
                number(parts.loc["validation", "accuracy"], 3),
                number(test["roc_auc"], 3, test["roc_auc_low"], test["roc_auc_high"], missing=NOT_APPLICABLE),
                number(test["average_precision"], 3, missing=NOT_APPLICABLE),
            ])  # fmt: skip
        groups.append(Group(title, lines))
    paper = of_paper("probe", len(columns), {3: ("probe_validation_accuracy", 3), 4: ("probe_test_roc_auc", 3)})
    return PaperTable(columns, [*groups, Group(f"{PAPER}: mGPT, Jigsaw", [paper])])


def sources_table(metrics: Mapping[str, Mapping[str, Any]]) -> PaperTable:
    """How many neurons of each model are potential and actual sources."""
    columns = {"Neurons": ("neurons", 0), "Potential": ("potential", 0), "Actual": ("actual", 0),
               "Lowest cosine": ("lowest_cosine", 3), "Highest cosine": ("highest_cosine", 3),
               "Several scripts": ("several_scripts", 0)}  # fmt: skip
    lines: list[list[Cell | str]] = [
        [title, *(number(row[name], digits) for name, digits in columns.values())] for title, row in metrics.items()
    ]
    lines = lines or [["this run", *[Cell(NOT_RUN)] * 6]]
    paper = of_paper(f"{PAPER}: mGPT", 7, {2: ("potential_sources", 0), 3: ("actual_sources", 0)})
    return PaperTable(["Model", *columns], [Group(None, [*lines, paper])])
