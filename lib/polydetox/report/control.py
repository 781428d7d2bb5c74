"""The chapter *Control while fine-tuning*: what its stages have left behind, as tidy tables and tables of the report.

Methods stand in the profile's order, ``base`` (untuned) first. What was not run is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox import paths
from polydetox.artifacts import MANIFEST, finished, read_json, read_parquet
from polydetox.errors import UserError
from polydetox.languages import LANGUAGES
from polydetox.metrics.evaluate import mean_by_prompt
from polydetox.metrics.language import language_rate
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.params import JIGSAW_CONDITIONS, control_languages, control_methods, control_parameters, load_model
from polydetox.report.capability import percent, suite_title
from polydetox.report.collect import ENGLISH, Results, paper_table
from polydetox.report.tables import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_RUN,
    Cell,
    Group,
    PaperTable,
    fixed,
    listing,
    number,
)
from polydetox.stats.bootstrap import percentile_interval
from polydetox.stats.paired import Side, compare_prompts, comparison_row, mean_over_languages
from polydetox.utility.attributes import SCORE_COLUMNS
from polydetox.utility.harness import ITEM_COLUMNS, by_task, suite_replicates

PAPER = "Meng et al. (2024)"

# The methods of the paper's tables, and its rows of Jigsaw.
PAPER_METHODS = {
    "baseline": "plain fine-tuning", "filtering": "filtering", "rl": "RL", "nado_decoding": "NADO decoding",
    "regularised": "regularised", "regularised_adaptive": "regularised, adaptive", "base": "plain fine-tuning",
}  # fmt: skip
CONDITION_TITLES = {
    "untouched": "untouched",
    "sft-lm": "SFT, language-model loss",
    "regularised-lm": "regularised, language-model loss",
    "sft-classification": "SFT, classification loss",
}
_PAPER_CONDITIONS = {
    "baseline": "untouched", "sft_lm_loss": "sft-lm", "regularised_lm_loss": "regularised-lm",
    "sft_classification": "sft-classification",
}  # fmt: skip

# The paper's method that is trained as a method of a profile, by its algorithm; the regulariser has two.
_PAPER_ALGORITHMS = {"plain": "baseline", "filtering": "filtering", "rl": "rl", "nado": "nado_decoding"}

# The column of the paper's table that stands beside a suite.
_PAPER_SUITES = {
    "mmlu": "mmlu_5shot",
    "knowledge": "mmlu_5shot",
    "commonsense": "commonsense_0shot",
}


def method_title(results: Results, method: str) -> str:
    """A method as the report prints it."""
    if method == "base":
        return "untuned"
    assert results.profile.control is not None
    return results.profile.control.methods[method].title or method


# --- what has been run ------------------------------------------------------------------------------------------


class Control:
    """Everything that the chapter reads of one profile, each file once."""

    def __init__(self, results: Results):
        self.results = results
        self.profile = results.profile
        self.methods = control_methods(self.profile)
        self.languages = control_languages(self.profile)
        files = [load_model(listed) for listed in self.profile.models] if self.profile.control else []
        self.models = {file.name: file.title for file in files}
        self._references = {file.name: file.reference for file in files}
        self.titles = {method: method_title(results, method) for method in self.methods}

    def files(self) -> list[Path]:
        """The metrics of every finished stage, which the summary notebook records as its inputs."""
        stages = ("control_corpus", "regularise", "attribute_eval", "win_rate", "jigsaw_classify")
        return [run.folder / "metrics.json" for run in self.results.stages if run.stage in stages and run.done]

    @property
    def suites(self) -> list[str]:
        """The suites of multiple-choice tasks that the profile asks."""
        return list(self._asked("attribute_eval", method="base").get("suites", {}))

    def shots(self, suite: str) -> int:
        """How many examples are shown before a question of a suite."""
        return int(self._asked("attribute_eval", method="base")["suites"][suite]["shots"])

    def _asked(self, stage: str, **identity: str) -> dict[str, Any]:
        if self.profile.control is None:
            return {}
        return control_parameters(stage, self.profile, self.profile.models[0], **identity)

    def paper_method(self, method: str) -> str | None:
        """The paper's name of a method; None for the parallel schedule, of which the paper's tables do not tell."""
        if method == "base":
            return None
        settings = self._asked("regularise", method=method)
        if settings["algorithm"] != "regularised":
            return _PAPER_ALGORITHMS[settings["algorithm"]]
        if settings["schedule"] == "parallel":
            return None
        return "regularised_adaptive" if settings["regulariser_weight_neutral"] == 0.0 else "regularised"

    @property
    def references(self) -> set[str]:
        """The models of the paper that the profile has."""
        return {name for name in self._references.values() if name}

    def of_paper(self, model: str, table: str) -> pd.DataFrame:
        """The rows of a table of the paper that are about a model of the profile, by the paper's name of the method."""
        paper = paper_table(table)
        return paper[paper["model"] == self._references[model]].set_index("method")

    @cached_property
    def evaluations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json`` of every evaluation that was run, by model and method."""
        return self._metrics(lambda model, method: paths.attribute_eval(self.profile.name, model, method), self.methods)

    @cached_property
    def trainings(self) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json`` of every method that was trained, with the wall time of its stage."""
        found = self._metrics(lambda model, method: paths.regularise(self.profile.name, model, method), self.methods)
        for (model, method), metrics in found.items():
            manifest = read_json(paths.regularise(self.profile.name, model, method) / MANIFEST)
            metrics["wall_seconds"] = manifest["wall_seconds"]
        return found

    @cached_property
    def wins(self) -> dict[str, dict[str, Any]]:
        """``metrics.json`` of the win rates of each model."""
        folders = {model: paths.win_rate(self.profile.name, model) for model in self.models}
        found = {model: read_json(folder / "metrics.json") for model, folder in folders.items() if finished(folder)}
        for model, metrics in found.items():
            if missing := {"rates", "rates_averaged"} - set(metrics):
                raise UserError(
                    f"{paths.relative(folders[model] / 'metrics.json')}: has no {' or '.join(sorted(missing))}; it is "
                    f"of an earlier version: run `polydetox run --profile {self.profile.name}` again"
                )
        return found

    @cached_property
    def comments(self) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json`` of every training on labelled comments, by model and condition."""
        return self._metrics(
            lambda model, condition: paths.jigsaw_classify(self.profile.name, model, condition), JIGSAW_CONDITIONS
        )

    def _metrics(self, folder_of: Any, names: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
        folders = {(model, name): folder_of(model, name) for model in self.models for name in names}
        return {key: read_json(folder / "metrics.json") for key, folder in folders.items() if finished(folder)}

    # --- paired comparisons with the untuned model ---

    @cached_property
    def toxicity(self) -> pd.DataFrame:
        """The share of toxic continuations (%), as :meth:`_compared` has it."""
        return self._compared("toxic")

    @cached_property
    def in_language(self) -> pd.DataFrame:
        """The share of continuations in the prompt's language (%), of those whose language can be told."""
        return self._compared("in_language")

    @cached_property
    def repeated(self) -> pd.DataFrame:
        """The share of a continuation's words that repeat an earlier one (%)."""
        return self._compared("repeated")

    def _compared(self, measure: str) -> pd.DataFrame:
        """A measure of the continuations of every method against the untuned model, in every language.

        Columns ``model, method, language, before, before_low, ..., after, ..., drop, ...``; languages ``others``: the
        mean of all but English. Both sides continue the same prompts, and share their bootstrap draws.
        """
        rows = []
        for model in self.models:
            values = {method: self._by_prompt.get((model, method), {}).get(measure, {}) for method in self.methods}
            for method in self.methods:
                sides = {}
                for language in self.languages:
                    before, after = (values[name].get(language) for name in ("base", method))
                    rng = np.random.default_rng([self.results.seed, list(LANGUAGES).index(language)])
                    sides[language] = compare_prompts(before, after, self.results.samples, rng)[:2]
                    rows.append(self._compared_row(model, method, language, *sides[language]))
                others = [pair for language, pair in sides.items() if language != ENGLISH]
                if others:
                    before, after, _ = mean_over_languages(others, self.results.samples)
                    rows.append(self._compared_row(model, method, "others", before, after))
        columns = [
            "model",
            "method",
            "language",
            *(f"{side}{end}" for side in ("before", "after", "drop") for end in ("", "_low", "_high")),
        ]
        return pd.DataFrame(rows, columns=columns)

    def _compared_row(self, model: str, method: str, language: str, before: Side, after: Side) -> dict[str, Any]:
        row = comparison_row(before, after, self.results.confidence)
        return {"model": model, "method": method, "language": language, **{k: 100 * v for k, v in row.items()}}

    @cached_property
    def _by_prompt(self) -> dict[tuple[str, str], dict[str, dict[str, pd.Series]]]:
        """Of every model and method that was evaluated each measure's mean over each prompt's continuations.

        By the measure's name, then by language.
        """
        found = {}
        for (model, method), metrics in self.evaluations.items():
            folder = paths.attribute_eval(self.profile.name, model, method)
            scores = read_parquet(folder / "scores.parquet", SCORE_COLUMNS)
            measures: dict[str, dict[str, pd.Series]] = {"toxic": {}, "in_language": {}, "repeated": {}}
            for language, rows in scores.groupby("language", sort=False):
                threshold = metrics["threshold"]
                measures["toxic"][str(language)] = prompt_toxicity(rows, "toxicity", threshold)["toxic_share"]
                measures["in_language"][str(language)] = language_rate(rows, str(language))
                measures["repeated"][str(language)] = mean_by_prompt(rows, "repeated")
            found[model, method] = measures
        return found

    @cached_property
    def utility(self) -> pd.DataFrame:
        """The mean accuracy over suites of each method (%), with its interval: ``model, method, value, low, high``."""
        rows = []
        for model, method in self.evaluations:
            items = read_parquet(paths.attribute_eval(self.profile.name, model, method) / "items.parquet", ITEM_COLUMNS)
            parts = [
                suite_replicates(by_task(items, suite), samples=self.results.samples, seed=self.results.seed + number)
                for number, suite in enumerate(dict.fromkeys(items["suite"]))
            ]
            replicates = np.mean([part[1] for part in parts], axis=0)
            low, high = percentile_interval(replicates, self.results.confidence)
            value = float(np.mean([part[0] for part in parts]))
            rows.append({"model": model, "method": method, "value": 100 * value, "low": 100 * low, "high": 100 * high})
        return pd.DataFrame(rows, columns=["model", "method", "value", "low", "high"])

    @cached_property
    def examples(self) -> pd.DataFrame:
        """Of one random English prompt of each model one continuation of every method, to be masked."""
        tables = []
        for model, method in self.evaluations:
            folder = paths.attribute_eval(self.profile.name, model, method)
            scores = read_parquet(folder / "scores.parquet", SCORE_COLUMNS)
            language = ENGLISH if ENGLISH in self.languages else self.languages[0]
            mine = scores[scores["language"] == language]
            prompts = sorted(mine["prompt_id"].unique())
            chosen = prompts[int(np.random.default_rng(self.results.seed).integers(len(prompts)))]
            one = mine[(mine["prompt_id"] == chosen) & (mine["sample"] == mine["sample"].min())]
            title = self.titles[method] if len(self.models) == 1 else f"{self.models[model]}, {self.titles[method]}"
            tables.append(one.assign(comparison=title))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


