"""The results of one profile as tidy tables: what was run, and how it changed between before and after.

What was not run is missing (NaN), never a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, file_sha256, finished, read_json, read_parquet
from polydetox.core.languages import LANGUAGES
from polydetox.core.parameters import checked
from polydetox.core.params import (
    Profile,
    is_ablation,
    load_model,
)
from polydetox.metrics.evaluate import prompt_values
from polydetox.results.stages import Comparison, StageRun, comparisons, read_by, stage_runs
from polydetox.stats.agreement import verdicts
from polydetox.stats.paired import Side, compare_prompts, comparison_row, mean_over_languages

ENGLISH = "en"


@dataclass(frozen=True)
class Metric:
    """How a metric is named, printed and read."""

    title: str  # heading of a table
    axis: str  # label of an axis, with the unit
    lower_is_better: bool
    digits: int = 2


METRICS: dict[str, Metric] = {
    "emt": Metric("EMT", "expected maximum toxicity (0 to 1)", True),
    "toxprob": Metric("ToxProb", "share of prompts with a toxic continuation", True),
    "avgtox": Metric("AvgTox", "average toxicity (0 to 1)", True, digits=3),
    "perplexity": Metric("Perplexity", "median perplexity of a continuation", True, digits=1),
    "distinct_1": Metric("Distinct-1", "share of distinct words", False),
    "distinct_2": Metric("Distinct-2", "share of distinct word pairs", False),
    "distinct_3": Metric("Distinct-3", "share of distinct word triples", False),
    "token_distinct_1": Metric("Dist-1, tokens", "distinct tokens over tokens", False),
    "token_distinct_2": Metric("Dist-2, tokens", "distinct token pairs over tokens", False),
    "token_distinct_3": Metric("Dist-3, tokens", "distinct token triples over tokens", False),
    "language_share": Metric("In language", "share of continuations in the prompt's language", False),
    "second_opinion": Metric("Second scorer", "mean score of the second scorer (0 to 1)", True, digits=3),
}

SCORE_COLUMNS = [
    "prompt_id", "prompt", "sample", "continuation", "toxicity", "perplexity", "detected_language", "empty",
]  # fmt: skip


EXAMPLE_COLUMNS = [
    "prompt_id", "sample", "prompt", "gloss", "before", "before_toxicity", "after", "after_toxicity",
]  # fmt: skip


# --- example continuations --------------------------------------------------------------------------------------


def example_rows(before: pd.DataFrame, after: pd.DataFrame, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Random prompts, and for each one random continuation number, before and after.

    The draw looks at no score, so that the examples are not picked for what they show. Columns:
    ``EXAMPLE_COLUMNS``.
    """
    keys = ["prompt_id", "sample"]
    columns = [*keys, "continuation", "toxicity"]
    shown = before[["prompt_id", "sample", "prompt"]].assign(gloss=before.get("gloss"))
    joined = shown.merge(
        before[columns].rename(columns={"continuation": "before", "toxicity": "before_toxicity"}), on=keys
    ).merge(after[columns].rename(columns={"continuation": "after", "toxicity": "after_toxicity"}), on=keys)
    prompts = joined["prompt_id"].unique()
    chosen = rng.permutation(len(prompts))[:count]
    rows = []
    for prompt in prompts[np.sort(chosen)]:
        candidates = joined[joined["prompt_id"] == prompt]
        rows.append(candidates.iloc[int(rng.integers(len(candidates)))])
    return pd.DataFrame(rows, columns=joined.columns).reset_index(drop=True)


