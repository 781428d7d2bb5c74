"""Multiple-choice accuracy as the report prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polydetox.benchmarks.harness import accuracies, chance
from polydetox.core.languages import LANGUAGES
from polydetox.results.tables import NOT_RUN, Cell, Group, PaperTable, fixed, number

# Languages of the paper's table that toxicity is not measured in, and the mean over them.
_NAMES = LANGUAGES | {"vi": "Vietnamese", "mean": "Mean over languages"}
SUITE_TITLES = {
    "arc": "ARC", "hellaswag": "HellaSwag", "mmlu": "MMLU", "everyday": "Everyday questions",
    "commonsense": "Commonsense", "knowledge": "School knowledge", "bias": "Stereotypes", "crows-pairs": "CrowS-Pairs",
    "refusal": "Harmless questions", "global-mmlu": "Global-MMLU Lite",
}  # fmt: skip


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
    by_chance = (fixed(100 * chance(items[items["suite"] == suite]), 0) for suite in suites)
    titles = [f"{suite_title(suite)} (chance {each}%)" for suite, each in zip(suites, by_chance, strict=True)]
    return PaperTable(["Language", "Questions", *titles], [Group(None, lines)])
