"""MLP neurons by their place: sources of toxicity, and random ones beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from polydetox.core.artifacts import read_parquet
from polydetox.core.errors import UserError
from polydetox.core.paths import relative
from polydetox.mechanism.architectures import MLPs
from polydetox.stats.bootstrap import Seed

Neuron = tuple[int, int]  # layer, and place in that layer's MLP


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


def random_neurons(mlps: MLPs, sources: Sequence[Neuron], excluded: Sequence[Neuron], seed: Seed) -> list[Neuron]:
    """As many random neurons as there are sources, from the same layers, none of them in ``excluded``.

    Of a generator as ``seed`` each call draws a further set, the first one that of the number that seeded it.
    """
    generator = np.random.default_rng(seed)
    taken = set(excluded) | set(sources)
    chosen: list[Neuron] = []
    for layer, _ in sources:
        free = [place for place in range(mlps.neurons(layer)) if (layer, place) not in taken]
        chosen.append((layer, int(generator.choice(free))))
        taken.add(chosen[-1])
    return chosen
