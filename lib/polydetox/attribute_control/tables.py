"""The tables of attribute control, with the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from polydetox.attribute_control.results import PAPER, Control, rows_of
from polydetox.benchmarks.tables import suite_title
from polydetox.results.collect import ENGLISH
from polydetox.results.published import paper_table
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, number

# The methods of the paper's tables, and its rows of Jigsaw.
PAPER_METHODS = {
    "baseline": "plain fine-tuning", "filtering": "filtering", "rl": "RL", "nado_decoding": "NADO decoding",
    "regularised": "regularised", "regularised_adaptive": "regularised, adaptive", "base": "plain fine-tuning",
}  # fmt: skip
CONDITION_TITLES = {
    "base": "base model", "sft-lm": "SFT, language-model loss",
    "regularised-lm": "regularised, language-model loss", "sft-classification": "SFT, classification loss",
}  # fmt: skip
_PAPER_CONDITIONS = {
    "baseline": "base", "sft_lm_loss": "sft-lm", "regularised_lm_loss": "regularised-lm",
    "sft_classification": "sft-classification",
}  # fmt: skip
# The column of the paper's table that stands beside a suite.
_PAPER_SUITES = {"mmlu": "mmlu_5shot", "knowledge": "mmlu_5shot", "commonsense": "commonsense_0shot"}

Line = list[Cell | str]

# --- cells ------------------------------------------------------------------------------------------------------


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


def missing(control: Control, model: str, *names: str) -> str:
    """Why some algorithms have no value: they were evaluated and had nothing to measure, or were not run."""
    return NOT_MEASURED if all((model, name) in control.evaluations for name in names) else NOT_RUN


def sides(control: Control, measure: str, side: str, model: str, *names: str) -> list[Cell]:
    """A measure of the last of the algorithms in English and over the others; a dash where none is sampled."""
    table = rows_of(control.compared[measure], model=model, algorithm=names[-1]).set_index("language")
    table = table[[side, f"{side}_low", f"{side}_high"]]
    found = {language: number(value, 1, low, high, missing=missing(control, model, *names))
             for language, value, low, high in table.itertuples()}  # fmt: skip
    return [found.get(language, Cell(NOT_APPLICABLE)) for language in (ENGLISH, "others")]


def by_algorithm(
    control: Control,
    headings: Sequence[str],
    cells: Callable[[str, str], list[Cell]],
    spans: Sequence[tuple[str, int]] = (),
    *,
    base: bool = True,
) -> PaperTable:
    """A row an algorithm (with or without ``base``), in a group a model; ``cells`` gives what follows its title."""
    names = control.algorithms if base else control.algorithms[1:]
    groups = [
        Group(
            title if len(control.models) > 1 else None, [[control.titles[name], *cells(model, name)] for name in names]
        )
        for model, title in control.models.items()
    ]
    empty = Group(None, [["", *[Cell(NOT_RUN)] * len(headings)]])
    return PaperTable(["Algorithm", *headings], groups or [empty], spans)


# --- tables -----------------------------------------------------------------------------------------------------


def main_table(control: Control) -> PaperTable:
    """Toxicity and accuracy of every algorithm, the paper's row under ours where the model is the same, else below."""
    suites = [f"{suite_title(name)}, {suite['shots']}-shot" for name, suite in control.suites.items()]
    spans = [("", 1), ("Toxic continuations (%)", 2), ("Accuracy (%)", len(suites))]
    columns = [_PAPER_SUITES.get(suite) for suite in control.suites]

    def published(row: pd.Series) -> list[Cell]:
        accuracies = [number(row[column], 1) if column else Cell(NOT_APPLICABLE) for column in columns]
        return [number(row["toxigen"], 1), Cell(NOT_APPLICABLE), *accuracies]

    groups = []
    for model, title in control.models.items():
        paper: dict[Any, Line] = {name: [f"{PAPER}: {PAPER_METHODS[str(name)]}", *published(row)]
                 for name, row in control.of_paper(model, "regularised_finetuning").iterrows()}  # fmt: skip
        lines: list[Line] = []
        for name in control.algorithms:
            accuracies = control.evaluations.get((model, name), {}).get("suites", {})
            lines.append([control.titles[name], *sides(control, "toxic", "after", model, name),
                          *(percent(accuracies.get(suite)) for suite in control.suites)])  # fmt: skip
            lines += [paper.pop(known)] if (known := control.paper_algorithm(name)) in paper else []
        groups.append(Group(f"This run: {title}", [*lines, *paper.values()]))
    for reference, rows in control.of_other_models("regularised_finetuning").items():
        others: list[Line] = [[PAPER_METHODS[str(name)], *published(row)] for name, row in rows.iterrows()]
        groups.append(Group(f"{PAPER}: {reference}", others))
    return PaperTable(["Algorithm", "English", "others", *suites], groups, [span for span in spans if span[1]])


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


def paper_wins_table() -> PaperTable:
    """The paper's win rates, of the method of a row against that of a column."""
    paper = paper_table("regularised_win_rate").set_index("row").rename(index=PAPER_METHODS, columns=PAPER_METHODS)
    cells = paper.map(lambda value: Cell(NOT_APPLICABLE) if pd.isna(value) else number(value, 1))
    return PaperTable(["", *paper.columns], [Group(PAPER, [[str(name), *row] for name, row in cells.iterrows()])])


def jigsaw_table(control: Control) -> PaperTable:
    """Detection and generation after each way of training on labelled comments; beside or below, the paper's.

    The paper gives one area, and does not say how it classifies; it stands under the head's.
    """

    def published(row: pd.Series) -> list[Cell]:
        dash = Cell(NOT_APPLICABLE)
        return [dash, number(row["classify_roc"], 3), number(row["api_toxicity"], 3), dash]

    groups = []
    for model, title in control.models.items():
        paper = control.of_paper(model, "regularised_jigsaw").rename(index=_PAPER_CONDITIONS)
        lines: list[Line] = []
        for condition, name in CONDITION_TITLES.items():
            row = control.comments.get((model, condition), {})
            ours = [interval(row.get(measure), 3) for measure in ("prompting", "head", "avgtox")]
            lines.append([name, *ours, percent(row.get("toxic_fraction"))])
            if condition in paper.index:
                lines.append([f"{PAPER}: {name}", *published(paper.loc[condition])])
        groups.append(Group(f"This run: {title}", lines))
    for reference, rows in control.of_other_models("regularised_jigsaw").items():
        others: list[Line] = [[CONDITION_TITLES[_PAPER_CONDITIONS[str(name)]], *published(row)]
                              for name, row in rows.iterrows()]  # fmt: skip
        groups.append(Group(f"{PAPER}: {reference}, Jigsaw", others))
    columns = ["Training", "prompting", "classification head", "Average toxicity", "Toxic (%)"]
    return PaperTable(columns, groups, [("", 1), ("ROC-AUC", 2), ("Of what it writes", 2)])
