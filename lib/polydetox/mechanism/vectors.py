"""MLP value vectors that write toxicity: potential sources, what they promote, and actual sources (section 4.2)."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.decoding import Neuron
from polydetox.mechanism.probe import Probe

# Unicode names of letters begin with their script; these are one script for a reader.
_SCRIPTS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}


def potential_sources(mlps: MLPs, probe: Probe, count: int) -> pd.DataFrame:
    """The ``count`` value vectors of highest cosine to the probe, over all layers: ``layer, neuron, cosine``.

    The cosine is taken with each direction of the residual stream in the probe's own unit. With a scale of ones that
    is the paper's. A residual stream with a few huge directions needs the standardised one: the logit that a value
    vector adds is the same in any units, but its length, which the cosine divides by, is not.
    """
    scale = torch.from_numpy(probe.scale).float()
    wanted = torch.from_numpy(probe.weight).float() * scale
    wanted = wanted / wanted.norm()
    rows = []
    for layer in range(len(mlps)):
        vectors = mlps.value_vectors(layer).cpu() / scale
        cosine = vectors @ wanted / vectors.norm(dim=-1).clamp(min=1e-12)
        best = cosine.topk(min(count, len(cosine)))
        rows += [(layer, int(place), float(value)) for value, place in zip(best.values, best.indices, strict=True)]
    table = pd.DataFrame(rows, columns=["layer", "neuron", "cosine"])
    return table.sort_values("cosine", ascending=False, kind="stable").head(count).reset_index(drop=True)


def neuron_count(mlps: MLPs) -> int:
    """How many neurons the MLPs of all layers have."""
    return sum(mlps.neurons(layer) for layer in range(len(mlps)))


def tokens_promoted_by(
    mlps: MLPs, tokenizer: PreTrainedTokenizerBase, neurons: Sequence[Neuron], count: int = 30
) -> list[list[str]]:
    """The tokens whose logits each neuron raises most: its value vector, through the final norm, unembedded."""
    by_layer = {layer: mlps.value_vectors(layer) for layer, _ in neurons}
    vectors = torch.stack([by_layer[layer][place] for layer, place in neurons])
    with torch.inference_mode():
        logits = mlps.before_unembedding(vectors) @ mlps.unembedding().T  # (neurons, vocabulary)
    best = logits.topk(min(count, logits.shape[-1]), dim=-1).indices
    return [[str(tokenizer.decode([token])) for token in row] for row in best.tolist()]


def script(token: str) -> str | None:
    """The script of the first letter of a token (``Latin``, ``Cyrillic``, ``Han`` ...); None without a letter."""
    for character in token:
        if character.isalpha():
            first = unicodedata.name(character, "UNKNOWN").split()[0]
            return _SCRIPTS.get(first, first.capitalize())
    return None


def scripts_of(tokens: Sequence[str]) -> dict[str, float]:
    """The share of each script among the tokens that have a letter, most common first."""
    counted = Counter(name for name in map(script, tokens) if name)
    total = sum(counted.values())
    return {name: number / total for name, number in counted.most_common()}


def script_text(tokens: Sequence[str]) -> str:
    """The scripts of some tokens as a table prints them, ``Latin 67%, Han 33%``."""
    return ", ".join(f"{name} {fraction:.0%}" for name, fraction in scripts_of(tokens).items())


def control_neurons(mlps: MLPs, sources: Sequence[Neuron], excluded: Sequence[Neuron], seed: int) -> list[Neuron]:
    """As many random neurons as there are sources, from the same layers, none of them in ``excluded``."""
    generator = np.random.default_rng(seed)
    taken = set(excluded) | set(sources)
    chosen: list[Neuron] = []
    for layer, _ in sources:
        free = [place for place in range(mlps.neurons(layer)) if (layer, place) not in taken]
        place = int(generator.choice(free))
        taken.add((layer, place))
        chosen.append((layer, place))
    return chosen


def as_neurons(table: pd.DataFrame) -> list[Neuron]:
    """The neurons of a table with the columns ``layer`` and ``neuron``."""
    return [(int(layer), int(place)) for layer, place in zip(table["layer"], table["neuron"], strict=True)]


def typical_size(activations: Float[torch.Tensor | np.ndarray, "prompts neurons"]) -> float:
    """The root mean square of some activations: the unit in which offsets are compared between models."""
    return float(np.sqrt(np.nanmean(np.square(np.asarray(activations)))))