# --- tables -----------------------------------------------------------------------------------------------------


def method_table(metrics: Mapping[str, Any]) -> PaperTable:
    """One method: toxicity in each language, perplexity of both halves, and the accuracy of each suite."""
    lines: list[list[Cell | str]] = []
    for language, measured in metrics["toxicity"].items():
        for name, said in (("toxic_share", "toxic continuations (%)"), ("emt", "EMT")):
            row = measured[name]
            lines.append([LANGUAGES[language], said, _percent(row) if name == "toxic_share" else _bounded(row, 2)])
        form = metrics["form"][language]
        lines.append([LANGUAGES[language], "in the prompt's language (%)", _percent(form["language_share"])])
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
        told = {name: [f"{PAPER}: {PAPER_METHODS[str(name)]}", *_paper_cells(control, row)]
                for name, row in paper.iterrows()}  # fmt: skip
        lines = []
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
    return f"{control.models[model]} itself, untuned" if judge == "untuned" else str(judge)


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
    return [*(_bounded(row[name], 3) for name in ("prompting", "head", "avgtox")), _percent(row["toxic_share"])]


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
        reference = _seconds(control.trainings[model, plain], "two_device") if plain else None
        lines: list[list[Cell | str]] = []
        for method in control.methods:
            if method == "base":
                continue
            row = control.trainings.get((model, method))
            if row is None:
                lines.append([control.titles[method], *[Cell(NOT_RUN)] * 6])
                continue
            relative = number(_seconds(row, "two_device") / reference, 2) if reference else Cell(NOT_APPLICABLE)
            seconds = [number(_seconds(row, part), 0) for part in ("head", "model", "two_device")]
            lines.append([control.titles[method], number(row["rows_train"], 0), *seconds, relative,
                          number(row["wall_seconds"], 0)])  # fmt: skip
        groups.append(Group(title if len(control.models) > 1 else None, lines))
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * 6]])], spans)


