"""The tables of toxicity, fluency and language before and after tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import METRICS, Results
from polydetox.results.published import PAPER, paper_model, paper_models
from polydetox.results.stages import Comparison
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, fixed, number

MAIN_METRICS = ["emt", "toxprob", "avgtox", "perplexity", "token_distinct_2", "language_rate"]
FLUENCY_METRICS = ["perplexity", *(f"token_distinct_{order}" for order in (1, 2, 3)), "distinct_2", "language_rate"]
TOXICITY = ["emt", "toxprob"]
SIDES = ("before", "after", "drop")


def main_table(results: Results, metrics: list[str] = MAIN_METRICS) -> PaperTable:
    """Means over languages before and after, with intervals; below them the paper's models, before and after."""
    means = results.means[results.means["scope"] == "all"]
    groups = []
    for comparison in results.comparisons:
        rows = means[means["comparison"] == comparison.name].set_index("metric")
        covered, asked = int(rows.loc[metrics, "languages"].max()), len(results.profile.languages)
        part = f"{covered} languages" if covered == asked else f"{covered} of {asked} languages"
        groups.append(Group(f"This run: {comparison.title}, mean over {part}", [
            [side, *(side_cell(rows.loc[key], side, METRICS[key].digits, covered) for key in metrics)] for side in SIDES
        ]))  # fmt: skip
    of_run = [paper_model(comparison.reference) for comparison in results.comparisons]
    models = sorted(paper_models(), key=lambda model: model not in of_run)  # those of this run first
    groups.append(Group(f"{PAPER}, Table 2: before → after", [_paper_line(model, metrics) for model in models]))
    return PaperTable(["", *(METRICS[metric].title for metric in metrics)], groups)


def _paper_line(model: dict[str, Any], metrics: list[str]) -> list[Cell | str]:
    cells = []
    for metric in metrics:
        digits = METRICS[metric].digits
        sides = [fixed(model[side][metric], digits) for side in ("before", "after") if metric in model[side]]
        cells.append(Cell(" → ".join(sides) or NOT_APPLICABLE))
    return [model["title"], *cells]


def side_cell(row: pd.Series, side: str, digits: int, covered: int = 0, *, bounded: bool = True) -> Cell:
    """Before, after or the drop, with its interval, and of how many languages if fewer than ``covered``; else why."""
    ran = all(row[f"{name}_run"] for name in (("before", "after") if side == "drop" else (side,)))
    interval = (row[f"{side}_low"], row[f"{side}_high"]) if bounded else ()
    cell = number(row[side], digits, *interval, missing=NOT_MEASURED if ran else NOT_RUN)
    if not (covered and row["languages"] < covered and pd.notna(row[side])):
        return cell
    of = f"{row['languages']} {'language' if row['languages'] == 1 else 'languages'}"
    return Cell(cell.text, f"{cell.detail}, {of}".lstrip(", "))


def transfer_table(results: Results) -> PaperTable:
    """English, the language of the pairs, beside the mean of all other languages."""
    scopes = {"english": "English", "others": "other languages"}
    rows = results.means.set_index(["comparison", "scope", "metric"])
    return _table(results, "", scopes, *_metrics_of(rows, TOXICITY, SIDES))


def language_table(results: Results, metrics: Sequence[str] = TOXICITY, sides: Sequence[str] = SIDES) -> PaperTable:
    """Some metrics before and after, and their drop, in every language."""
    rows = results.by_language.set_index(["comparison", "language", "metric"])
    return languages_table(results, *_metrics_of(rows, metrics, sides))


def languages_table(
    results: Results, cells: Callable[[Comparison, str], Sequence[Cell | str]], spans: Mapping[str, Sequence[str]]
) -> PaperTable:
    """A group a comparison, in it a line a language; ``cells`` are what follows its name, ``spans`` their columns."""
    languages = {language: LANGUAGES[language] for language in results.profile.languages}
    return _table(results, "Language", languages, cells, spans)


def bounded(row: pd.Series, name: str) -> Cell:
    """A value with its interval; a dash where it is not defined, as where a scorer says one thing of every text."""
    return number(row[name], 2, row[f"{name}_low"], row[f"{name}_high"], missing=NOT_APPLICABLE)


def toxic_prompts(rows: pd.DataFrame) -> tuple[int, int, int]:
    """Over the languages of some rows of ToxProb: prompts with a toxic continuation before and after, all prompts."""
    before, after = (round((rows[side] * rows["prompts"]).sum()) for side in ("before", "after"))
    return before, after, int(rows["prompts"].sum())


def _metrics_of(
    rows: pd.DataFrame, metrics: Sequence[str], sides: Sequence[str]
) -> tuple[Callable[[Comparison, str], list[Cell]], dict[str, Sequence[str]]]:
    """The sides of each metric, the drop with its interval, and their columns."""

    def cells(comparison: Comparison, line: str) -> list[Cell]:
        return [side_cell(rows.loc[(comparison.name, line, metric)], side, METRICS[metric].digits,
                          bounded=side == "drop") for metric in metrics for side in sides]  # fmt: skip

    return cells, {METRICS[metric].title: sides for metric in metrics}


def _table(
    results: Results, first: str, lines: dict[str, str], cells: Callable[[Comparison, str], Sequence[Cell | str]],
    spans: Mapping[str, Sequence[str]],
) -> PaperTable:  # fmt: skip
    """A group a comparison, in it a line a key of ``lines``; ``spans`` are the columns under each heading."""
    groups = [
        Group(comparison.title if len(results.comparisons) > 1 else None,
              [[title, *cells(comparison, key)] for key, title in lines.items()])
        for comparison in results.comparisons
    ]  # fmt: skip
    columns = [first, *(column for columns in spans.values() for column in columns)]
    return PaperTable(columns, groups, [("", 1), *((title, len(columns)) for title, columns in spans.items())])
