"""Paper A's capability table: multiple-choice accuracy in each language, before and after the tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polydetox.benchmarks.harness import accuracies
from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import Results
from polydetox.results.published import PAPER, paper_table
from polydetox.results.tables import NOT_RUN, Cell, Group, PaperTable, number

# Languages of the paper's table that toxicity is not measured in, and the mean over them.
_NAMES = LANGUAGES | {"vi": "Vietnamese", "mean": "Mean over languages"}
SUITE_TITLES = {
    "arc": "ARC", "hellaswag": "HellaSwag", "mmlu": "MMLU", "everyday": "Everyday questions",
    "commonsense": "Commonsense", "knowledge": "School knowledge",
}  # fmt: skip
SIDES = ("before", "after", "change")


def language_name(language: str) -> str:
    """A language as the report prints it; its code where it has no name here."""
    return _NAMES.get(language, language)


def suite_title(suite: str) -> str:
    """A suite as the report prints it."""
    return SUITE_TITLES.get(suite, suite)


def percent(row: Mapping[str, Any] | None) -> Cell:
    """An accuracy in percent with its interval; ``not run`` where there is none."""
    if row is None:
        return Cell(NOT_RUN)
    return number(100 * row["value"], 1, 100 * row["low"], 100 * row["high"])


def language_table(items: pd.DataFrame, **options: Any) -> PaperTable:
    """The accuracy of each suite in each language, of one model."""
    suites = list(dict.fromkeys(items["suite"]))
    lines: list[list[Cell | str]] = []
    for language, mine in items.groupby("language", sort=False):
        measured = accuracies(mine, **options)
        cells = (percent(measured.get(suite)) for suite in suites)
        lines.append([language_name(str(language)), number(len(mine), 0), *cells])
    return PaperTable(["Language", "Questions", *map(suite_title, suites)], [Group(None, lines)])


def capability_table(changes: pd.DataFrame, results: Results) -> PaperTable:
    """Before, after and change of each suite, a group a model and suite; below, the paper's BLOOM 7.1B.

    ``changes`` has in percent ``comparison, suite, language, questions`` and each of ``SIDES`` with its interval.
    """
    groups = []
    for comparison in results.comparisons:
        mine = changes[changes["comparison"] == comparison.name]
        if mine.empty:
            groups.append(Group(f"This run: {comparison.title}", [["all suites", *[Cell(NOT_RUN)] * 4]]))
        for suite, rows in mine.groupby("suite", sort=False):
            groups.append(Group(f"This run: {comparison.title}, {suite_title(str(suite))}", [
                [language_name(row["language"]), number(row["questions"], 0),
                 *(number(row[side], 1, row[f"{side}_low"], row[f"{side}_high"]) for side in SIDES)]
                for row in rows.to_dict("records")
            ]))  # fmt: skip
    paper = paper_table("table3_multilingual_capability").assign(change=lambda table: table["after"] - table["before"])
    for (model, task), rows in paper.groupby(["model", "task"], sort=False):
        groups.append(Group(f"{PAPER}, Table 3: {model}, {suite_title(str(task))}", [
            [language_name(row["language"]), Cell(""), *(number(row[side], 1) for side in SIDES)]
            for row in rows.to_dict("records")
        ]))  # fmt: skip
    return PaperTable(["", "Questions", *SIDES], groups)
