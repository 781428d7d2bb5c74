"""The mechanism stages: which neurons are sources of toxicity, how active they are, and what shifting them does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from polydetox import paths
from polydetox.artifacts import Stage, read_json, read_parquet
from polydetox.data import load_prompts, neutral_prompts
from polydetox.errors import UserError
from polydetox.interp.architectures import MLPs
from polydetox.interp.decoding import Decoded, Neuron, Shift, greedy
from polydetox.interp.probe import Probe
from polydetox.interp.vectors import (
    as_neurons,
    control_neurons,
    neuron_count,
    potential_sources,
    promoted_tokens,
    scripts_of,
    typical_size,
)
from polydetox.metrics.diversity import repetition
from polydetox.models.checkpoints import (
    checkpoint_of,
    inference_dtype,
    load_causal_lm,
    load_tokenizer,
    provenance,
    use_threads,
)
from polydetox.params import ActivationsParameters, InterveneParameters, ValueVectorsParameters, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SOURCE_COLUMNS = ["layer", "neuron", "cosine", "activation", "actual", "tokens", "scripts"]


def _load(profile: str, model: str, variant: str, stage: Stage) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    use_threads()
    weights = checkpoint_of(profile, model, variant)
    stage.reads(provenance(weights))
    return load_causal_lm(weights, inference_dtype(load_model(model).dtype)), load_tokenizer(weights)


def find_sources(settings: ValueVectorsParameters, stage: Stage) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The potential sources of one model, what they promote, and which are actual sources.

    A potential source is active, an *actual* source, if its mean activation over the next tokens of English prompts
    is positive. Returns a row a potential source with the columns ``SOURCE_COLUMNS``, and the figures of the stage.
    """
    model, tokenizer = _load(settings.profile, settings.model, "base", stage)
    folder = paths.probe(settings.profile, load_model(settings.model).name)
    probe = Probe.load(stage.reads(folder / "probe.safetensors"))
    mlps = MLPs(model)
    total = neuron_count(mlps)
    table = potential_sources(mlps, probe, settings.top or max(1, round(settings.share * total)))
    neurons = as_neurons(table)
    prompts, _ = load_prompts(settings.prompts_source, "en", settings.prompts_folder, settings.prompt_limit)
    decoded = _continue(settings, model, tokenizer, list(prompts["prompt"]), watch=neurons)
    table["activation"] = decoded.activations.mean(axis=0)
    table["actual"] = table["activation"] > 0
    table["tokens"] = promoted_tokens(mlps, tokenizer, neurons, settings.promoted_tokens)
    table["scripts"] = [", ".join(f"{name} {share:.0%}" for name, share in scripts_of(tokens).items())
                        for tokens in table["tokens"]]  # fmt: skip
    actual = table["actual"].to_numpy()
    shares = [scripts_of(tokens) for tokens in table.loc[table["actual"], "tokens"]]
    metrics = {
        "neurons": total,
        "layers": len(mlps),
        "potential": len(table),
        "actual": int(actual.sum()),
        "lowest_cosine": float(table["cosine"].min()),
        "highest_cosine": float(table["cosine"].max()),
        "rms_activation": typical_size(decoded.activations[:, actual]) if actual.any() else None,
        # Of the actual sources, how many promote tokens of more than one script.
        "several_scripts": sum(len(share) > 1 for share in shares),
        "prompts": len(prompts),
    }
    return table[SOURCE_COLUMNS], metrics


def _continue(
    settings: Any, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], **what: Any
) -> Decoded:
    return greedy(model, tokenizer, prompts, new_tokens=settings.new_tokens, batch_size=settings.batch_size, **what)


def load_sources(profile: str, model: str, stage: Stage) -> tuple[list[Neuron], list[Neuron]]:
    """The actual sources of a model, and all its potential ones; a ``UserError`` where none is active."""
    file = paths.value_vectors(profile, load_model(model).name) / "sources.parquet"
    table = read_parquet(stage.reads(file), ["layer", "neuron", "actual"])
    actual = as_neurons(table[table["actual"]])
    if not actual:
        raise UserError(f"{paths.relative(file)}: no actual source; raise 'mechanism: value_vectors: top'")
    return actual, as_neurons(table)


