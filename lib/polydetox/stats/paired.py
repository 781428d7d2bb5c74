"""Before and after over the same prompts, as a difference prompt by prompt.

Each bootstrap replicate draws prompts within a language and takes both sides from the same draw. A mean over languages
averages the replicates of its languages, which are drawn independently. What was not run is missing (NaN), never a
number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from polydetox.stats.bootstrap import counts, draws, percentile_interval, pooled_replicates


@dataclass(frozen=True)
class Side:
    """A statistic before or after, with its bootstrap replicates; NaN where that side was not run."""

    value: float
    replicates: Float[np.ndarray, " samples"]

    @staticmethod
    def missing(samples: int) -> Side:
        """The side that was not run."""
        return Side(float("nan"), np.full(samples, np.nan))

    def interval(self, confidence: float) -> tuple[float, float]:
        """The percentile interval; NaN where that side was not run."""
        return percentile_interval(self.replicates, confidence)


def paired_means(
    before: Float[np.ndarray, " prompts"], after: Float[np.ndarray, " prompts"], samples: int, rng: np.random.Generator
) -> tuple[Side, Side]:
    """The means of two values a prompt; each replicate takes both sides from the same draw of prompts."""
    drawn = draws(len(before), samples, rng)
    left, right = (Side(float(side.mean()), side[drawn].mean(axis=1)) for side in (before, after))
    return left, right


def paired_medians(
    before: list[np.ndarray], after: list[np.ndarray], samples: int, rng: np.random.Generator
) -> tuple[Side, Side]:
    """The medians over all continuations; each replicate draws whole prompts, the same ones on both sides."""
    times = counts(draws(len(before), samples, rng))
    left, right = (
        Side(float(np.median(np.concatenate(side))), pooled_replicates(side, times, _middle, side="right"))
        for side in (before, after)
    )
    return left, right


def _middle(size: int) -> list[int]:
    """The places of the two middle values of so many."""
    return [(size - 1) // 2, size // 2]


def compare_prompts(
    before: pd.Series | None, after: pd.Series | None, samples: int, rng: np.random.Generator
) -> tuple[Side, Side, int]:
    """One metric before and after, over the prompts that have a value on both sides, and their number.

    A side that was not run is None; the other is then summarised over its own prompts, and so it is where a side has a
    value for no prompt, as of a model that writes nothing.
    """
    before, after = (side if side is not None and any(map(_has, side)) else None for side in (before, after))
    if before is None and after is None:
        return Side.missing(samples), Side.missing(samples), 0
    if before is None or after is None:
        lone = before if before is not None else after
        side, _, prompts = compare_prompts(lone, lone, samples, rng)
        missing = Side.missing(samples)
        return (side, missing, prompts) if before is not None else (missing, side, prompts)
    shared = [
        prompt for prompt in before.index if prompt in after.index and _has(before[prompt]) and _has(after[prompt])
    ]
    if not shared:
        return Side.missing(samples), Side.missing(samples), 0
    left, right = before[shared], after[shared]
    if isinstance(left.iloc[0], np.ndarray):
        return *paired_medians(list(left), list(right), samples, rng), len(shared)
    return *paired_means(left.to_numpy(dtype=float), right.to_numpy(dtype=float), samples, rng), len(shared)


def _has(value: Any) -> bool:
    return len(value) > 0 if isinstance(value, np.ndarray) else bool(np.isfinite(value))


def mean_over_languages(sides: list[tuple[Side, Side]], samples: int) -> tuple[Side, Side, int]:
    """The mean over languages before and after, and how many languages it takes in.

    Where some language has only one side, only languages with both count, so that the two means cover the same
    languages; where none has both, the side that was run stands alone.
    """
    both = [pair for pair in sides if not any(np.isnan(side.value) for side in pair)]
    if both:
        before, after = zip(*both, strict=True)
        return _average(before), _average(after), len(both)
    missing = Side.missing(samples)
    for position in (0, 1):
        run = [pair[position] for pair in sides if not np.isnan(pair[position].value)]
        if run:
            return (_average(run), missing, len(run)) if position == 0 else (missing, _average(run), len(run))
    return missing, missing, 0


def _average(sides: Sequence[Side]) -> Side:
    return Side(float(np.mean([side.value for side in sides])), np.mean([side.replicates for side in sides], axis=0))


def comparison_row(before: Side, after: Side, confidence: float) -> dict[str, float]:
    """Before, after and the drop (before minus after), each with its interval."""
    row: dict[str, float] = {}
    drop = Side(before.value - after.value, before.replicates - after.replicates)
    for name, side in (("before", before), ("after", after), ("drop", drop)):
        row[name] = side.value
        row[f"{name}_low"], row[f"{name}_high"] = side.interval(confidence)
    return row