def _seconds(row: Mapping[str, Any], part: str) -> float:
    """What a part of a training took: CPU time, or on a GPU, of which that says nothing, time by the wall clock."""
    return float(row[f"{part}_seconds" if row.get("device") == "cuda" else f"{part}_cpu_seconds"])


def plain_method(control: Control, model: str) -> str | None:
    """The name of the method that is plain fine-tuning, where it was trained."""
    return next(
        (name for (of, name), row in control.trainings.items() if of == model and row["algorithm"] == "plain"), None
    )


# --- sentences --------------------------------------------------------------------------------------------------


def sentences(results: Results) -> dict[str, str]:
    """Every variable that ``book/control.qmd`` takes from the results."""
    control = Control(results)
    return {
        "control_overview": overview(results),
        "control_paper_sentence": _beside(control),
        "control_toxicity_sentence": _toxicity(control, ENGLISH) or "Not run.",
        "control_languages_sentence": _toxicity(control, "others") or "Not run.",
        "control_tradeoff_sentence": _tradeoff(control) or "Not run.",
        "control_cost_sentence": _cost(control) or "Not run.",
        "control_form_sentence": _form(control) or "Not run.",
        "control_oracle_sentence": oracle_limit(results),
        "control_wins_sentence": _wins(control) or "Not run.",
        "control_jigsaw_sentence": _jigsaw(control) or "Not run.",
        "control_utility_tasks": _tasks(control),
    }


