"""Ablations: tunings of one model that differ in one thing, measured on the languages, prompts and continuations that
all of them have, since EMT and ToxProb grow with the number of continuations. What was not run is missing (NaN).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from polydetox.core.parameters import checked
from polydetox.core.params import ABLATED_SETTING, Ablation, ModelFile, Profile, load_model, tuned_by
from polydetox.data.catalogue import sources
from polydetox.metrics.evaluate import prompt_values
from polydetox.results.collect import METRICS, Results
from polydetox.results.stages import compared_variants, variant_title
from polydetox.stats.paired import Side, compare_prompts, comparison_row, mean_over_languages

MEAN = "mean"  # stands where a row is a mean over languages
DIFFERENCE = ["difference", "difference_low", "difference_high"]  # from the reference, after tuning
COLUMNS = ["ablation", "family", "reference", "label", "variant", "prompt_set", "language", "metric", "languages",
           "prompts", "continuations", *(f"{side}{end}" for side in ("before", "after", "drop")
                                         for end in ("", "_low", "_high")), *DIFFERENCE]  # fmt: skip
_TITLES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "sigmoid": "DPO", "cdpo": "cDPO", "ipo": "IPO",
           "simpo": "SimPO", "kto": "KTO", "given": "labels as given", "shuffled": "shuffled labels",
           "longer": "the longer side chosen", "swapped": "swapped sides", "on-policy": "pairs as ranked",
           "on-policy-matched": "pairs of one style", "dpo": "DPO", "profs": "ProFS", "none": "DPO",
           "english": "an English prefix", "own-language": "a prefix in the prompt's language"}  # fmt: skip

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Configuration:
    """A tuning, and the prompts on which it is measured."""

    label: str  # as tables and figures print it
    variant: str
    prompt_set: str = ""  # empty: the first one


@dataclass(frozen=True)
class Family:
    """Configurations of one model that differ in one thing."""

    ablation: str  # what they differ in: a value of Ablation, "pairs", or "prompts"
    title: str
    model: str  # folder name
    reference: str  # label of the configuration that the others are compared with; empty: none
    members: tuple[Configuration, ...]  # in the order of the setting where it is a number


def set_title(results: Results, name: str) -> str:
    """A set of prompts as the report prints it; empty is the first one."""
    if name:
        return results.profile.more_prompts[name].title or name
    source = results.profile.prompts.source
    return {"project": "this project's", "own": "own"}.get(source) or sources()[source].title


def families(results: Results) -> Iterator[Family]:
    """What the profile asks for, run or not: variants with ``ablation``, preference data, further sets of prompts."""
    profile = results.profile
    for listed in profile.models:
        model = load_model(listed)
        compared = [name for name in compared_variants(profile, listed) if tuned_by(profile, name) == "dpo"]
        for reference in compared:
            title = f"{model.title} ({variant_title(profile, reference)})" if len(compared) > 1 else model.title
            for ablation in ABLATED_SETTING:
                changed = [name for name, variant in profile.variants.items()
                           if variant.ablation == ablation and profile.ablated_from(variant) == reference]  # fmt: skip
                values = {name: _value(ablation, model, profile, name) for name in (reference, *changed)}
                yield from _family(results, ablation, title, model.name, values)
        losses = {name: _value("loss", model, profile, name) for name in compared}
        alike = [name for name in compared if losses[name] == losses[compared[0]]]
        kinds = {profile.variants[variant].pairs: variant for variant in reversed(alike)}  # the first of each
        values = {variant: profile.variants[variant].pairs for variant in alike if variant in kinds.values()}
        yield from _family(results, "pairs", model.title, model.name, values)
    for comparison in results.comparisons:
        for further in profile.more_prompts:
            members = tuple(Configuration(set_title(results, name), comparison.variant, name) for name in ("", further))
            title = comparison.title + (f", {members[1].label}" if len(profile.more_prompts) > 1 else "")
            yield Family("prompts", title, comparison.model, "", members)


def _value(ablation: Ablation, model: ModelFile, profile: Profile, name: str) -> Any:
    """What a variant has of the thing that an ablation varies."""
    stage, setting = ABLATED_SETTING[ablation]
    if not stage:
        return getattr(profile.variants[name], setting)
    shared = getattr(model, stage) | getattr(profile, stage)
    return getattr(checked(stage, **(shared | getattr(profile.variants[name], stage))), setting)


def _family(results: Results, ablation: str, title: str, model: str, values: Mapping[str, Any]) -> Iterator[Family]:
    """The family of some variants with their settings, the reference first, if there are several."""
    if len(values) < 2:
        return
    labels = {variant: _label(ablation, value) for variant, value in values.items()}
    same = [variant for variant in [*values][1:] if [*labels.values()].count(labels[variant]) > 1]  # LoRA twice
    labels |= {variant: variant_title(results.profile, variant) for variant in same}
    reference = labels[next(iter(values))]
    ordered = sorted(values, key=lambda variant: values[variant]) if ablation in ("seed", "learning-rate") else values
    members = tuple(Configuration(labels[variant], variant) for variant in ordered)
    yield Family(ablation, title, model, reference, members)


def _label(ablation: str, value: Any) -> str:
    if ablation == "seed":
        return f"seed {value}"
    if ablation == "learning-rate":
        return f"{value:.0e}".replace("e-0", "e-")
    if ablation == "decoding":
        return "DExperts" if value else "DPO"
    return f"{value} pairs" if ablation == "pairs" else _TITLES.get(value, str(value))


def common_ground(tables: Mapping[Key, pd.DataFrame]) -> dict[Key, pd.DataFrame]:
    """Scored continuations on the same prompts in one language, cut to the prompts and samples that all tables have.

    The first continuations of a prompt are samples like any other, so that one with more loses nothing but precision.
    """
    samples = min(int(table["sample"].max()) + 1 for table in tables.values())
    prompts = set.intersection(*(set(table["prompt_id"]) for table in tables.values()))
    return {key: table[(table["sample"] < samples) & table["prompt_id"].isin(prompts)] for key, table in tables.items()}


def measured(results: Results) -> pd.DataFrame:
    """Every metric of every configuration before and after, in each common language and as their mean.

    Columns: ``COLUMNS``. ``difference`` is that of a configuration from the reference of its family after the tuning,
    prompt by prompt. One that was not run has rows of the mean alone, without values and with 0 ``languages``.
    """
    rows = [row for family in families(results) for row in _measure(results, family)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _measure(results: Results, family: Family) -> Iterator[dict[str, Any]]:
    def evaluated(variant: str, prompt_set: str, language: str) -> bool:
        folder = results.folder("evaluate", model=family.model, variant=variant, lang=language, set=prompt_set)
        return folder is not None

    every = results.profile.languages
    run = [each for each in family.members if any(evaluated(each.variant, each.prompt_set, one) for one in every)]
    sought = [(variant, each.prompt_set) for each in run for variant in ("base", each.variant)]
    languages = [language for language in every if run and all(evaluated(*side, language) for side in sought)]
    sides: dict[tuple[Configuration, str, str], list[tuple[Side, Side]]] = {}
    counts = {each: {"languages": len(languages) if each in run else 0, "prompts": 0, "continuations": 0}
              for each in family.members}  # fmt: skip

    def row(each: Configuration, language: str, metric: str, before: tuple[Side, Side], reference: tuple[Side, Side],
            **counted: int) -> dict[str, Any]:  # fmt: skip
        less = comparison_row(*reference, results.confidence)
        difference = (-less["drop"], -less["drop_high"], -less["drop_low"])
        return {"ablation": family.ablation, "family": family.title, "reference": family.reference,
                "label": each.label, "variant": each.variant, "prompt_set": each.prompt_set, "language": language,
                "metric": metric, **counted, **comparison_row(*before, results.confidence),
                **dict(zip(DIFFERENCE, difference, strict=True))}  # fmt: skip

    for language in languages:
        values = _values(results, family.model, language, run)
        reference = next((values[each.variant, each.prompt_set][0] for each in run if each.label == family.reference),
                         None)  # fmt: skip
        for each in run:
            after, ground = values[each.variant, each.prompt_set]
            counted = {"prompts": ground["prompt_id"].nunique(), "continuations": int(ground["sample"].max()) + 1}
            counts[each] |= {name: max(counts[each][name], count) for name, count in counted.items()}
            for metric in METRICS:
                pairs = []
                for other, against in (("base", values["base", each.prompt_set][0]), ("reference", reference)):
                    rng = results.language_rng(language)
                    *pair, prompts = compare_prompts(against and against[metric], after[metric], results.samples, rng)
                    sides.setdefault((each, metric, other), []).append((pair[0], pair[1]))
                    pairs.append((pair[0], pair[1], prompts))
                yield row(each, language, metric, pairs[0][:2], pairs[1][:2],
                          **counts[each] | {"languages": 1, "prompts": pairs[0][2]})  # fmt: skip
    for each in family.members:
        for metric in METRICS:
            means = [mean_over_languages(sides.get((each, metric, other), []), results.samples)[:2]
                     for other in ("base", "reference")]  # fmt: skip
            yield row(each, MEAN, metric, means[0], means[1], **counts[each])


def _values(
    results: Results, model: str, language: str, run: list[Configuration]
) -> dict[tuple[str, str], tuple[dict[str, pd.Series], pd.DataFrame]]:
    """Each metric's value for each prompt, and the continuations that were taken, by variant and set of prompts."""
    found = {}
    for prompt_set in dict.fromkeys(each.prompt_set for each in run):
        variants = ["base", *(each.variant for each in run if each.prompt_set == prompt_set)]
        tables = {variant: results.scores(model, variant, language, prompt_set) for variant in variants}
        for variant, table in common_ground(tables).items():
            content = results.evaluation(model, variant, language, prompt_set)
            assert content is not None
            found[variant, prompt_set] = prompt_values(table, content["threshold"], language), table
    return found
