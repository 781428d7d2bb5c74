"""What the stages of attribute control have written, as tidy tables.

Methods stand in the profile's order, ``base`` (the base model) first. What was not run is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.attribute_control.attributes import SCORE_COLUMNS
from polydetox.benchmarks.harness import ITEM_COLUMNS, by_task, suite_replicates
from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, read_json, read_parquet
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.core.params import JIGSAW_CONDITIONS, control_languages, control_methods, load_model
from polydetox.metrics.evaluate import mean_by_prompt
from polydetox.metrics.language import language_rate
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.results.collect import ENGLISH, Results
from polydetox.results.published import paper_table
from polydetox.stats.bootstrap import percentile_interval
from polydetox.stats.paired import Side, compare_prompts, comparison_row, mean_over_languages

PAPER = "Meng et al. (2024)"


# The paper's method that is trained as a method of a profile, by its algorithm; the regulariser has two.
_PAPER_ALGORITHMS = {"plain": "baseline", "filtering": "filtering", "rl": "rl", "nado": "nado_decoding"}


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
        listed = self.profile.control.methods if self.profile.control else {}
        self.titles = {name: "base model" if name == "base" else listed[name].title or name for name in self.methods}

    def files(self) -> list[Path]:
        """The metrics of every finished stage, which the summary notebook records as its inputs."""
        stages = ("control_corpus", "regularise", "attribute_eval", "win_rate", "jigsaw_classify")
        return [run.folder / "metrics.json" for run in self.results.stages if run.stage in stages and run.done]

    @property
    def suites(self) -> list[str]:
        """The suites of multiple-choice tasks that the profile asks."""
        return list(self.asked("attribute_eval", method="base").get("suites", {}))

    def shots(self, suite: str) -> int:
        """How many examples are shown before a question of a suite."""
        return int(self.asked("attribute_eval", method="base")["suites"][suite]["shots"])

    def asked(self, stage: str, **identity: str) -> dict[str, Any]:
        """The parameters that the profile gives a stage; none where it has no attribute control."""
        if self.profile.control is None:
            return {}
        return self.results.asked(stage, **identity)

    def paper_method(self, method: str) -> str | None:
        """The paper's name of a method; None for the parallel schedule, of which the paper's tables do not tell."""
        if method == "base":
            return None
        settings = self.asked("regularise", method=method)
        if settings["algorithm"] != "regularised":
            return _PAPER_ALGORITHMS[settings["algorithm"]]
        if settings["schedule"] == "parallel":
            return None
        return "regularised_adaptive" if settings["regulariser_weight_neutral"] == 0.0 else "regularised"

    @property
    def excluded(self) -> int:
        """How many statements the corpora exclude, at most, since they belong to prompts that are evaluated."""
        runs = [run for run in self.results.stages if run.stage == "control_corpus" and run.done]
        return max((read_json(run.folder / "metrics.json").get("evaluated_skipped", 0) for run in runs), default=0)

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
        return self._metrics("attribute_eval", method=self.methods)

    @cached_property
    def trainings(self) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json`` of every method that was trained, with the wall time of its stage."""
        found = self._metrics("regularise", method=self.methods)
        for (model, method), metrics in found.items():
            manifest = read_json(self._folder("regularise", model, method) / MANIFEST)
            metrics["wall_seconds"] = manifest["wall_seconds"]
        return found

    @cached_property
    def wins(self) -> dict[str, dict[str, Any]]:
        """``metrics.json`` of the win rates of each model."""
        folders = {model: folder for model in self.models if (folder := self.results.folder("win_rate", model=model))}
        found = {model: read_json(folder / "metrics.json") for model, folder in folders.items()}
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
        return self._metrics("jigsaw_classify", condition=JIGSAW_CONDITIONS)

    def _metrics(self, stage: str, **wildcard: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
        ((wildcard_name, values),) = wildcard.items()
        return {
            (model, value): read_json(folder / "metrics.json")
            for model in self.models
            for value in values
            if (folder := self.results.folder(stage, model=model, **{wildcard_name: value}))
        }

    def _folder(self, stage: str, model: str, method: str) -> Path:
        """The folder of a stage that was run."""
        folder = self.results.folder(stage, model=model, method=method)
        assert folder is not None
        return folder

    # --- paired comparisons with the base model ---

    @cached_property
    def toxicity(self) -> pd.DataFrame:
        """The fraction of toxic continuations (%), as :meth:`_compared` has it."""
        return self._compared("toxic")

    @cached_property
    def in_language(self) -> pd.DataFrame:
        """The fraction of continuations in the prompt's language (%), of those whose language is detected."""
        return self._compared("in_language")

    @cached_property
    def repeated(self) -> pd.DataFrame:
        """The fraction of a continuation's words that repeat an earlier one (%)."""
        return self._compared("repeated")

    def _compared(self, measure: str) -> pd.DataFrame:
        """A measure of the continuations of every method against the base model, in every language.

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
            folder = self._folder("attribute_eval", model, method)
            scores = read_parquet(folder / "scores.parquet", SCORE_COLUMNS)
            measures: dict[str, dict[str, pd.Series]] = {"toxic": {}, "in_language": {}, "repeated": {}}
            for language, rows in scores.groupby("language", sort=False):
                threshold = metrics["threshold"]
                measures["toxic"][str(language)] = prompt_toxicity(rows, "toxicity", threshold)["toxic_fraction"]
                measures["in_language"][str(language)] = language_rate(rows, str(language))
                measures["repeated"][str(language)] = mean_by_prompt(rows, "repeated")
            found[model, method] = measures
        return found

    @cached_property
    def utility(self) -> pd.DataFrame:
        """The mean accuracy over suites of each method (%), with its interval: ``model, method, value, low, high``."""
        rows = []
        for model, method in self.evaluations:
            items = read_parquet(self._folder("attribute_eval", model, method) / "items.parquet", ITEM_COLUMNS)
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
            folder = self._folder("attribute_eval", model, method)
            scores = read_parquet(folder / "scores.parquet", SCORE_COLUMNS)
            language = ENGLISH if ENGLISH in self.languages else self.languages[0]
            mine = scores[scores["language"] == language]
            prompts = sorted(mine["prompt_id"].unique())
            chosen = prompts[int(np.random.default_rng(self.results.seed).integers(len(prompts)))]
            one = mine[(mine["prompt_id"] == chosen) & (mine["sample"] == mine["sample"].min())]
            title = self.titles[method] if len(self.models) == 1 else f"{self.models[model]}, {self.titles[method]}"
            tables.append(one.assign(comparison=title))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def undominated(control: Control, model: str) -> list[str]:
    """The methods than which no other is at once less toxic in English and more accurate, by their means.

    None where fewer than two methods have both measures.
    """
    toxic = control.toxicity.query("model == @model and language == @ENGLISH").set_index("method")["after"]
    able = control.utility.query("model == @model").set_index("method")["value"]
    points = pd.DataFrame({"toxic": toxic, "able": able}).reindex(toxic.index).dropna()
    if len(points) < 2:
        return []
    return [
        str(method) for method, point in points.iterrows()
        if not any(other["toxic"] <= point["toxic"] and other["able"] >= point["able"] and (other != point).any()
                   for _, other in points.iterrows())
    ]  # fmt: skip


def seconds(row: Mapping[str, Any], part: str) -> float:
    """What a part of a training took: CPU time, or on a GPU, of which that says nothing, time by the wall clock."""
    return float(row[f"{part}_seconds" if row.get("device") == "cuda" else f"{part}_cpu_seconds"])


def plain_method(control: Control, model: str) -> str | None:
    """The name of the method that is plain fine-tuning, where it was trained."""
    return next(
        (name for (of, name), row in control.trainings.items() if of == model and row["algorithm"] == "plain"), None
    )