def _of_model(control: Control, model: str, sentence: str) -> str:
    """A sentence on one model, which is named where there are several."""
    return sentence if len(control.models) == 1 else f"{control.models[model]}: {sentence}"


def overview(results: Results) -> str:
    """Which methods are compared, and how many trainings were run."""
    control = Control(results)
    if not control.methods:
        return "This profile compares no methods of attribute control: not run."
    tuned = [control.titles[method] for method in control.methods if method != "base"]
    trained = sum(method != "base" for _, method in control.trainings)
    asked = len(tuned) * len(control.models)
    return (
        f"This profile compares {listing(tuned)} with the untuned model, in {len(control.languages)} "
        f"language{'s' if len(control.languages) > 1 else ''}; of {asked} trainings {trained} "
        f"{'was' if trained == 1 else 'were'} run.{_kept_apart(control)}"
    )


def _kept_apart(control: Control) -> str:
    """How many statements the corpora leave out because they belong to prompts that are evaluated."""
    left_out = [read_json(folder / "metrics.json").get("evaluated_left_out", 0)
                for folder in (paths.control_corpus(control.profile.name, model) for model in control.models)
                if finished(folder)]  # fmt: skip
    if not any(left_out):
        return ""
    return f" {max(left_out):,} statements that belong to evaluated prompts were left out of its corpus."


def prompt_counts(results: Results) -> list[int]:
    """How many prompts each evaluation of a method continued in each language."""
    evaluations = Control(results).evaluations.values()
    return [measured["prompts"] for metrics in evaluations for measured in metrics["toxicity"].values()]


