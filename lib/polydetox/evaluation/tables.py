"""The tables of toxicity, fluency and language before and after tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import ENGLISH, METRICS, Results
from polydetox.results.published import PAPER, paper_model, paper_models
from polydetox.results.stages import Comparison
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, fixed, number

if TYPE_CHECKING:
    pass

MAIN_METRICS = ["emt", "toxprob", "avgtox", "perplexity", "token_distinct_2", "language_share"]


FLUENCY_METRICS = [
    "perplexity",
    "token_distinct_1",
    "token_distinct_2",
    "token_distinct_3",
    "distinct_2",
    "language_share",
]


def main_table(results: Results, metrics: list[str] = MAIN_METRICS) -> PaperTable:
    """Means over languages before and after, with intervals; below them the paper's models, before and after."""
    means = results.means[results.means["scope"] == "all"]
    groups = []
    for comparison in results.comparisons:
        rows = means[means["comparison"] == comparison.name].set_index("metric")
        groups.append(Group(_heading(comparison, rows, results), _before_after(rows, metrics)))
    ours = {
        model["title"] for comparison in results.comparisons for model in [paper_model(comparison.reference)] if model
    }
    models = sorted(paper_models(), key=lambda model: model["title"] not in ours)  # those of this run first
    groups.append(Group(f"{PAPER}, Table 2: before → after", [_paper_line(model, metrics) for model in models]))
    return PaperTable(["", *(METRICS[metric].title for metric in metrics)], groups)


def _heading(comparison: Comparison, rows: pd.DataFrame, results: Results) -> str:
    covered, asked = int(rows["languages"].max()), len(results.profile.languages)
    part = f"{covered} languages" if covered == asked else f"{covered} of {asked} languages"
    return f"This run: {comparison.title}, mean over {part}"


def _before_after(rows: pd.DataFrame, metrics: list[str]) -> list[list[Cell | str]]:
    lines: list[list[Cell | str]] = []
    for side in ("before", "after", "drop"):
        lines.append([side, *(_compared(rows.loc[metric], side, METRICS[metric].digits) for metric in metrics)])
    return lines


def _compared(row: pd.Series, side: str, digits: int, *, bounded: bool = True) -> Cell:
    """Before, after or the drop, with its interval; what is missing was not run, or has nothing to be measured on."""
    ran = all(row[f"{name}_run"] for name in (("before", "after") if side == "drop" else (side,)))
    interval = (row[f"{side}_low"], row[f"{side}_high"]) if bounded else ()
    return number(row[side], digits, *interval, missing=NOT_MEASURED if ran else NOT_RUN)


def _paper_line(model: dict[str, Any], metrics: list[str]) -> list[Cell | str]:
    cells = []
    for metric in metrics:
        digits = METRICS[metric].digits
        sides = [fixed(model[side][metric], digits) for side in ("before", "after") if metric in model[side]]
        cells.append(Cell(" → ".join(sides) or NOT_APPLICABLE))
    return [model["title"], *cells]


def transfer_table(results: Results) -> PaperTable:
    """English, the language of the pairs, beside the mean of all other languages."""
    groups = []
    for comparison in results.comparisons:
        mine = results.means[results.means["comparison"] == comparison.name]
        lines: list[list[Cell | str]] = []
        for scope, said in (("english", "English"), ("others", "other languages")):
            rows = mine[mine["scope"] == scope].set_index("metric")
            lines.append([said, *_triples(rows, ["emt", "toxprob"])])
        groups.append(Group(comparison.title if len(results.comparisons) > 1 else None, lines))
    return _triple_table("", groups, ["emt", "toxprob"])


def language_table(results: Results) -> PaperTable:
    """EMT and ToxProb before and after, and their drop, in every language."""
    metrics = ["emt", "toxprob"]
    return _triple_table("Language", _by_language(results, metrics), metrics)


def _triple_table(first: str, groups: list[Group], metrics: list[str]) -> PaperTable:
    """A table with before, after and drop under the name of each metric."""
    spans = [("", 1), *((METRICS[metric].title, 3) for metric in metrics)]
    return PaperTable([first, *["before", "after", "drop"] * len(metrics)], groups, spans)


def _by_language(results: Results, metrics: list[str]) -> list[Group]:
    """Before, after and drop of some metrics in every language, a group a comparison."""
    groups = []
    for comparison in results.comparisons:
        mine = results.by_language[results.by_language["comparison"] == comparison.name]
        lines: list[list[Cell | str]] = []
        for language in results.profile.languages:
            rows = mine[mine["language"] == language].set_index("metric")
            lines.append([LANGUAGES[language], *_triples(rows, metrics)])
        groups.append(Group(comparison.title if len(results.comparisons) > 1 else None, lines))
    return groups


