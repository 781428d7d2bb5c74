"""Before and after over the same prompts, as a difference prompt by prompt.

Each bootstrap replicate resamples prompts within a language, the same ones on both sides. A mean over languages
averages the replicates of its languages, which are resampled independently. What was not run is missing (NaN), never a
number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from polydetox.stats.bootstrap import counts, percentile_interval, pooled_replicates, resampled


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
    """The means of two values a prompt; each replicate has the same prompts on both sides."""
    places = resampled(len(before), samples, rng)
    left, right = (Side(float(side.mean()), side[places].mean(axis=1)) for side in (before, after))
    return left, right


def paired_medians(
    before: list[np.ndarray], after: list[np.ndarray], samples: int, rng: np.random.Generator
) -> tuple[Side, Side]:
    """The medians over all continuations; each replicate has whole prompts, the same ones on both sides."""

    def middle(size: int) -> list[int]:
        return [(size - 1) // 2, size // 2]

    times = counts(resampled(len(before), samples, rng))
    left, right = (
        Side(float(np.median(np.concatenate(side))), pooled_replicates(side, times, middle, side="right"))
        for side in (before, after)
    )
    return left, right


def compare_prompts(
    before: pd.Series | None, after: pd.Series | None, samples: int, rng: np.random.Generator
) -> tuple[Side, Side, int]:
    """One metric before and after, over the prompts that have a value on both sides, and their number.

    A side that was not run is None; the other is then summarised over its own prompts, and so it is where a side has a
    value for no prompt, as of a model that writes nothing.
    """
    measured = [pd.Series(dtype=float) if side is None else side[[_has(value) for value in side]]
                for side in (before, after)]  # fmt: skip
    run = [side for side in measured if len(side)]
    shared = [prompt for prompt in run[0].index if prompt in run[-1].index] if run else []
    missing = Side.missing(samples)
    if not shared:
        return missing, missing, 0
    left, right = run[0][shared], run[-1][shared]
    if isinstance(left.iloc[0], np.ndarray):
        sides = paired_medians(list(left), list(right), samples, rng)
    else:
        sides = paired_means(left.to_numpy(dtype=float), right.to_numpy(dtype=float), samples, rng)
    first, second = (side if len(values) else missing for side, values in zip(sides, measured, strict=True))
    return first, second, len(shared)


def _has(value: Any) -> bool:
    return len(value) > 0 if isinstance(value, np.ndarray) else bool(np.isfinite(value))


def mean_over_languages(sides: list[tuple[Side, Side]], samples: int) -> tuple[Side, Side, int]:
    """The mean over languages before and after, and how many languages it takes in.

    Where some language has only one side, only languages with both count, so that the two means cover the same
    languages; where none has both, the side that was run stands alone.
    """
    before, after = ([pair[place] for pair in sides if not np.isnan(pair[place].value)] for place in (0, 1))
    both = [pair for pair in sides if not any(np.isnan(side.value) for side in pair)]
    if both:
        before, after = map(list, zip(*both, strict=True))
    elif before:
        after = []
    return _average(before, samples), _average(after, samples), len(before or after)


def _average(sides: Sequence[Side], samples: int) -> Side:
    if not sides:
        return Side.missing(samples)
    return Side(float(np.mean([side.value for side in sides])), np.mean([side.replicates for side in sides], axis=0))


def comparison_row(before: Side, after: Side, confidence: float) -> dict[str, float]:
    """Before, after and the drop (before minus after), each with its interval."""
    row: dict[str, float] = {}
    drop = Side(before.value - after.value, before.replicates - after.replicates)
    for name, side in (("before", before), ("after", after), ("drop", drop)):
        row[name] = side.value
        row[f"{name}_low"], row[f"{name}_high"] = side.interval(confidence)
    return row