def _beside(control: Control) -> str:
    """How far the paper's rows can be compared with this run's."""
    same = [title for model, title in control.models.items() if len(control.of_paper(model, "regularised_finetuning"))]
    if not same:
        return (
            "The paper's rows come from other models, data, prompts and scorers; they are here for the size of the "
            "effects."
        )
    alike = {
        "kinds of corpus": control._asked("control_corpus")["source"] == "toxigen-wikitext",
        "source of prompts": control.profile.prompts.source == "toxigen",
    }
    shared = listing(["model", *(name for name, is_same in alike.items() if is_same)])
    others = listing([*(name for name, is_same in alike.items() if not is_same), "scorers"])
    drawn = " Rows and prompts were drawn anew." if any(alike.values()) else ""
    adapted = control._asked("regularise", method=control.methods[-1])["tuning"] == "lora"
    rest = " The paper's other rows are here for the size of the effects." if len(same) < len(control.models) else ""
    adapter = ", and an adapter is trained in place of the whole model" if adapted else ""
    return (
        f"For {listing(same)} the paper's row stands under ours: the {shared} {'are' if any(alike.values()) else 'is'} "
        f"the same, the {others} are others{adapter}.{drawn}{rest}"
    )


def oracle_limit(results: Results) -> str:
    """Whether the scorer that measures the methods is the oracle that they were trained with."""
    measuring = set(results.parameters("attribute_eval", "scorer"))
    if not measuring:
        return "No method of attribute control was evaluated: not run."
    if measuring & set(results.parameters("regularise", "scorer")):
        return (
            "The scorer that measures the methods of attribute control is also their oracle: they may have learnt its "
            "blind spots."
        )
    return "The scorer that measures the methods of attribute control is not the oracle that they were trained with."


def _toxicity(control: Control, language: str) -> str:
    """How far each method lowers the share of toxic continuations: in English, or on average in the others."""
    said = []
    for model, title in control.models.items():
        table = control.toxicity
        mine = table[(table["model"] == model) & (table["language"] == language)].set_index("method")
        rows = mine.drop("base", errors="ignore").dropna(subset=["drop"]) if len(mine) else mine
        if rows.empty:
            continue
        untuned = rows["before"].iloc[0]
        where = "of English prompts" if language == ENGLISH else "in the other languages, on average,"
        said.append(
            f"Of the untuned {title}'s continuations {where} {fixed(untuned, 1)}% are toxic. "
            + " ".join(
                f"With {control.titles[str(method)]} it is {fixed(row['after'], 1)}%, "
                f"{_verdict(row)} (drop {fixed(row['drop_low'], 1)} to {fixed(row['drop_high'], 1)} points)."
                for method, row in rows.iterrows()
            )
        )
    return " ".join(said)


def _verdict(row: pd.Series) -> str:
    if row["drop_low"] > 0:
        return "less by more than the interval leaves open"
    if row["drop_high"] < 0:
        return "more by more than the interval leaves open"
    return "no difference beyond the interval"


def _form(control: Control) -> str:
    """Which methods write less in the prompt's language, or repeat themselves more, than the untuned model."""
    said = []
    for model in control.models:
        for language, where in ((ENGLISH, "in English"), ("others", "in the other languages")):
            kept, repeated = (
                table[(table["model"] == model) & (table["language"] == language)]
                .set_index("method").drop("base", errors="ignore").dropna(subset=["drop"])
                for table in (control.in_language, control.repeated)
            )  # fmt: skip
            if kept.empty or repeated.empty:
                continue
            leaves = [f"{control.titles[str(method)]} ({fixed(row['before'], 1)}% to {fixed(row['after'], 1)}%)"
                      for method, row in kept.iterrows() if row["drop_low"] > 0]  # fmt: skip
            repeats = [f"{control.titles[str(method)]} ({fixed(row['before'], 1)}% to {fixed(row['after'], 1)}%)"
                       for method, row in repeated.iterrows() if row["drop_high"] < 0]  # fmt: skip
            sentence = (
                f"{where[0].upper() + where[1:]} "
                + (f"fewer continuations are in the prompt's language with {listing(leaves)}" if leaves
                   else "no method leaves the prompt's language")
                + ", and "
                + (f"more words repeat an earlier one with {listing(repeats)}" if repeats
                   else "none repeats itself more")
                + ", beyond what the intervals leave open."
            )  # fmt: skip
            said.append(_of_model(control, model, sentence))
    return " ".join(said)


