"""The tables of attribute control, with the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from polydetox.attribute_control.results import PAPER, Control, plain_method, seconds
from polydetox.benchmarks.tables import percent, suite_title
from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import ENGLISH
from polydetox.results.published import paper_table
from polydetox.results.tables import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_RUN,
    Cell,
    Group,
    PaperTable,
    number,
)

# The methods of the paper's tables, and its rows of Jigsaw.
PAPER_METHODS = {
    "baseline": "plain fine-tuning", "filtering": "filtering", "rl": "RL", "nado_decoding": "NADO decoding",
    "regularised": "regularised", "regularised_adaptive": "regularised, adaptive", "base": "plain fine-tuning",
}  # fmt: skip
CONDITION_TITLES = {
    "untouched": "base model",
    "sft-lm": "SFT, language-model loss",
    "regularised-lm": "regularised, language-model loss",
    "sft-classification": "SFT, classification loss",
}
_PAPER_CONDITIONS = {
    "baseline": "untouched", "sft_lm_loss": "sft-lm", "regularised_lm_loss": "regularised-lm",
    "sft_classification": "sft-classification",
}  # fmt: skip


# The column of the paper's table that stands beside a suite.
_PAPER_SUITES = {
    "mmlu": "mmlu_5shot",
    "knowledge": "mmlu_5shot",
    "commonsense": "commonsense_0shot",
}


def method_table(metrics: Mapping[str, Any]) -> PaperTable:
    """One method: toxicity in each language, perplexity of both halves, and the accuracy of each suite."""
    lines: list[list[Cell | str]] = []
    for language, measured in metrics["toxicity"].items():
        for name, said in (("toxic_fraction", "toxic continuations (%)"), ("emt", "EMT")):
            row = measured[name]
            lines.append([LANGUAGES[language], said, _percent(row) if name == "toxic_fraction" else _bounded(row, 2)])
        form = metrics["form"][language]
        lines.append([LANGUAGES[language], "in the prompt's language (%)", _percent(form["language_rate"])])
        lines.append([LANGUAGES[language], "repeated words (%)", _percent(form["repeated"])])
    for domain, row in metrics["perplexity"].items():
        lines.append(["held-out text", f"perplexity, {domain} half", _bounded(row, 1)])
    for suite, row in metrics["suites"].items():
        lines.append([suite_title(suite), f"accuracy (%), {row['items']:,} questions", percent(row)])
    return PaperTable(["Of", "Measure", ""], [Group(None, lines)])


def _percent(row: Mapping[str, Any]) -> Cell:
    return percent(row) if row["value"] is not None else Cell(NOT_MEASURED)


def _bounded(row: Mapping[str, float | None] | None, digits: int) -> Cell:
    if row is None:
        return Cell(NOT_RUN)
    return number(row["value"], digits, row["low"], row["high"], missing=NOT_MEASURED)


def main_table(control: Control) -> PaperTable:
    """Toxicity and utility of every method, the paper's row under ours where the model is the same, else below."""
    suites = [f"{suite_title(name)}, {control.shots(name)}-shot" for name in control.suites]
    spans = [("", 1), ("Toxic continuations (%)", 2), ("Accuracy (%)", len(control.suites))]
    groups = []
    for model, title in control.models.items():
        paper = control.of_paper(model, "regularised_finetuning")
        told: dict[Any, list[Cell | str]] = {name: [f"{PAPER}: {PAPER_METHODS[str(name)]}", *_paper_cells(control, row)]
                for name, row in paper.iterrows()}  # fmt: skip
        lines: list[list[Cell | str]] = []
        for method in control.methods:
            lines.append(_main_line(control, model, method))
            if (name := control.paper_method(method)) in told:
                lines.append(told.pop(name))
        lines += told.values()
        groups.append(Group(f"This run: {title}", lines))
    for reference, rows in paper_table("regularised_finetuning").groupby("model", sort=False):
        if reference not in control.references:
            lines = [[PAPER_METHODS[row["method"]], *_paper_cells(control, row)] for _, row in rows.iterrows()]
            groups.append(Group(f"{PAPER}: {reference}", lines))
    return PaperTable(["Method", "English", "others", *suites], groups, [span for span in spans if span[1]])


def _paper_cells(control: Control, row: pd.Series) -> list[Cell]:
    """A row of the paper under the columns of the main table."""
    columns = [_PAPER_SUITES.get(suite) for suite in control.suites]
    accuracies = [number(row[column], 1) if column else Cell(NOT_APPLICABLE) for column in columns]
    return [number(row["toxigen"], 1), Cell(NOT_APPLICABLE), *accuracies]


