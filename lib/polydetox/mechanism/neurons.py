"""MLP neurons by their place: sources of toxicity, random ones beside them, and the scripts of what they promote."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from polydetox.core.artifacts import read_parquet
from polydetox.core.errors import UserError
from polydetox.core.paths import relative
from polydetox.mechanism.architectures import MLPs

Neuron = tuple[int, int]  # layer, and place in that layer's MLP

# Unicode names of letters begin with their script; these are one script for a reader.
_SCRIPTS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}


def as_neurons(table: pd.DataFrame) -> list[Neuron]:
    """The neurons of a table with the columns ``layer`` and ``neuron``."""
    return [(int(layer), int(place)) for layer, place in zip(table["layer"], table["neuron"], strict=True)]


def load_sources(file: Path) -> tuple[list[Neuron], list[Neuron]]:
    """The actual and the potential sources that ``sources.parquet`` holds."""
    table = read_parquet(file, ["layer", "neuron", "actual"])
    actual = as_neurons(table[table["actual"]])
    if not actual:
        raise UserError(f"{relative(file)}: no actual source; raise 'mechanism: value_vectors: top'")
    return actual, as_neurons(table)


def random_neurons(mlps: MLPs, sources: Sequence[Neuron], excluded: Sequence[Neuron], seed: int) -> list[Neuron]:
    """As many random neurons as there are sources, from the same layers, none of them in ``excluded``."""
    generator = np.random.default_rng(seed)
    taken = set(excluded) | set(sources)
    chosen: list[Neuron] = []
    for layer, _ in sources:
        free = [place for place in range(mlps.neurons(layer)) if (layer, place) not in taken]
        chosen.append((layer, int(generator.choice(free))))
        taken.add(chosen[-1])
    return chosen


def script(token: str) -> str | None:
    """The script of the first letter of a token (``Latin``, ``Cyrillic``, ``Han`` ...); None without a letter."""
    letter = next(filter(str.isalpha, token), None)
    if letter is None:
        return None
    first = unicodedata.name(letter, "UNKNOWN").split()[0]
    return _SCRIPTS.get(first, first.capitalize())


def scripts_of(tokens: Sequence[str]) -> dict[str, float]:
    """The fraction of each script among the tokens that have a letter, most common first."""
    counted = Counter(name for name in map(script, tokens) if name)
    return {name: number / counted.total() for name, number in counted.most_common()}