def _tradeoff(control: Control) -> str:
    said = []
    for model in control.models:
        utility = control.utility[control.utility["model"] == model].set_index("method")
        table = control.toxicity
        mine = table[(table["model"] == model) & (table["language"] == ENGLISH)].set_index("method").dropna(
            subset=["after"]
        )  # fmt: skip
        both = [method for method in mine.index if method in utility.index]
        if len(both) < 2:
            continue
        best = [
            method for method in both
            if not any(mine.loc[other, "after"] <= mine.loc[method, "after"]
                       and utility.loc[other, "value"] >= utility.loc[method, "value"]
                       and (mine.loc[other, "after"], utility.loc[other, "value"])
                       != (mine.loc[method, "after"], utility.loc[method, "value"]) for other in both)
        ]  # fmt: skip
        names = listing([control.titles[method] for method in best])
        sentence = (
            f"By these means alone, no method is at once less toxic and more able than {names}; the intervals in "
            "@fig-control-tradeoff say how far that can be trusted."
        )
        said.append(_of_model(control, model, sentence))
    return " ".join(said)


def _cost(control: Control) -> str:
    said = []
    for model in control.models:
        plain = plain_method(control, model)
        if plain is None:
            continue
        plainly = control.trainings[model, plain]
        reference = _seconds(plainly, "two_device")
        for (of, method), row in control.trainings.items():
            if of == model and row["algorithm"] == "regularised" and reference:
                sentence = (
                    f"If head and model had a device each, {control.titles[method]} ({row['schedule']}, "
                    f"{row['steps']} steps) would take {fixed(_seconds(row, 'two_device') / reference, 2)} times as "
                    f"long as plain fine-tuning ({plainly['steps']} steps)."
                )
                said.append(_of_model(control, model, sentence))
    return " ".join(said)


def _wins(control: Control) -> str:
    said = []
    for model, metrics in control.wins.items():
        decided = [row for row in metrics["rates"] if row["value"] is not None]
        if not decided:  # the methods have no prompt in common
            continue
        pairs = len(decided) // 2
        agreed, averaged = (
            sum(row["value"] is not None and row["low"] > 0.5 for row in metrics[rates])
            for rates in ("rates", "rates_averaged")
        )
        sentence = (
            f"The judge is {judge_name(control, model)}. {metrics['ties']:.0%} of the comparisons are ties where both "
            f"orders have to agree, and {metrics['position_bias']:.0%} of its verdicts prefer what stands first (a "
            f"judge that order does not sway has 50%). The interval leaves out one half in {agreed} of {pairs} pairs "
            f"of methods where both orders have to agree, and in {averaged} by the mean of both orders."
        )
        said.append(_of_model(control, model, sentence))
        if metrics["judge"] == "untuned":
            said.append(
                "A judge as small as the models that it judges shows little more than which text it would have written."
            )
    return " ".join(said)


def _jigsaw(control: Control) -> str:
    said = []
    for (model, condition), row in control.comments.items():
        # No area where the test comments are of one kind alone, no toxicity where nothing could be scored.
        if any(row[name]["value"] is None for name in ("prompting", "head", "avgtox")):
            continue
        title = CONDITION_TITLES[condition]
        sentence = (
            f"{title[0].upper() + title[1:]}: "
            f"ROC-AUC {fixed(row['prompting']['value'], 3)} by prompting and {fixed(row['head']['value'], 3)} with a "
            f"head, average toxicity of its own text {fixed(row['avgtox']['value'], 3)}."
        )
        said.append(_of_model(control, model, sentence))
    return " ".join(said)


def _tasks(control: Control) -> str:
    if not control.methods:
        return ""
    from polydetox.utility.tasks import local_tasks

    asked = control._asked("attribute_eval", method="base")["suites"]
    ours = [suite_title(name) for name, suite in asked.items() if set(suite["tasks"]) <= set(local_tasks())]
    if not ours:
        return "Utility is measured on the paper's tasks."
    return (
        f"Instead of the paper's tasks this run asks what was written for this project ({listing(ours)}): a few dozen "
        "easy questions in the same two forms, whose numbers can be compared with each other only."
    )