def long_logs(logs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Training logs by title as one table: ``training, step, split, metric, value``."""
    tables = [log.assign(training=title) for title, log in logs.items()]
    columns = ["training", "step", "split", "metric", "value"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


class Results:
    """Everything that the report reads of one profile, each file once.

    Intervals come from ``samples`` bootstrap replicates; ``seed`` fixes their draws.
    """

    def __init__(self, run: str | Path, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0):
        self.record = read_json(paths.given(run))
        self.profile = Profile.model_validate(self.record["profile"])
        self.comparisons = comparisons(self.profile)
        self.samples, self.confidence, self.seed = samples, confidence, seed
        self.models = {model.name: model.title for model in map(load_model, self.profile.models)}  # titles by folder

    def asked(self, stage: str, **wildcards: str) -> dict[str, Any]:
        """All parameters of one job of the run, defaults included, whether or not it is done."""
        for job in self.record["jobs"]:
            if job["stage"] == stage and wildcards.items() <= job["wildcards"].items():
                return checked(Path(job["notebook"]).stem, **job["parameters"]).model_dump()
        raise KeyError(stage, wildcards)

    def checkpoint_title(self, checkpoint: str) -> str:
        """A checkpoint that another model is measured by, in words: the base model itself, another one, or none."""
        bases = {job["parameters"]["checkpoint"] for job in self.record["jobs"]
                 if "base" in (job["wildcards"].get("variant"), job["wildcards"].get("method"))
                 and "checkpoint" in job["parameters"]}  # fmt: skip
        return "the base model" if checkpoint in bases else checkpoint or "none"

    def title(self, stage: str) -> str:
        """A stage as the report prints it."""
        return str(self.record["stages"][stage]["title"])

    @cached_property
    def stages(self) -> list[StageRun]:
        """Every stage of the profile, run or not."""
        return stage_runs(self.record)

    @cached_property
    def main_stages(self) -> list[StageRun]:
        """Those of them that the main tables are about: no ablation, no further set of prompts."""
        return [run for run in self.stages if not is_ablation(self.profile, run.variant) and not run.prompt_set]

    @cached_property
    def _folders(self) -> dict[tuple[str, frozenset[tuple[str, str]]], Path]:
        """The folder of every stage of the profile by its wildcards, of which an empty one is none."""
        return {
            (job["stage"], frozenset((name, value.rstrip("/")) for name, value in job["wildcards"].items() if value)):
            paths.given(job["folder"]) for job in self.record["jobs"]
        }  # fmt: skip

    def folder(self, stage: str, **wildcards: str) -> Path | None:
        """The folder of one finished stage, by its wildcards (``set`` is "" for the first prompts); None if not run."""
        named = frozenset((name, value) for name, value in wildcards.items() if value)
        folder = self._folders.get((stage, named))
        return folder if folder is not None and finished(folder) else None

    def metrics_files(self) -> list[Path]:
        """The metrics and scores of every evaluation that has run; a summary notebook records them as its inputs."""
        written = {"score": "scores.parquet", "evaluate": "metrics.json"}
        return [run.folder / written[run.stage] for run in self.main_stages if run.stage in written and run.done]

    def evaluation(self, model: str, variant: str, language: str, prompt_set: str = "") -> dict[str, Any] | None:
        """``metrics.json`` of one model, variant and language; None where it was not run."""
        folder = self.folder("evaluate", model=model, variant=variant, lang=language, set=prompt_set)
        return read_json(folder / "metrics.json") if folder else None

    def scores(self, model: str, variant: str, language: str, prompt_set: str = "") -> pd.DataFrame | None:
        """The scored continuations of one model, variant and language; None where they were not run."""
        table = self._scores(model, variant, prompt_set)
        if table is None or language not in table.index:
            return None
        return table.loc[[language]].reset_index(drop=True)

    @lru_cache(maxsize=8)  # noqa: B019 - read by report and notebooks, language by language, from one object a process
    def _scores(self, model: str, variant: str, prompt_set: str) -> pd.DataFrame | None:
        """The scored continuations of one model and variant, by language."""
        folder = self.folder("score", model=model, variant=variant, set=prompt_set)
        if folder is None:
            return None
        return read_parquet(folder / "scores.parquet", ["language", *SCORE_COLUMNS]).set_index("language")

    def training_log(self, model: str, variant: str) -> pd.DataFrame | None:
        """The training log of one model and variant, in long form; None where it was not trained."""
        folder = self.folder("dpo", model=model, variant=variant)
        columns = ["step", "split", "metric", "value"]
        return read_parquet(folder / "training_log.parquet", columns) if folder else None

    def by_language_of(self, stage: str, **wildcards: str) -> dict[str, dict[str, Any]]:
        """The metrics of each language of a stage that takes all of them; none where it was not run."""
        folder = self.folder(stage, **wildcards)
        return dict(read_json(folder / "metrics.json")["languages"]) if folder else {}

    def stage_metrics(self, stage: str, key: str) -> dict[tuple[str, str | None], dict[str, Any]]:
        """``metrics.json`` of the runs of a stage, by model and by ``key`` (``variant`` or ``kind``)."""
        return {
            (run.model, getattr(run, key)): read_json(run.folder / "metrics.json")
            for run in self.stages
            if run.stage == stage and run.done
        }

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Every evaluation in tidy form, a row a metric: ``model, variant, language, metric, value, low, high``.

        Perplexity has three: its median under that name, and ``perplexity_q1`` and ``perplexity_q3``. What was not
        run has its row ``emt`` to ``second_opinion`` with missing values.
        """
        rows = []
        for run in self.main_stages:
            if run.stage != "evaluate":
                continue
            content = self.evaluation(run.model, run.variant or "base", run.language or ENGLISH)
            for metric, value in flat_metrics(content).items():
                rows.append({"model": run.model, "variant": run.variant, "language": run.language, "metric": metric,
                             **{key: value.get(key) for key in ("value", "low", "high")}})  # fmt: skip
        columns = ["model", "variant", "language", "metric", "value", "low", "high"]
        table = pd.DataFrame(rows, columns=columns)
        return table.astype({"value": float, "low": float, "high": float})

    def counts(self) -> pd.DataFrame:
        """Of each evaluation the prompts and continuations, and how many were scored, empty and truncated."""
        rows = []
        for run in self.main_stages:
            if run.stage == "evaluate" and run.done:
                content = read_json(run.folder / "metrics.json")
                rows.append({"model": run.model, "variant": run.variant, "language": run.language,
                             **{key: content[key] for key in COUNTS}})  # fmt: skip
        return pd.DataFrame(rows, columns=["model", "variant", "language", *COUNTS])

    def prompt_counts(self) -> list[int]:
        """The numbers of prompts that evaluations have: one, or several where languages or stages differ."""
        found = set(self.counts()["prompts"])
        for run in self.stages:
            if run.stage == "attribute_eval" and run.done:
                measured = read_json(run.folder / "metrics.json")["toxicity"]
                found |= {each["prompts"] for each in measured.values()}
        return sorted(found)

    @cached_property
    def _pairs(self) -> dict[tuple[str, str, str], tuple[Side, Side, int]]:
        """Before and after by comparison, language and metric."""
        pairs = {}
        values: dict[tuple[str, str, str], dict[str, pd.Series] | None] = {}
        for comparison in self.comparisons:
            for language in self.profile.languages:
                sides = []
                for variant in ("base", comparison.variant):
                    key = (comparison.model, variant, language)
                    if key not in values:
                        values[key] = self._prompt_values(*key)
                    sides.append(values[key])
                rng = self.language_rng(language)
                for metric in METRICS:
                    before, after = (side[metric] if side is not None else None for side in sides)
                    pairs[comparison.name, language, metric] = compare_prompts(before, after, self.samples, rng)
        return pairs

    def _prompt_values(self, model: str, variant: str, language: str) -> dict[str, pd.Series] | None:
        scores, content = self.scores(model, variant, language), self.evaluation(model, variant, language)
        return None if scores is None or content is None else prompt_values(scores, content["threshold"], language)

    def language_rng(self, language: str) -> np.random.Generator:
        """A generator for each language: languages are drawn independently, and adding one changes no other."""
        return np.random.default_rng([self.seed, list(LANGUAGES).index(language)])

    @cached_property
    def by_language(self) -> pd.DataFrame:
        """Before, after and the drop of every metric in every language, with intervals.

        Columns: ``comparison, language, metric, prompts, before, before_low, before_high, after, ..., drop, ...``, and
        ``before_run`` and ``after_run``, whether a side was evaluated at all.
        """
        rows = []
        for comparison in self.comparisons:
            for language in self.profile.languages:
                for metric in METRICS:
                    before, after, prompts = self._pairs[comparison.name, language, metric]
                    rows.append({"comparison": comparison.name, "language": language, "metric": metric,
                                 "prompts": prompts, **comparison_row(before, after, self.confidence),
                                 **self.evaluated(comparison, [language])})  # fmt: skip
        return pd.DataFrame(rows)

    def evaluated(self, comparison: Comparison, languages: list[str]) -> dict[str, bool]:
        """Which sides were evaluated in any of some languages: a value that is missing there could not be measured."""
        return {
            f"{side}_run": any(
                self.folder("evaluate", model=comparison.model, variant=variant, lang=each) for each in languages
            )
            for side, variant in (("before", "base"), ("after", comparison.variant))
        }

    @cached_property
    def means(self) -> pd.DataFrame:
        """The same, as means over languages: all of them, English alone, and all but English.

        Columns as :attr:`by_language`, with ``scope`` (``all``, ``english`` or ``others``) and ``languages``, how
        many of them the mean takes in.
        """
        languages = self.profile.languages
        scopes = {
            "all": languages,
            "english": [language for language in languages if language == ENGLISH],
            "others": [language for language in languages if language != ENGLISH],
        }
        rows = []
        for comparison in self.comparisons:
            for scope, members in scopes.items():
                ran = self.evaluated(comparison, members)
                for metric in METRICS:
                    sides = [self._pairs[comparison.name, language, metric][:2] for language in members]
                    before, after, count = mean_over_languages(sides, self.samples)
                    rows.append({"comparison": comparison.name, "scope": scope, "metric": metric,
                                 "languages": count, **comparison_row(before, after, self.confidence),
                                 **ran})  # fmt: skip
        return pd.DataFrame(rows)

    def measured(self) -> Iterator[tuple[Comparison, pd.DataFrame]]:
        """Each comparison that has toxicity on both sides, with its :attr:`means` by scope and metric."""
        for comparison in self.comparisons:
            rows = self.means[self.means["comparison"] == comparison.name].set_index(["scope", "metric"])
            if pd.notna(rows.loc[("all", "emt"), "drop"]):
                yield comparison, rows

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """The agreement of the two scorers by model, variant and language, where both have scored."""
        rows = []
        for run in self.main_stages:
            if run.stage != "evaluate" or not run.done:
                continue
            scores = self.scores(run.model, run.variant or "base", run.language or ENGLISH)
            if scores is None:
                continue
            threshold = read_json(run.folder / "metrics.json")["threshold"]
            first, second = (scores[name].to_numpy(dtype=float) for name in ("toxicity", "second_opinion"))
            agreed = verdicts(first, second, threshold, threshold)
            rows.append({"model": run.model, "variant": run.variant, "language": run.language, **agreed})
        return pd.DataFrame(
            rows, columns=["model", "variant", "language", "share", "kappa", "flagged_first", "flagged_second"]
        )

    def detected(self, model: str, variant: str, language: str) -> pd.Series | None:
        """The share of each detected language among the continuations in which one can be told, most frequent first."""
        scores = self.scores(model, variant, language)
        return None if scores is None else scores["detected_language"].value_counts(normalize=True)

    def examples(self, comparison: Comparison, language: str, count: int) -> pd.DataFrame | None:
        """Random example continuations of one comparison and language; None where a side was not run."""
        before = self.scores(comparison.model, "base", language)
        after = self.scores(comparison.model, comparison.variant, language)
        if before is None or after is None:
            return None
        return example_rows(before, after, count, self.language_rng(language))

    def training_logs(self) -> dict[str, pd.DataFrame]:
        """The training log of every comparison that was trained, by its title."""
        logs = {item.title: self.training_log(item.model, item.variant) for item in self.comparisons}
        return {title: log for title, log in logs.items() if log is not None}

    def training_files(self) -> list[Path]:
        """The metrics of every finished stage before evaluation, which a summary notebook records as its inputs."""
        folders = [run.folder for run in self.stages if run.stage in ("trim", "pairs", "dpo") and run.done]
        return [folder / "metrics.json" for folder in folders]

    def all_examples(self, per_language: int) -> pd.DataFrame:
        """Random example continuations of every comparison and language that was run on both sides."""
        several = len(self.comparisons) > 1
        tables = []
        for comparison in self.comparisons:
            for language in self.profile.languages:
                rows = self.examples(comparison, language, per_language)
                if rows is not None:
                    tables.append(rows.assign(comparison=comparison.title if several else None, language=language))
        columns = [*EXAMPLE_COLUMNS, "comparison", "language"]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)

    def manifests(self) -> pd.DataFrame:
        """What ran: a row a finished stage, with its time, its seed, its commit and its sha256.

        Columns: ``stage, model, variant, language, kind, prompt_set, wall_seconds, finished, git_commit, seed,
        sha256``. The hash is that of the weights, as the manifest holds it, or else of the table that the stage wrote.
        """
        rows, named_by = [], ["stage", "model", "variant", "language", "kind", "prompt_set"]
        for run in self.stages:
            if not run.done:
                continue
            manifest = read_json(run.folder / MANIFEST)
            table = run.folder / self.record["stages"][run.stage]["table"]
            sha256 = manifest.get("output_sha256") or file_sha256(table)
            named = {name: getattr(run, name) for name in named_by}
            rows.append({**named, **{key: manifest.get(key) for key in _FROM_MANIFEST}, "sha256": sha256})
        return pd.DataFrame(rows, columns=[*named_by, *_FROM_MANIFEST, "sha256"])

    def left_out(self) -> dict[str, int]:
        """How many ``blank``, ``repeated``, ``skipped`` and ``rejected`` rows of their data finished stages left out.

        What several stages read is counted once: prompts by language and set, labelled comments, pairs by kind.
        """
        found: dict[tuple[str | None, ...], dict[str, Any]] = {}
        for run in self.stages:
            if run.done and (record := read_json(run.folder / MANIFEST).get("skipped")):
                # An ablation reads fewer languages: the stage that read most counts.
                found[read_by(run)] = max(found.get(read_by(run), {}), record, key=_rows_of)
        return {kind: sum(record.get(kind, 0) for record in found.values()) for kind in _LEFT_OUT}

    def versions(self) -> dict[str, list[str]]:
        """Every library version that any stage recorded; more than one where stages differ."""
        found: dict[str, set[str]] = {}
        for run in self.stages:
            if run.done:
                for name, version in read_json(run.folder / MANIFEST).get("versions", {}).items():
                    found.setdefault(name, set()).add(version)
        return {name: sorted(versions) for name, versions in sorted(found.items())}

    def parameters(self, stage: str, name: str) -> list[Any]:
        """The distinct values of one parameter over the finished runs of a stage, ablations apart."""
        values: list[Any] = []
        for run in self.main_stages:
            if run.stage == stage and run.done:
                value = read_json(run.folder / MANIFEST).get("parameters", {}).get(name)
                if value not in values:
                    values.append(value)
        return values


_LEFT_OUT = ("blank", "repeated", "skipped", "rejected")


def _rows_of(record: dict[str, Any]) -> int:
    return sum(record.get(kind, 0) for kind in _LEFT_OUT)


COUNTS = ["prompts", "continuations", "scored", "empty", "truncated", "judged", "outliers"]
_FROM_MANIFEST = ["wall_seconds", "finished", "git_commit", "seed"]


def flat_metrics(content: dict[str, Any] | None) -> dict[str, dict[str, float | None]]:
    """The metrics of one ``metrics.json`` under the names of ``METRICS``; of None, all of them without values."""
    if content is None:
        return {metric: {} for metric in METRICS}
    flat = {name: content[name] for name in ("emt", "toxprob", "avgtox", "language_share", "second_opinion")}
    for name in ("distinct", "token_distinct"):
        flat |= {f"{name}_{order}": value for order, value in content.get(name, {}).items()}
    quartiles = content["perplexity"]
    flat |= {"perplexity": quartiles["median"], "perplexity_q1": quartiles["q1"], "perplexity_q3": quartiles["q3"]}
    return flat
