"""The chapter *Ablations*: what changes with the seed, the method, the learning rate, the pairs and the prompts.

Tunings that differ in one thing form a family. A family is measured on common ground: the languages, the prompts and
the continuations that each of its members has, since EMT and ToxProb grow with the number of continuations. What was
not run is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from polydetox.core.parameters import checked
from polydetox.core.params import ABLATED_SETTING, Profile, languages_of, load_model
from polydetox.data.catalogue import sources
from polydetox.metrics.evaluate import prompt_values
from polydetox.results.collect import METRICS, Results
from polydetox.results.stages import compared_variants, variant_title
from polydetox.stats.paired import Side, compare_prompts, comparison_row, mean_over_languages

Kind = Literal["seed", "method", "learning-rate", "pairs"]
KINDS: tuple[Kind, ...] = ("seed", "method", "learning-rate", "pairs")
SHOWN = ["emt", "toxprob", "perplexity", "distinct_2", "language_rate"]
MEAN = "mean"  # stands where a row is a mean over languages
BASE = "base model"

_SIDES = [f"{side}{end}" for side in ("before", "after", "drop") for end in ("", "_low", "_high")]
DIFFERENCE = ["difference", "difference_low", "difference_high"]  # of a member from the reference, after tuning
COLUMNS = ["family", "kind", "variant", "label", "setting", "language", "metric", "languages", "prompts",
           "continuations", *_SIDES, *DIFFERENCE]  # fmt: skip


# --- which tunings differ in what -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One tuning of a family."""

    variant: str
    label: str  # as tables and figures print it
    setting: float | str  # what distinguishes it


@dataclass(frozen=True)
class Family:
    """Tunings of one model that differ in one thing."""

    model: str  # folder name
    title: str
    kind: Kind
    reference: str  # the variant of the main tables
    members: tuple[Member, ...]  # the reference among them, in the order of the setting where it is a number

    def label(self, variant: str) -> str:
        """The label of one member."""
        return next(member.label for member in self.members if member.variant == variant)


METHODS = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}


def families(results: Results, kind: Kind) -> list[Family]:
    """The families of one kind that the profile asks for, run or not."""
    profile, found = results.profile, []
    for listed in profile.models:
        model = load_model(listed)
        compared = [variant for variant in compared_variants(profile, listed) if variant in profile.variants]
        # Of other kinds each variant of the main tables may have its own; other pairs are compared with the first.
        for reference in compared[:1] if kind == "pairs" else compared:
            settings = _pairs_of(profile, compared) if kind == "pairs" else _ablated(results, listed, kind, reference)
            if len(settings) > 1:
                several = len(compared) > 1 and kind != "pairs"
                title = f"{model.title} ({variant_title(profile, reference)})" if several else model.title
                found.append(Family(model.name, title, kind, reference, _members(profile, kind, settings)))
    return found


def _pairs_of(profile: Profile, variants: list[str]) -> dict[str, Any]:
    """The first variant of each kind of pairs."""
    kinds: dict[str, str] = {}
    for variant in variants:
        kinds.setdefault(profile.variants[variant].pairs, variant)
    return {variant: pairs for pairs, variant in kinds.items()}


def _ablated(results: Results, listed: str, kind: Kind, reference: str) -> dict[str, Any]:
    """A variant of the main tables and its ablations of one kind, with the setting that each of them has."""
    profile = results.profile
    ablations = [
        name
        for name, variant in profile.variants.items()
        if variant.ablation == kind and profile.ablated_from(variant) == reference
    ]
    setting = ABLATED_SETTING[kind]  # type: ignore[index]
    shared = load_model(listed).dpo | profile.dpo
    return {
        variant: getattr(checked("dpo", **(shared | profile.variants[variant].dpo)), setting)
        for variant in (reference, *ablations)
    }


def _members(profile: Profile, kind: Kind, settings: Mapping[str, Any]) -> tuple[Member, ...]:
    labels = {variant: _label(kind, value) for variant, value in settings.items()}
    if len(set(labels.values())) < len(labels):  # two tunings with LoRA, say
        labels = {variant: variant_title(profile, variant) for variant in settings}
    order = sorted(settings, key=lambda variant: settings[variant]) if kind in ("seed", "learning-rate") else settings
    return tuple(Member(variant, labels[variant], settings[variant]) for variant in order)


def _label(kind: Kind, value: Any) -> str:
    if kind == "seed":
        return f"seed {value}"
    if kind == "learning-rate":
        return f"{value:.0e}".replace("e-0", "e-")
    return METHODS[value] if kind == "method" else f"{value} pairs"


def _evaluated(results: Results, model: str, variant: str, language: str) -> bool:
    return results.folder("evaluate", model=model, variant=variant, lang=language) is not None


