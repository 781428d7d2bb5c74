"""Before and after over the same prompts, as a difference prompt by prompt.

The prompts of a set are translations of one another. So each bootstrap replicate samples prompts once, and takes the
same ones on both sides and in every language. What was not run is missing (NaN), never a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from polydetox.stats.bootstrap import counts, percentile_interval, pooled_replicates, resampled


@dataclass(frozen=True)
class PromptSamples:
    """Bootstrap samples of a set's prompts, the same ones in every language; ``prompts`` are the ids of all of them."""

    prompts: Sequence[Any]
    samples: int
    seed: int

    @cached_property
    def _places(self) -> Int[np.ndarray, "samples all"]:
        return resampled(len(self.prompts), self.samples, self.seed)

    def of(self, prompts: Sequence[Any]) -> Int[np.ndarray, "samples prompts"]:
        """The samples of a language that has these prompts, each as large as their number.

        A language that lacks prompts passes over them, and samples what is then too few from its own alone.
        """
        own, size = pd.Index(prompts).get_indexer(pd.Index(self.prompts)), len(prompts)  # -1: this language lacks it
        picked, rng = own[self._places], np.random.default_rng([self.seed, size])
        if size == len(own) and (own >= 0).all():
            return picked
        rows = (row[row >= 0][:size] for row in picked)
        return np.stack([np.append(row, rng.integers(size, size=size - len(row))) for row in rows])


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
    before: Float[np.ndarray, " prompts"],
    after: Float[np.ndarray, " prompts"],
    places: Int[np.ndarray, "samples prompts"],
) -> tuple[Side, Side]:
    """The means of two values a prompt; ``places`` says which prompts each replicate has on both sides."""
    left, right = (Side(float(side.mean()), side[places].mean(axis=1)) for side in (before, after))
    return left, right


def paired_medians(
    before: list[np.ndarray], after: list[np.ndarray], places: Int[np.ndarray, "samples prompts"]
) -> tuple[Side, Side]:
    """The medians over all continuations; each replicate has whole prompts, the same ones on both sides."""
    times = counts(places)
    left, right = (
        Side(float(np.median(np.concatenate(side))),
             pooled_replicates(side, times, lambda size: [(size - 1) // 2, size // 2], side="right"))
        for side in (before, after)
    )  # fmt: skip
    return left, right


def compare_prompts(
    before: pd.Series | None, after: pd.Series | None, prompt_samples: PromptSamples
) -> tuple[Side, Side, int]:
    """One metric before and after, over the prompts that have a value on both sides, and their number.

    A side that was not run is None; the other is then summarised over its own prompts, and so it is where a side has a
    value for no prompt, as of a model that writes nothing.
    """
    measured = [pd.Series(dtype=float) if side is None else side[[_has(value) for value in side]]
                for side in (before, after)]  # fmt: skip
    run = [side for side in measured if len(side)]
    shared = [prompt for prompt in run[0].index if prompt in run[-1].index] if run else []
    missing = Side.missing(prompt_samples.samples)
    if not shared:
        return missing, missing, 0
    left, right, places = run[0][shared], run[-1][shared], prompt_samples.of(shared)
    if isinstance(left.iloc[0], np.ndarray):
        sides = paired_medians(list(left), list(right), places)
    else:
        sides = paired_means(left.to_numpy(dtype=float), right.to_numpy(dtype=float), places)
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


def relative_drop(before: pd.Series, after: pd.Series) -> pd.Series:
    """The drop as a fraction of what was there before; NaN where that is 0 or a side is missing."""
    return (before - after) / before.where(before > 0)


def sign_flip(differences: Float[np.ndarray, " n"], *, samples: int = 9999, seed: int = 0) -> float:
    """Two-sided p of a mean difference of 0, if each one's sign were a coin's (Phipson and Smyth 2010, eq. 2)."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(samples, len(differences)))
    reached = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12  # equal sums may differ in the last bits
    return float((1 + reached.sum()) / (1 + samples))


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p values adjusted for their number (Holm 1979)."""
    order, adjusted = np.argsort(p), np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]), 1.0)
    return adjusted
