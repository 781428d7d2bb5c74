"""The tables of the packages that were compared as scorers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from polydetox.core.languages import LANGUAGES
from polydetox.results.tables import NOT_APPLICABLE, Cell, Group, PaperTable, number


def candidates_table(recorded: dict[str, Any]) -> PaperTable:
    """Mean AUC of each packaged scorer over its languages, by task, with its licence; below it each language.

    ``recorded`` is what ``scoring/data/candidates.json`` holds.
    """
    auc = pd.DataFrame(recorded["auc"])
    tasks, names = list(dict.fromkeys(auc["task"])), list(recorded["packages"])
    lines: list[list[Cell | str]] = []
    for name in names:
        mine, package = auc[auc["scorer"] == name], recorded["packages"][name]
        cells = [number(mine.loc[mine["task"] == task, "auc"].mean(), 2, missing=NOT_APPLICABLE) for task in tasks]
        covered = Cell(str(mine["language"].nunique()))
        lines.append([name, f"{package['kind']} ({package['licence']})", covered, *cells])
    return PaperTable(
        ["Scorer", "What", "Languages", *tasks], [Group(None, lines)], [("", 3), ("Mean AUC", len(tasks))]
    )


def candidates_by_language_table(recorded: dict[str, Any]) -> PaperTable:
    """AUC of each packaged scorer in each language, on the human labels of prompts and on the completions."""
    auc, names = pd.DataFrame(recorded["auc"]), list(recorded["packages"])
    groups = []
    for task in dict.fromkeys(auc["task"]):
        wide = auc[auc["task"] == task].pivot(index="language", columns="scorer", values="auc").reindex(columns=names)
        lines: list[list[Cell | str]] = [
            [LANGUAGES[language], *(number(wide.loc[language, name], 2, missing=NOT_APPLICABLE) for name in names)]
            for language in LANGUAGES if language in wide.index
        ]  # fmt: skip
        groups.append(Group(task, lines))
    return PaperTable(["Language", *names], groups)
