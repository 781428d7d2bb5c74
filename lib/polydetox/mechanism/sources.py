"""What the mechanism notebooks share: the sources of a model, figures of activations, and plans of interventions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from polydetox.core.artifacts import read_parquet
from polydetox.core.errors import UserError
from polydetox.core.paths import relative
from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.decoding import Neuron
from polydetox.mechanism.vectors import as_neurons, neuron_count, scripts_of, typical_size
from polydetox.metrics.diversity import repetition

SOURCE_COLUMNS = ["layer", "neuron", "cosine", "activation", "actual", "tokens", "scripts"]


def source_metrics(
    table: pd.DataFrame, activations: Float[np.ndarray, "prompts neurons"], mlps: MLPs
) -> dict[str, Any]:
    """The figures of the stage that finds the sources: ``table`` has a row a potential source."""
    actual = table["actual"].to_numpy()
    shares = [scripts_of(tokens) for tokens in table.loc[table["actual"], "tokens"]]
    return {
        "neurons": neuron_count(mlps),
        "layers": len(mlps),
        "potential": len(table),
        "actual": int(actual.sum()),
        "lowest_cosine": float(table["cosine"].min()),
        "highest_cosine": float(table["cosine"].max()),
        "rms_activation": typical_size(activations[:, actual]) if actual.any() else None,
        # Of the actual sources, how many promote tokens of more than one script.
        "several_scripts": sum(len(share) > 1 for share in shares),
        "prompts": len(activations),
    }


def load_sources(file: Path) -> tuple[list[Neuron], list[Neuron]]:
    """The actual and the potential sources that ``sources.parquet`` holds, as (layer, place in the layer's MLP)."""
    table = read_parquet(file, ["layer", "neuron", "actual"])
    actual = as_neurons(table[table["actual"]])
    if not actual:
        raise UserError(f"{relative(file)}: no actual source; raise 'mechanism: value_vectors: top'")
    return actual, as_neurons(table)


def activation_rows(groups: Mapping[str, Sequence[Neuron]], means: Float[np.ndarray, " neurons"]) -> pd.DataFrame:
    """The mean activation of each neuron, groups one after another: ``group, layer, neuron, activation``."""
    named = [(group, layer, place) for group, neurons in groups.items() for layer, place in neurons]
    return pd.DataFrame(named, columns=["group", "layer", "neuron"]).assign(activation=means.astype(float))


def activation_metrics(
    groups: Mapping[str, Sequence[Neuron]], activations: Float[np.ndarray, "prompts neurons"]
) -> dict[str, Any]:
    """Each group's mean over prompts and neurons, and what each prompt contributes to it."""
    metrics: dict[str, Any] = {"prompts": len(activations), "neurons": len(groups["sources"])}
    first = 0
    for group, neurons in groups.items():
        columns = activations[:, first : first + len(neurons)]
        metrics[group] = float(columns.mean())
        metrics[f"{group}_by_prompt"] = columns.mean(axis=1).tolist()
        first += len(neurons)
    return metrics


def shift_plan(
    prompts: pd.DataFrame, offsets: Sequence[float], groups: Iterable[str], neutral: pd.DataFrame, neutral_offset: float
) -> pd.DataFrame:
    """Which prompts are continued with which neurons shifted: ``prompt_id, prompt, group, offset``.

    The unshifted prompts stand once, under the group ``sources``. ``neutral`` prompts, if any, are continued as they
    are and with the sources switched on, under the group ``neutral``.
    """
    parts = [(prompts, "sources", 0.0)]
    parts += [(prompts, group, offset) for offset in offsets if offset for group in groups]
    if len(neutral) and neutral_offset:
        parts += [(neutral, "neutral", 0.0), (neutral, "neutral", neutral_offset)]
    tables = [texts[["prompt_id", "prompt"]].assign(group=group, offset=offset) for texts, group, offset in parts]
    return pd.concat(tables, ignore_index=True)


def with_unshifted_baseline(table: pd.DataFrame) -> pd.DataFrame:
    """The same continuations, the unshifted ones under the group of random neurons as well."""
    unshifted = (table["group"] == "sources") & (table["offset"] == 0.0)
    return pd.concat([table, table[unshifted].assign(group="control")], ignore_index=True)


def by_offset(table: pd.DataFrame) -> pd.DataFrame:
    """Each group and offset in brief: ``group, offset, added, toxicity`` (average), ``scored, prompts, repeated``.

    ``repeated`` is the mean share of repeated words, which tells a model that writes better from one that broke.
    """
    shifted = table[table["group"] != "neutral"].assign(repeated=table["continuation"].map(repetition))
    groups = shifted.groupby(["group", "offset"], sort=False)
    result = groups.agg(added=("added", "first"), toxicity=("toxicity", "mean"), scored=("toxicity", "count"),
                        prompts=("prompt", "size"), repeated=("repeated", "mean"))  # fmt: skip
    return result.reset_index()