def _main_line(control: Control, model: str, method: str) -> list[Cell | str]:
    metrics = control.evaluations.get((model, method), {})
    mine = _of_method(control.toxicity, model, method)
    missing = _why_missing(control, model, method)
    toxic = [_side(mine, language, "after", missing) for language in (ENGLISH, "others")]
    suites = [percent(metrics.get("suites", {}).get(suite)) for suite in control.suites]
    return [control.titles[method], *toxic, *suites]


def _of_method(table: pd.DataFrame, model: str, method: str) -> pd.DataFrame:
    """The rows of a comparison that are about one method, by language."""
    return table[(table["model"] == model) & (table["method"] == method)].set_index("language")


def _why_missing(control: Control, model: str, *methods: str) -> str:
    """Why a measure of some methods has no value: they were evaluated and had nothing to measure, or were not run."""
    return NOT_MEASURED if all((model, method) in control.evaluations for method in methods) else NOT_RUN


def _side(rows: pd.DataFrame, language: str, side: str, missing: str) -> Cell:
    """One side of a comparison in one language; a dash for a language that the profile does not sample."""
    if language not in rows.index:
        return Cell(NOT_APPLICABLE)
    row = rows.loc[language]
    return number(row[side], 1, row[f"{side}_low"], row[f"{side}_high"], missing=missing)


def form_table(control: Control) -> PaperTable:
    """Whether the continuations are still text: in the prompt's language, and how much of it repeats itself."""
    columns = ["Method", "English", "others", "English", "others"]
    spans = [("", 1), ("In the prompt's language (%)", 2), ("Words that repeat an earlier one (%)", 2)]
    groups = []
    for model, title in control.models.items():
        lines: list[list[Cell | str]] = []
        for method in control.methods:
            cells = []
            for table in (control.in_language, control.repeated):
                mine = _of_method(table, model, method)
                missing = _why_missing(control, model, method)
                cells += [_side(mine, language, "after", missing) for language in (ENGLISH, "others")]
            lines.append([control.titles[method], *cells])
        groups.append(Group(title if len(control.models) > 1 else None, lines))
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * 4]])], spans)


def perplexity_table(control: Control) -> PaperTable:
    """The perplexity of the held-out text of both halves under every method."""
    groups = []
    for model, title in control.models.items():
        lines: list[list[Cell | str]] = []
        for method in control.methods:
            found = control.evaluations.get((model, method), {}).get("perplexity", {})
            lines.append([control.titles[method], *(_bounded(found.get(half), 1) for half in ("toxic", "neutral"))])
        groups.append(Group(title if len(control.models) > 1 else None, lines))
    return PaperTable(["Method", "toxic half", "neutral half"], groups or [Group(None, [["", *[Cell(NOT_RUN)] * 2]])])


def languages_table(control: Control) -> PaperTable:
    """The drop of toxic continuations of every method: in English, in the mean of the others, and where it is clear."""
    columns = ["Method", "English", "mean of the others", "less toxic", "more toxic", "neither"]
    spans = [("", 1), ("Drop (points)", 2), ("Other languages, by their intervals", 3)]
    groups = []
    for model, title in control.models.items():
        lines: list[list[Cell | str]] = []
        for method in control.methods[1:]:
            mine = _of_method(control.toxicity, model, method)
            others = mine.drop([ENGLISH, "others"], errors="ignore").dropna(subset=["drop"])
            less, more = int((others["drop_low"] > 0).sum()), int((others["drop_high"] < 0).sum())
            counts = [number(count, 0) for count in (less, more, len(others) - less - more)]
            missing = _why_missing(control, model, "base", method)
            drops = [_side(mine, language, "drop", missing) for language in (ENGLISH, "others")]
            lines.append([control.titles[method], *drops, *(counts if len(others) else [Cell(missing)] * 3)])
        groups.append(Group(title if len(control.models) > 1 else None, lines))
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * 5]])], spans)


def win_table(rates: Mapping[str, Sequence[Mapping[str, Any]]], titles: Mapping[str, str]) -> PaperTable:
    """The win rate (%) of the method of a row against that of a column, by each rule, which ``rates`` names."""
    return PaperTable(["", *titles.values()], [Group(rule, _win_lines(rows, titles)) for rule, rows in rates.items()])