def mean_activations(settings: ActivationsParameters, stage: Stage) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Mean activations over the next tokens, of the actual sources and of as many random neurons of the same layers.

    Returns a row a neuron (``group, layer, neuron, activation``) and each group's mean over neurons, with what each
    prompt contributes to it.
    """
    sources, potential = load_sources(settings.profile, settings.model, stage)
    model, tokenizer = _load(settings.profile, settings.model, settings.variant, stage)
    control = control_neurons(MLPs(model), sources, potential, settings.seed)
    prompts, _ = load_prompts(settings.prompts_source, settings.lang, settings.prompts_folder, settings.prompt_limit)
    decoded = _continue(settings, model, tokenizer, list(prompts["prompt"]), watch=[*sources, *control])
    rows, metrics = [], {"prompts": len(prompts), "neurons": len(sources)}
    for group, neurons, columns in (
        ("sources", sources, decoded.activations[:, : len(sources)]),
        ("control", control, decoded.activations[:, len(sources) :]),
    ):
        rows += [(group, layer, place, float(value))
                 for (layer, place), value in zip(neurons, columns.mean(axis=0), strict=True)]  # fmt: skip
        metrics[group] = float(columns.mean())
        metrics[f"{group}_by_prompt"] = columns.mean(axis=1).tolist()
    return pd.DataFrame(rows, columns=["group", "layer", "neuron", "activation"]), metrics


def shift_sources(settings: InterveneParameters, stage: Stage) -> pd.DataFrame:
    """Greedy continuations as the activations of the actual sources, or of the control, are shifted, and their scores.

    Returns ``prompt_id, prompt, group, offset, added, continuation, toxicity``: ``offset`` in the unit of the
    settings, ``added`` what was added to the activations. The unshifted continuations stand under both groups.
    """
    from polydetox.scoring import CachedScorer, get_scorer

    sources, potential = load_sources(settings.profile, settings.model, stage)
    model, tokenizer = _load(settings.profile, settings.model, settings.variant, stage)
    unit = 1.0
    if settings.unit == "rms":
        folder = paths.value_vectors(settings.profile, load_model(settings.model).name)
        unit = float(read_json(stage.reads(folder / "metrics.json"))["rms_activation"])
    control = control_neurons(MLPs(model), sources, potential, settings.seed)
    prompts, _ = load_prompts(settings.prompts_source, settings.lang, settings.prompts_folder, settings.prompt_limit)
    columns = ["prompt_id", "prompt"]
    parts, shifts = [], []

    def add(group: str, offset: float, shift: Shift | None, texts: pd.DataFrame) -> None:
        parts.append(texts[columns].assign(group=group, offset=offset, added=offset * unit))
        shifts.extend([shift] * len(texts))

    groups = {"sources": sources} | ({"control": control} if settings.control else {})
    add("sources", 0.0, None, prompts)
    for offset in settings.offsets:
        for group, neurons in groups.items() if offset else ():
            add(group, offset, Shift(neurons, offset * unit), prompts)
    if settings.lang == "en" and settings.neutral_offset:
        add("neutral", 0.0, None, neutral_prompts())
        shift = Shift(sources, settings.neutral_offset * unit)
        add("neutral", settings.neutral_offset, shift, neutral_prompts())
    table = pd.concat(parts, ignore_index=True)
    decoded = _continue(settings, model, tokenizer, table["prompt"].tolist(), shifts=shifts)
    table["continuation"] = decoded.continuations
    if settings.control:
        unshifted = (table["group"] == "sources") & (table["offset"] == 0.0)
        table = pd.concat([table, table[unshifted].assign(group="control")], ignore_index=True)
    scorer = CachedScorer(get_scorer(settings.scorer))
    stage.scores_with(scorer)
    return table.assign(toxicity=scorer.score(table["continuation"].tolist(), settings.lang))


def by_offset(table: pd.DataFrame) -> pd.DataFrame:
    """Each group and offset in brief: ``group, offset, added, toxicity`` (average), ``scored, prompts, repeated``.

    ``repeated`` is the mean share of repeated words, which tells a model that writes better from one that broke.
    """
    shifted = table[table["group"] != "neutral"].assign(repeated=table["continuation"].map(repetition))
    groups = shifted.groupby(["group", "offset"], sort=False)
    result = groups.agg(added=("added", "first"), toxicity=("toxicity", "mean"), scored=("toxicity", "count"),
                        prompts=("prompt", "size"), repeated=("repeated", "mean"))  # fmt: skip
    return result.reset_index()
