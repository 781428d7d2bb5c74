"""The results of one profile as tidy tables. What was not run is missing (NaN), never a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, finished, read_column, read_json, read_parquet
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.core.parameters import checked
from polydetox.core.params import Profile, is_ablation, load_model
from polydetox.metrics.evaluate import prompt_values
from polydetox.results.stages import Comparison, StageRun, comparisons, read_by, stage_runs, variant_title
from polydetox.results.tables import listing
from polydetox.stats.agreement import verdicts
from polydetox.stats.paired import PromptSamples, Side, compare_prompts, comparison_row, mean_over_languages

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
    "toxprob": Metric("ToxProb", "fraction of prompts with a toxic continuation", True),
    "avgtox": Metric("AvgTox", "average toxicity (0 to 1)", True, digits=3),
    "perplexity": Metric("Perplexity", "median perplexity of a continuation", True, digits=1),
    "distinct_1": Metric("Distinct-1", "fraction of distinct words", False),
    "distinct_2": Metric("Distinct-2", "fraction of distinct word bigrams", False),
    "distinct_3": Metric("Distinct-3", "fraction of distinct word trigrams", False),
    "token_distinct_1": Metric("Dist-1, tokens", "distinct tokens over tokens", False),
    "token_distinct_2": Metric("Dist-2, tokens", "distinct token bigrams over tokens", False),
    "token_distinct_3": Metric("Dist-3, tokens", "distinct token trigrams over tokens", False),
    "language_rate": Metric("In language", "fraction of continuations in the prompt's language", False, digits=3),
    "secondary_toxicity": Metric("Second scorer", "mean score of the second scorer (0 to 1)", True, digits=3),
    "secondary_perplexity": Metric("Perplexity, second", "median perplexity, second reference model", True, digits=1),
}

COUNTS = ["prompts", "continuations", "scored", "empty", "truncated", "with_perplexity", "outliers"]
MANIFEST_COLUMNS = ["stage", "model", "variant", "language", "kind", "prompt_set", "run", "wall_seconds", "finished",
                    "git_commit", "seed", "parameters", "versions", "skipped", "output_sha256"]  # fmt: skip
SKIPPED = ["blank", "repeated", "skipped", "rejected"]
IDENTITY = ["model", "variant", "language"]
_SCORE_COLUMNS = ["language", "prompt_id", "prompt", "sample", "continuation", "toxicity", "perplexity",
                  "detected_language", "empty"]  # fmt: skip


class Results:
    """Everything that the report reads of one profile, each file once; ``samples`` are bootstrap replicates."""

    def __init__(self, run: str | Path, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0):
        self.record = read_json(paths.given(run))
        if not isinstance(self.record, dict) or "profile" not in self.record:
            raise UserError(f"{run}: not the record of a run; delete it, and give the command of the run again")
        self.profile = Profile.model_validate(self.record["profile"])
        self.comparisons = comparisons(self.profile)
        self.samples, self.confidence, self.seed = samples, confidence, seed
        self.models = {model.name: model.title for model in map(load_model, self.profile.models)}  # titles by folder

    @cached_property
    def stages(self) -> list[StageRun]:
        """Every stage of the profile, run or not."""
        return stage_runs(self.record)

    @cached_property
    def main_stages(self) -> list[StageRun]:
        """Those of them that the main tables are about: no ablation, no further set of prompts."""
        return [run for run in self.stages if not is_ablation(self.profile, run.variant) and not run.prompt_set]

    def title(self, stage: str) -> str:
        """A stage as the report prints it."""
        return str(self.record["stages"][stage]["title"])

    def subject(self, run: StageRun) -> str:
        """What a run is about beside its model and language: ``base model``, ``on-policy``."""
        configuration = run.model if run.model not in self.models else None  # of the synthetic setting
        variant = run.variant and variant_title(self.profile, run.variant)
        prompts = run.prompt_set and (self.profile.more_prompts[run.prompt_set].title or run.prompt_set)
        return ", ".join(filter(None, [configuration, variant, run.kind, prompts]))

    def asked(self, stage: str, **wildcards: str) -> dict[str, Any]:
        """All parameters of one job of the run, defaults included, whether or not it is done."""
        for job in self.record["jobs"]:
            if job["stage"] == stage and wildcards.items() <= job["wildcards"].items():
                return checked(Path(job["notebook"]).stem, **job["parameters"]).model_dump()
        raise KeyError(stage, wildcards)

    def checkpoint_title(self, checkpoint: str) -> str:
        """A checkpoint that another model is measured by, in words: the base model itself, another one, or none."""
        bases = {job["parameters"]["checkpoint"] for job in self.record["jobs"]
                 if "base" in (job["wildcards"].get("variant"), job["wildcards"].get("algorithm"))
                 and "checkpoint" in job["parameters"]}  # fmt: skip
        return "the base model" if checkpoint in bases else checkpoint or "none"

    def reference_models(self) -> str:
        """The models under which perplexity was measured, in words; empty where it was not."""
        found = [self.checkpoint_title(model) for model in self.parameters("score", "reference_model")]
        return listing(found) if found else ""

    def evaluated(self, comparison: Comparison, languages: list[str]) -> dict[str, bool]:
        """Which sides were evaluated in any of some languages: a value that is missing there could not be measured."""
        sides = {"before_run": "base", "after_run": comparison.variant}
        return {side: any(self.folder("evaluate", model=comparison.model, variant=variant, lang=language)
                          for language in languages) for side, variant in sides.items()}  # fmt: skip

    @cached_property
    def _folders(self) -> dict[tuple[str, frozenset[tuple[str, str]]], Path]:
        """The folder of every job by its stage and its wildcards that are not empty."""
        return {(job["stage"], _given(job["wildcards"])): paths.given(job["folder"]) for job in self.record["jobs"]}

    def folder(self, stage: str, **wildcards: str) -> Path | None:
        """The folder of one finished stage, by its wildcards (``set`` is "" for the first prompts); None if not run."""
        folder = self._folders.get((stage, _given(wildcards)))
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
        folder = self.folder("score", model=model, variant=variant, set=prompt_set)
        return read_parquet(folder / "scores.parquet", _SCORE_COLUMNS).set_index("language") if folder else None

    def by_language_of(self, stage: str, **wildcards: str) -> dict[str, dict[str, Any]]:
        """The metrics of each language of a stage that takes all of them; none where it was not run."""
        folder = self.folder(stage, **wildcards)
        return dict(read_json(folder / "metrics.json")["languages"]) if folder else {}

    def stage_metrics(self, stage: str, key: str) -> dict[tuple[str, str | None], dict[str, Any]]:
        """``metrics.json`` of the runs of a stage, by model and by ``key`` (``variant`` or ``kind``)."""
        runs = [run for run in self.stages if run.stage == stage and run.done]
        return {(run.model, getattr(run, key)): read_json(run.folder / "metrics.json") for run in runs}

    @cached_property
    def _evaluations(self) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
        """Model, variant and language of every evaluation of the main tables, and its metrics where it has run."""
        runs = [run for run in self.main_stages if run.stage == "evaluate"]
        return [({name: getattr(run, name) for name in IDENTITY},
                 read_json(run.folder / "metrics.json") if run.done else None) for run in runs]  # fmt: skip

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Every evaluation, a row a metric: ``model, variant, language, metric, value, low, high``; NaN: not run."""
        rows = [{**of, "metric": metric, **{key: value.get(key) for key in ("value", "low", "high")}}
                for of, content in self._evaluations for metric, value in _flat(content).items()]  # fmt: skip
        table = pd.DataFrame(rows, columns=[*IDENTITY, "metric", "value", "low", "high"])
        return table.astype({"value": float, "low": float, "high": float})

    def counts(self) -> pd.DataFrame:
        """Of each evaluation the prompts and continuations, and how many were scored, empty and truncated."""
        rows = [{**of, **content} for of, content in self._evaluations if content]
        return pd.DataFrame(rows, columns=[*IDENTITY, *COUNTS])

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """The agreement of the two scorers by model, variant and language, where both have scored."""
        rows = []
        for of, content in self._evaluations:
            scores = self.scores(of["model"], of["variant"], of["language"])
            if content and scores is not None:
                first, second = (scores[name].to_numpy(dtype=float) for name in ("toxicity", "secondary_toxicity"))
                rows.append({**of, **verdicts(first, second, content["threshold"], content["threshold"])})
        return pd.DataFrame(rows, columns=[*IDENTITY, "same_verdict", "kappa", "flagged_first", "flagged_second"])

    def language_rng(self, language: str) -> np.random.Generator:
        """A generator for each language, of what is chosen at random there: adding one changes no other."""
        return np.random.default_rng([self.seed, list(LANGUAGES).index(language)])

    @cache  # noqa: B019 - of one object a process
    def prompt_samples(self, prompt_set: str) -> PromptSamples:
        """The bootstrap samples of a set's prompts (``""``: the first): every interval over them takes these."""
        scored = [run for run in self.stages if run.stage == "score" and run.done]
        files = [run.folder / "scores.parquet" for run in scored if (run.prompt_set or "") == prompt_set]
        ids = dict.fromkeys(name for file in files for name in read_column(file, "prompt_id").unique())
        return PromptSamples(list(ids), self.samples, self.seed)

    @cache  # noqa: B019 - of one object a process
    def prompt_values(self, model: str, variant: str, language: str) -> dict[str, pd.Series | None]:
        """Each metric's value for each prompt; None where it was not evaluated."""
        scores, content = self.scores(model, variant, language), self.evaluation(model, variant, language)
        if scores is None or content is None:
            return dict.fromkeys(METRICS)
        return {**prompt_values(scores, content["threshold"], language)}

    @cached_property
    def _pairs(self) -> dict[tuple[str, str, str], tuple[Side, Side, int]]:
        """Before and after by comparison, language and metric."""
        pairs = {}
        for comparison in self.comparisons:
            for language in self.profile.languages:
                before, after = (self.prompt_values(comparison.model, side, language)
                                 for side in ("base", comparison.variant))  # fmt: skip
                for metric in METRICS:
                    sides = compare_prompts(before[metric], after[metric], self.prompt_samples(""))
                    pairs[comparison.name, language, metric] = sides
        return pairs

    @cached_property
    def by_language(self) -> pd.DataFrame:
        """Before, after and drop of every metric in every language: ``before, before_low, before_high ...``, and
        ``before_run`` and ``after_run``, whether a side was evaluated at all.
        """
        named = {comparison.name: comparison for comparison in self.comparisons}
        return pd.DataFrame([
            {"comparison": name, "language": language, "metric": metric, "prompts": prompts,
             **comparison_row(before, after, self.confidence), **self.evaluated(named[name], [language])}
            for (name, language, metric), (before, after, prompts) in self._pairs.items()
        ])  # fmt: skip

    @cached_property
    def means(self) -> pd.DataFrame:
        """The same as means over the ``languages`` of a ``scope``: ``all``, ``english`` or ``others``."""
        languages, rows = self.profile.languages, []
        english = [language for language in languages if language == ENGLISH]
        others = [language for language in languages if language != ENGLISH]
        for comparison in self.comparisons:
            for scope, members in (("all", languages), ("english", english), ("others", others)):
                ran = self.evaluated(comparison, members)
                for metric in METRICS:
                    sides = [self._pairs[comparison.name, language, metric][:2] for language in members]
                    before, after, count = mean_over_languages(sides, self.samples)
                    rows.append({"comparison": comparison.name, "scope": scope, "metric": metric, "languages": count,
                                 **comparison_row(before, after, self.confidence), **ran})  # fmt: skip
        return pd.DataFrame(rows)

    def measured(self) -> Iterator[tuple[Comparison, pd.DataFrame]]:
        """Each comparison that has toxicity on both sides, with its :attr:`means` by scope and metric."""
        for comparison in self.comparisons:
            rows = self.means[self.means["comparison"] == comparison.name].set_index(["scope", "metric"])
            if pd.notna(rows.loc[("all", "emt"), "drop"]):
                yield comparison, rows

    @cached_property
    def manifests(self) -> pd.DataFrame:
        """The manifests of the finished stages, a row each, with the fields of its ``run`` and the run itself."""
        rows = [{**read_json(run.folder / MANIFEST), **vars(run), "run": run} for run in self.stages if run.done]
        return pd.DataFrame(rows, columns=MANIFEST_COLUMNS)

    def parameters(self, stage: str, name: str) -> list[Any]:
        """The distinct values of one parameter over the finished runs of a stage, ablations apart."""
        rows = self.manifests[self.manifests["stage"] == stage]
        return list(dict.fromkeys(row.parameters.get(name) for row in rows.itertuples() if row.run in self.main_stages))

    def skipped(self) -> dict[str, int]:
        """How many rows of their data finished stages skipped, by reason; what several stages read is counted once."""
        records = self.manifests.dropna(subset=["skipped"])
        rows = [{"read": read_by(row.run), **row.skipped} for row in records.itertuples()]
        table = pd.DataFrame(rows, columns=["read", *SKIPPED]).fillna(0)
        most = table.loc[table[SKIPPED].sum(axis=1).sort_values(ascending=False).index].drop_duplicates("read")
        return {kind: int(most[kind].sum()) for kind in SKIPPED}


def _given(wildcards: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((name, value.rstrip("/")) for name, value in wildcards.items() if value)


def _flat(content: dict[str, Any] | None) -> dict[str, dict[str, float | None]]:
    """The metrics of one ``metrics.json`` under the names of ``METRICS``; of None, all of them without values."""
    if content is None:
        return {metric: {} for metric in METRICS}
    flat = {name: content[name] for name in ("emt", "toxprob", "avgtox", "language_rate", "secondary_toxicity")}
    for name in ("distinct", "token_distinct"):
        flat |= {f"{name}_{order}": value for order, value in content.get(name, {}).items()}
    quartiles = {"perplexity": "median", "perplexity_q1": "q1", "perplexity_q3": "q3"}
    flat["secondary_perplexity"] = content.get("secondary_perplexity", {})
    return flat | {metric: content["perplexity"][quartile] for metric, quartile in quartiles.items()}
