"""Paper A's capability table: multiple-choice accuracy in each language, before and after the tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.benchmarks.harness import ITEM_COLUMNS, accuracies, accuracy_change
from polydetox.core.artifacts import read_parquet
from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import Results
from polydetox.results.published import paper_table
from polydetox.results.tables import NOT_RUN, Cell, Group, PaperTable, number

PAPER = "Li, Yong and Bach (2024)"

# Languages of the paper's table that toxicity is not measured in.
_NAMES = LANGUAGES | {"vi": "Vietnamese"}
SUITE_TITLES = {
    "arc": "ARC", "hellaswag": "HellaSwag", "mmlu": "MMLU", "everyday": "Everyday questions",
    "commonsense": "Commonsense", "knowledge": "School knowledge",
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
    for language in dict.fromkeys(items["language"]):
        mine = items[items["language"] == language]
        measured = accuracies(mine, **options)
        lines.append([language_name(str(language)), number(len(mine), 0),
                      *(percent(measured.get(suite)) for suite in suites)])  # fmt: skip
    return PaperTable(["Language", "Questions", *map(suite_title, suites)], [Group(None, lines)])


# --- before and after -------------------------------------------------------------------------------------------


def files(results: Results) -> list[Path]:
    """The answers of every finished run, which the summary notebook records as its inputs."""
    return [run.folder / "items.parquet" for run in results.stages if run.stage == "capability" and run.done]


def changes(results: Results) -> pd.DataFrame:
    """Accuracy before and after by comparison, language and suite, and after minus before on the same questions.

    Columns: ``comparison, title, language, suite, questions, before, before_low, ..., after, ..., change, ...``; the
    language ``mean`` stands for the mean over a suite's tasks. What was not run is NaN.
    """
    rows = []
    options: dict[str, Any] = {"samples": results.samples, "confidence": results.confidence, "seed": results.seed}
    for comparison in results.comparisons:
        sides = [
            read_parquet(folder / "items.parquet", ITEM_COLUMNS) if folder else None
            for variant in ("base", comparison.variant)
            for folder in [results.folder("capability", model=comparison.model, variant=variant)]
        ]
        known = next((side for side in sides if side is not None), None)
        if known is None:
            continue
        for suite in dict.fromkeys(known["suite"]):
            languages = list(dict.fromkeys(known.loc[known["suite"] == suite, "language"]))
            for language in [*languages, "mean"] if len(languages) > 1 else languages:
                before, after = (_part(side, suite, language) for side in sides)
                found: dict[str, Any] = {"comparison": comparison.name, "title": comparison.title,
                                         "language": language, "suite": suite,
                                         "questions": len(_part(known, suite, language))}  # fmt: skip
                for name, part in (("before", before), ("after", after)):
                    measured = accuracies(part, **options)[suite] if part is not None else {}
                    found |= _bounded(name, measured)
                both = before is not None and after is not None
                found |= _bounded("change", accuracy_change(before, after, suite, **options) if both else {})
                rows.append(found)
    columns = [
        "comparison",
        "title",
        "language",
        "suite",
        "questions",
        *(f"{side}{end}" for side in ("before", "after", "change") for end in ("", "_low", "_high")),
    ]
    return pd.DataFrame(rows, columns=columns)


def _part(items: pd.DataFrame | None, suite: str, language: str) -> Any:
    if items is None:
        return None
    mine = items[items["suite"] == suite]
    return mine if language == "mean" else mine[mine["language"] == language]


def _bounded(name: str, measured: dict[str, float]) -> dict[str, float]:
    """In percent."""
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {f"{name}{end}": 100 * measured.get(key, float("nan")) for end, key in ends.items()}


def capability_table(table: pd.DataFrame, results: Results) -> PaperTable:
    """Before, after and change of each suite, a group a model and suite; below, the paper's BLOOM 7.1B."""
    columns = ["", "Questions", "before", "after", "change"]
    groups = []
    for comparison in results.comparisons:
        mine = table[table["comparison"] == comparison.name]
        if mine.empty:
            groups.append(Group(f"This run: {comparison.title}", [["all suites", *[Cell(NOT_RUN)] * 4]]))
        for suite, rows in mine.groupby("suite", sort=False):
            lines: list[list[Cell | str]] = [
                ["Mean over languages" if row["language"] == "mean" else language_name(row["language"]),
                 number(row["questions"], 0),
                 *(number(row[side], 1, row[f"{side}_low"], row[f"{side}_high"])
                   for side in ("before", "after", "change"))]
                for row in rows.to_dict("records")
            ]  # fmt: skip
            groups.append(Group(f"This run: {comparison.title}, {suite_title(str(suite))}", lines))
    paper = paper_table("table3_multilingual_capability")
    for (model, task), rows in paper.groupby(["model", "task"], sort=False):
        lines = [
            [language_name(row.language), Cell(""), number(row.before, 1), number(row.after, 1),
             number(row.after - row.before, 1)]
            for row in rows.itertuples()
        ]  # fmt: skip
        groups.append(Group(f"{PAPER}, Table 3: {model}, {suite_title(str(task))}", lines))
    return PaperTable(columns, groups)