def ran(results: Results, family: Family) -> list[Member]:
    """The members that were evaluated in every language of theirs."""
    return [
        member
        for member in family.members
        if all(_evaluated(results, family.model, member.variant, language)
               for language in languages_of(results.profile, member.variant))
    ]  # fmt: skip


def common_languages(results: Results, family: Family) -> list[str]:
    """The languages of every member that was run, as far as the untuned model was evaluated in them."""
    shared = set(results.profile.languages)
    for member in ran(results, family):
        shared &= set(languages_of(results.profile, member.variant))
    return [
        language
        for language in results.profile.languages
        if language in shared and _evaluated(results, family.model, "base", language)
    ]


def files(results: Results) -> list[Path]:
    """What the chapter reads, which its notebook records as its inputs."""
    written = {"score": "scores.parquet", "evaluate": "metrics.json"}
    return [run.folder / written[run.stage] for run in results.stages if run.stage in written and run.done]


# --- measuring a family -----------------------------------------------------------------------------------------


def common_ground(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Scored continuations of several variants in one language, cut to the prompts and samples that all have.

    The first continuations of a prompt are draws like any other, so a variant with more of them loses nothing but
    precision.
    """
    samples = min(int(table["sample"].max()) + 1 for table in tables.values())
    prompts = set.intersection(*(set(table["prompt_id"]) for table in tables.values()))
    return {
        variant: table[(table["sample"] < samples) & table["prompt_id"].isin(prompts)]
        for variant, table in tables.items()
    }


def measure(results: Results, family: Family) -> pd.DataFrame:
    """Every metric of every member before and after, in each common language and as their mean.

    Columns: ``COLUMNS``. ``difference`` is that of a member from the reference after the tuning, prompt by prompt.
    Members that were not run have rows of the mean with missing values.
    """
    present, languages = ran(results, family), common_languages(results, family)
    pairs: dict[tuple[str, str, str], list[tuple[Side, Side]]] = {}
    rows, counts = [], {"languages": len(languages), "prompts": 0, "continuations": 0}
    for language in languages if present else []:
        names = ["base", *(member.variant for member in present)]
        tables = common_ground({name: _scores(results, family.model, name, language) for name in names})
        counts["prompts"] = max(counts["prompts"], tables["base"]["prompt_id"].nunique())
        counts["continuations"] = max(counts["continuations"], int(tables["base"]["sample"].max()) + 1)
        content = results.evaluation(family.model, "base", language)
        assert content is not None
        values = {name: prompt_values(table, content["threshold"], language) for name, table in tables.items()}
        for member in present:
            for metric in METRICS:
                here = {}
                for other in ("base", family.reference):
                    left = values[other][metric] if other in values else None
                    before, after, prompts = compare_prompts(
                        left, values[member.variant][metric], results.samples, results.language_rng(language)
                    )
                    pairs.setdefault((member.variant, metric, other), []).append((before, after))
                    here[other] = (before, after)
                rows.append(_row(results, family, member, language, metric, here, {**counts, "languages": 1,
                                                                                    "prompts": prompts}))  # fmt: skip
    for member in family.members:
        for metric in METRICS:
            sides = {other: mean_over_languages(pairs.get((member.variant, metric, other), []), results.samples)[:2]
                     for other in ("base", family.reference)}  # fmt: skip
            rows.append(_row(results, family, member, MEAN, metric, sides, counts))
    return pd.DataFrame(rows, columns=COLUMNS)


def _scores(results: Results, model: str, variant: str, language: str) -> pd.DataFrame:
    table = results.scores(model, variant, language)
    assert table is not None
    return table


def _row(
    results: Results,
    family: Family,
    member: Member,
    language: str,
    metric: str,
    sides: Mapping[str, tuple[Side, Side]],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    from_reference = comparison_row(*sides[family.reference], results.confidence)
    difference = dict(zip(DIFFERENCE, (-from_reference["drop"], -from_reference["drop_high"],
                                        -from_reference["drop_low"]), strict=True))  # fmt: skip
    return {"family": family.title, "kind": family.kind, "variant": member.variant, "label": member.label,
            "setting": str(member.setting), "language": language, "metric": metric, **counts,
            **comparison_row(*sides["base"], results.confidence), **difference}  # fmt: skip


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The tables of several families as one."""
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def measured(results: Results) -> dict[Kind, list[tuple[Family, pd.DataFrame]]]:
    """Every family of every kind, with its table."""
    return {kind: [(family, measure(results, family)) for family in families(results, kind)] for kind in KINDS}


def means(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The means over languages of one metric, a row a member."""
    return table[(table["language"] == MEAN) & (table["metric"] == metric)].reset_index(drop=True)


def was_run(table: pd.DataFrame) -> bool:
    """Whether at least two members of a family were measured, so that there is something to compare."""
    return bool(means(table, "emt")["after"].notna().sum() > 1)


def seed_spread(table: pd.DataFrame, metric: str) -> dict[str, float]:
    """How far seeds differ, and how wide the bootstrap interval of one of them is; NaN with fewer than two run.

    ``deviation`` is the standard deviation over seeds of the drop (n - 1 in the denominator), ``range`` its largest
    minus its smallest, and ``half_width`` half the width of a seed's interval, averaged over seeds.
    """
    rows = means(table, metric).dropna(subset=["drop"])
    if len(rows) < 2:
        return dict.fromkeys(("seeds", "deviation", "range", "half_width"), float("nan")) | {"seeds": float(len(rows))}
    drops = rows["drop"].to_numpy(dtype=float)
    half = (rows["drop_high"] - rows["drop_low"]).to_numpy(dtype=float) / 2.0
    return {
        "seeds": float(len(rows)),
        "deviation": float(drops.std(ddof=1)),
        "range": float(np.ptp(drops)),
        "half_width": float(half.mean()),
    }


# --- further sets of prompts ------------------------------------------------------------------------------------

SET_COLUMNS = ["comparison", "set", "beside", "language", "metric", "languages", "prompts", *_SIDES]


def set_title(results: Results, name: str) -> str:
    """A set of prompts as the report prints it; empty is the first one."""
    if name:
        return results.profile.more_prompts[name].title or name
    source = results.profile.prompts.source
    return "this project's" if source == "project" else sources()[source].title


def prompt_sets(results: Results) -> pd.DataFrame:
    """Each comparison on each further set of prompts, and beside it on the first set in the same languages.

    Columns: ``SET_COLUMNS``; ``beside`` names the further set that a row belongs to, ``set`` the prompts that it is
    about (empty: the first set).
    """
    rows = []
    for comparison in results.comparisons:
        for further in results.profile.more_prompts:
            languages = [
                language for language in results.profile.languages
                if all(results.folder("evaluate", model=comparison.model, variant=variant, lang=language, set=name)
                       for variant in ("base", comparison.variant) for name in ("", further))
            ]  # fmt: skip
            for name in ("", further):
                pairs: dict[str, list[tuple[Side, Side]]] = {metric: [] for metric in METRICS}
                counts = []
                for language in languages:
                    sides = [_set_values(results, comparison.model, variant, language, name)
                             for variant in ("base", comparison.variant)]  # fmt: skip
                    counts.append(len(sides[0]["emt"]))
                    for metric in METRICS:
                        before, after, prompts = compare_prompts(
                            sides[0][metric], sides[1][metric], results.samples, results.language_rng(language)
                        )
                        pairs[metric].append((before, after))
                        rows.append({"comparison": comparison.title, "set": name, "beside": further,
                                     "language": language, "metric": metric, "languages": 1, "prompts": prompts,
                                     **comparison_row(before, after, results.confidence)})  # fmt: skip
                for metric in METRICS:
                    before, after, _ = mean_over_languages(pairs[metric], results.samples)
                    rows.append({"comparison": comparison.title, "set": name, "beside": further, "language": MEAN,
                                 "metric": metric, "languages": len(languages), "prompts": max(counts, default=0),
                                 **comparison_row(before, after, results.confidence)})  # fmt: skip
    return pd.DataFrame(rows, columns=SET_COLUMNS)


def _set_values(results: Results, model: str, variant: str, language: str, name: str) -> dict[str, pd.Series]:
    scores = results.scores(model, variant, language, name)
    content = results.evaluation(model, variant, language, name)
    assert scores is not None and content is not None
    return prompt_values(scores, content["threshold"], language)


# --- the whole distribution of the perplexity -------------------------------------------------------------------

TAIL = 100.0  # the perplexity above which the tables count continuations
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def perplexities(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """The perplexity of the continuations before and after, by the title of each comparison that was run."""
    found = {}
    for comparison in results.comparisons:
        sides: dict[str, list[np.ndarray]] = {"before": [], "after": []}
        for language in results.profile.languages:
            tables = [results.scores(comparison.model, variant, language) for variant in ("base", comparison.variant)]
            if any(table is None for table in tables):
                continue
            for side, table in zip(sides, tables, strict=True):
                assert table is not None
                sides[side].append(table["perplexity"].dropna().to_numpy(dtype=float))
        joined = {side: np.concatenate(arrays) if arrays else np.array([]) for side, arrays in sides.items()}
        if all(len(values) for values in joined.values()):
            found[comparison.title] = joined
    return found


def perplexity_figures(values: np.ndarray) -> dict[str, float]:
    """Quantiles of a set of perplexities, how many there are, and the share above ``TAIL``."""
    quantiles = np.quantile(values, QUANTILES)
    named = {f"q{round(100 * share):02d}": float(value) for share, value in zip(QUANTILES, quantiles, strict=True)}
    return {"continuations": float(len(values)), **named, "above": float((values > TAIL).mean())}
