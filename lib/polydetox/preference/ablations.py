"""Ablations: which tunings of one model differ in one thing. The notebook summary_ablations measures them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from polydetox.core.parameters import checked
from polydetox.core.params import ABLATED_SETTING, Ablation, ModelFile, Profile, load_model, tuned_by
from polydetox.data.catalogue import sources
from polydetox.results.collect import Results
from polydetox.results.stages import compared_variants, variant_title
from polydetox.results.tables import scientific

_TITLES = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "sigmoid": "DPO", "cdpo": "cDPO", "ipo": "IPO",
           "simpo": "SimPO", "kto": "KTO", "given": "labels as given", "shuffled": "shuffled labels",
           "longer": "the longer side chosen", "swapped": "swapped sides", "on-policy": "pairs as ranked",
           "on-policy-matched": "pairs of one style", "dpo": "DPO", "profs": "ProFS", "none": "DPO",
           "english": "an English prefix", "own-language": "a prefix in the prompt's language"}  # fmt: skip


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
                also = {}
                if ablation == "method":  # an adapter may need larger steps than weights, which its label says then
                    rates = {name: _value("learning-rate", model, profile, name) for name in values}
                    differ = len(set(rates.values())) > 1
                    also = {name: f" at {scientific(rate)}" for name, rate in rates.items() if differ}
                yield from _family(results, ablation, title, model.name, values, also)
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
    if ablation == "ranking":
        return checked("pairs", **profile.pairs[profile.variants[name].pairs]).scorer
    if not stage:
        return getattr(profile.variants[name], setting)
    shared = getattr(model, stage) | getattr(profile, stage)
    return getattr(checked(stage, **(shared | getattr(profile.variants[name], stage))), setting)


def _family(
    results: Results, ablation: str, title: str, model: str, values: Mapping[str, Any], also: Mapping[str, str] = {}
) -> Iterator[Family]:
    """The family of some variants with their settings, the reference first, if there are several.

    ``also`` is what ends the labels of some.
    """
    if len(values) < 2:
        return
    labels = {variant: _label(ablation, value) + also.get(variant, "") for variant, value in values.items()}
    same = [variant for variant in [*values][1:] if [*labels.values()].count(labels[variant]) > 1]  # LoRA twice
    labels |= {variant: variant_title(results.profile, variant) for variant in same}
    reference = labels[next(iter(values))]
    ordered = sorted(values, key=lambda variant: values[variant]) if ablation in ("seed", "learning-rate") else values
    members = tuple(Configuration(labels[variant], variant) for variant in ordered)
    yield Family(ablation, title, model, reference, members)


def _label(ablation: str, value: Any) -> str:
    if ablation == "learning-rate":
        return scientific(value)
    said = {"seed": f"seed {value}", "decoding": "DExperts" if value else "DPO", "ranking": f"ranked by {value}",
            "pairs": f"{value} pairs"}  # fmt: skip
    return said.get(ablation, _TITLES.get(str(value), str(value)))