def _win_lines(rates: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[list[Cell | str]]:
    found = {(row["method"], row["opponent"]): row for row in rates}
    lines: list[list[Cell | str]] = []
    for method, title in titles.items():
        cells = []
        for opponent in titles:
            row = found.get((method, opponent))
            cells.append(Cell(NOT_APPLICABLE) if opponent == method
                         else Cell(NOT_RUN) if row is None else _percent(row))  # fmt: skip
        lines.append([title, *cells])
    return lines


def wins_table(control: Control) -> PaperTable:
    """The win rates of this run, by both rules."""
    groups = [
        Group(f"{title}, judge: {judge_name(control, model)}; {said}",
              _win_lines(control.wins.get(model, {}).get(rates, []), control.titles))
        for model, title in control.models.items()
        for rates, said in (("rates", "both orders agree"), ("rates_averaged", "mean of both orders"))
    ]  # fmt: skip
    return PaperTable(["", *control.titles.values()], groups or [Group(None, [[NOT_RUN]])])


def judge_name(control: Control, model: str) -> str:
    """The judge of the win rates, in words."""
    judge = control.wins.get(model, {}).get("judge")
    if judge is None:
        return NOT_RUN
    return control.results.checkpoint_title(judge)


def paper_wins_table() -> PaperTable:
    """The paper's win rates, of the method of a row against that of a column."""
    paper = paper_table("regularised_win_rate").set_index("row")
    titles = [PAPER_METHODS[name] for name in paper.columns]
    lines: list[list[Cell | str]] = [
        [PAPER_METHODS[str(name)], *(Cell(NOT_APPLICABLE) if pd.isna(value) else number(value, 1) for value in row)]
        for name, row in zip(paper.index, paper.to_numpy(dtype=float), strict=True)
    ]
    return PaperTable(["", *titles], [Group(PAPER, lines)])


def jigsaw_table(control: Control) -> PaperTable:
    """Detection and generation after each way of training on labelled comments; below, the paper's."""
    columns = ["Training", "prompting", "classification head", "Average toxicity", "Toxic (%)"]
    spans = [("", 1), ("ROC-AUC", 2), ("Of what it writes", 2)]
    groups = []
    for model, title in control.models.items():
        paper = control.of_paper(model, "regularised_jigsaw").rename(index=_PAPER_CONDITIONS)
        lines: list[list[Cell | str]] = []
        for condition, said in CONDITION_TITLES.items():
            lines.append([said, *_condition_cells(control.comments.get((model, condition)))])
            if condition in paper.index:
                lines.append([f"{PAPER}: {said}", *_paper_condition_cells(paper.loc[condition])])
        groups.append(Group(f"This run: {title}", lines))
    for reference, rows in paper_table("regularised_jigsaw").groupby("model", sort=False):
        if reference not in control.references:
            lines = [[CONDITION_TITLES[_PAPER_CONDITIONS[row["method"]]], *_paper_condition_cells(row)]
                     for _, row in rows.iterrows()]  # fmt: skip
            groups.append(Group(f"{PAPER}: {reference}, Jigsaw", lines))
    return PaperTable(columns, groups, spans)


def _condition_cells(row: Mapping[str, Any] | None) -> list[Cell]:
    if row is None:
        return [Cell(NOT_RUN)] * 4
    return [*(_bounded(row[name], 3) for name in ("prompting", "head", "avgtox")), _percent(row["toxic_fraction"])]


def _paper_condition_cells(row: pd.Series) -> list[Cell]:
    """The paper gives one area, and does not say how it classifies; it stands under the head's."""
    return [Cell(NOT_APPLICABLE), number(row["classify_roc"], 3), number(row["api_toxicity"], 3), Cell(NOT_APPLICABLE)]


def cost_table(control: Control) -> PaperTable:
    """What each method cost, and its time on two devices relative to plain fine-tuning."""
    columns = ["Method", "Rows", "head", "model", "two devices", "relative to plain", "Wall time of the stage (s)"]
    spans = [("", 2), ("Seconds of training", 3), ("", 2)]
    groups = []
    for model, title in control.models.items():
        plain = plain_method(control, model)
        reference = seconds(control.trainings[model, plain], "two_device") if plain else None
        lines: list[list[Cell | str]] = []
        for method in control.methods:
            if method == "base":
                continue
            row = control.trainings.get((model, method))
            if row is None:
                lines.append([control.titles[method], *[Cell(NOT_RUN)] * 6])
                continue
            relative = number(seconds(row, "two_device") / reference, 2) if reference else Cell(NOT_APPLICABLE)
            parts = [number(seconds(row, part), 0) for part in ("head", "model", "two_device")]
            lines.append([control.titles[method], number(row["rows_train"], 0), *parts, relative,
                          number(row["wall_seconds"], 0)])  # fmt: skip
        groups.append(Group(title if len(control.models) > 1 else None, lines))
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * 6]])], spans)


# --- sentences --------------------------------------------------------------------------------------------------