def _triples(rows: pd.DataFrame, metrics: Iterable[str]) -> list[Cell]:
    """Before, after and drop of each metric, the drop with its interval."""
    cells = []
    for metric in metrics:
        cells += [_compared(rows.loc[metric], side, METRICS[metric].digits, bounded=side == "drop")
                  for side in ("before", "after", "drop")]  # fmt: skip
    return cells


def fluency_by_language_table(results: Results) -> PaperTable:
    """Perplexity, distinct word pairs and language before and after, in every language."""
    metrics = ["perplexity", "distinct_2", "language_share"]
    groups = []
    for comparison in results.comparisons:
        mine = results.by_language[results.by_language["comparison"] == comparison.name]
        lines: list[list[Cell | str]] = []
        for language in results.profile.languages:
            rows = mine[mine["language"] == language].set_index("metric")
            sides = ((metric, side) for metric in metrics for side in ("before", "after"))
            cells = [_compared(rows.loc[metric], side, METRICS[metric].digits, bounded=False) for metric, side in sides]
            lines.append([LANGUAGES[language], *cells])
        groups.append(Group(comparison.title if len(results.comparisons) > 1 else None, lines))
    spans = [("", 1), *((METRICS[metric].title, 2) for metric in metrics)]
    return PaperTable(["Language", *["before", "after"] * len(metrics)], groups, spans)


def drift_table(results: Results) -> PaperTable:
    """Where continuations go that leave their prompt's language: to English, and to which other language most."""
    groups = []
    for comparison in results.comparisons:
        lines: list[list[Cell | str]] = []
        for language in results.profile.languages:
            scores = [results.scores(comparison.model, variant, language) for variant in ("base", comparison.variant)]
            sides = [None if side is None else side["detected_language"].value_counts(normalize=True)
                     for side in scores]  # fmt: skip
            cells = [
                _share(shares, chosen) for chosen in (language, ENGLISH) for shares in sides
            ]  # fmt: skip
            lines.append([LANGUAGES[language], *cells, *(_elsewhere(shares, language) for shares in sides)])
        groups.append(Group(comparison.title if len(results.comparisons) > 1 else None, lines))
    spans = [("", 1), ("In its language", 2), ("In English", 2), ("Most often else", 2)]
    return PaperTable(["Language", *["before", "after"] * 3], groups, spans)


def _share(shares: pd.Series | None, language: str) -> Cell:
    """The share of one language; not measured where no continuation has a language that can be told."""
    if shares is None or shares.empty:
        return Cell(NOT_RUN if shares is None else NOT_MEASURED)
    return number(float(shares.get(language, 0.0)), 2)


def _elsewhere(shares: pd.Series | None, language: str) -> Cell:
    """The most frequent language that is neither the prompt's nor English, with its share."""
    if shares is None:
        return Cell(NOT_RUN, number=False)
    others = shares.drop([language, ENGLISH], errors="ignore")
    if others.empty:
        return Cell(NOT_APPLICABLE, number=False)
    return Cell(f"{LANGUAGES[others.index[0]]} {fixed(others.iloc[0], 2)}", number=False)


def agreement_table(results: Results) -> PaperTable:
    """What share each scorer calls toxic before and after, and how often the two agree, by language."""
    columns = ["Language", "before", "after", "before", "after", "same verdict", "kappa"]
    spans = [("", 1), ("First scorer", 2), ("Second scorer", 2), ("Agreement", 2)]
    table = results.agreement.set_index(["model", "variant", "language"])
    groups = []
    for comparison in results.comparisons:
        lines: list[list[Cell | str]] = []
        for language in results.profile.languages:
            sides = [
                table.loc[key] if (key := (comparison.model, variant, language)) in table.index else None
                for variant in ("base", comparison.variant)
            ]
            cells = [_of(side, name, 2) for name in ("flagged_first", "flagged_second") for side in sides]
            lines.append([LANGUAGES[language], *cells, _of(sides[1], "share", 2), _kappa(sides[0])])
        groups.append(Group(comparison.title if len(results.comparisons) > 1 else None, lines))
    return PaperTable(columns, groups, spans)


def _of(row: pd.Series | None, name: str, digits: int) -> Cell:
    return Cell(NOT_RUN) if row is None else number(row[name], digits, missing=NOT_MEASURED)


def _kappa(row: pd.Series | None) -> Cell:
    """Kappa; a dash where one scorer gave every continuation the same verdict."""
    if row is None:
        return Cell(NOT_RUN)
    return number(row["kappa"], 2) if pd.notna(row["kappa"]) else Cell(NOT_APPLICABLE)
