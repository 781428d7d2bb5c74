"""The figures of preference pairs, of DPO training and of ablations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from polydetox.preference.ablations import MEAN
from polydetox.results.collect import METRICS
from polydetox.results.figures import (
    AFTER,
    BEFORE,
    CHOSEN,
    INK,
    MUTED,
    REJECTED,
    ROW,
    SIDES,
    WIDTH,
    language_axis,
    legend,
    use_theme,
    x_label,
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_training_curves(log: pd.DataFrame) -> Figure:
    """Loss and reward margin over the steps of one training.

    ``log`` is a training log in long form (``step, split, metric, value``): a thin line for the pairs of each step,
    points for the held-out pairs.
    """
    return plot_training_runs({"": log})


def plot_training_runs(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """The training curves of several runs, a row of panels a run."""
    use_theme()
    figure, grid = plt.subplots(len(logs), 2, figsize=(WIDTH, 2.7 * len(logs)), squeeze=False)
    for axes, (title, log) in zip(grid, logs.items(), strict=True):
        for axis, metric, label in zip(
            axes, ("loss", "reward_margin"), ("loss (nats)", "reward margin (nats)"), strict=True
        ):
            _curve(axis, log[log["metric"] == metric])
            axis.set_xlabel("step")
            axis.set_ylabel(label)
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        first = log[(log["metric"] == "loss") & (log["split"] == "held_out") & (log["step"] == 0)]["value"]
        untuned = math.log(2.0) if first.empty else first.iloc[0]  # DPO's loss begins at log 2, others elsewhere
        axes[0].axhline(untuned, color=MUTED, linewidth=0.8, linestyle=":")
        axes[0].annotate("untuned", (1.0, untuned), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                         fontsize=7.5, color=MUTED)  # fmt: skip
        axes[0].set_title(title, loc="left")
    legend(figure, grid[0, 0])
    return figure


def _curve(axis: Axes, rows: pd.DataFrame) -> None:
    train = rows[rows["split"] == "train"].sort_values("step")
    held_out = rows[rows["split"] == "held_out"].sort_values("step")
    axis.plot(train["step"], train["value"], color=MUTED, linewidth=0.9, label="pairs of the step")
    axis.plot(
        held_out["step"], held_out["value"], color=INK, linewidth=1.6, marker="o", markersize=4, label="held-out pairs"
    )
    axis.grid(True, axis="both")


def plot_pair_toxicity(pairs: pd.DataFrame) -> Figure:
    """Histograms of the toxicity of chosen and rejected continuations.

    ``pairs`` has the columns ``chosen_toxicity`` and ``rejected_toxicity``.
    """
    use_theme()
    figure, axis = plt.subplots(figsize=(WIDTH, 2.6))
    bins = np.linspace(0.0, 1.0, 26).tolist()
    for side, colour, hatch in (("chosen", CHOSEN, ""), ("rejected", REJECTED, "///")):
        axis.hist(pairs[f"{side}_toxicity"], bins, color=colour, alpha=0.65, label=side, hatch=hatch, edgecolor="white")
    axis.set_xlabel("toxicity (0 to 1)")
    axis.set_ylabel("continuations")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(True, axis="y")
    legend(figure, axis)
    return figure


# --- ablations --------------------------------------------------------------------------------------------------

# Configurations of a family differ in shape as well as in colour.
_MARKS = [(AFTER, "D"), (CHOSEN, "s"), (REJECTED, "^"), (BEFORE, "v"), (MUTED, "P")]


def plot_drops(table: pd.DataFrame, metric: str = "emt") -> Figure:
    """The drop of one metric in each language, with its interval, a mark a configuration; a panel a family."""
    use_theme()
    rows = table[(table["metric"] == metric) & (table["language"] != MEAN)]
    families = dict(list(rows.groupby("family", sort=False)))
    languages = list(rows["language"].unique())
    size = (WIDTH, 1.2 + 1.15 * ROW * max(len(languages), 3))
    figure, grid = plt.subplots(1, len(families), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, (family, members) in zip(grid[0], families.items(), strict=True):
        found = list(members.groupby("label", sort=False))
        for position, (label, mine) in enumerate(found):
            mine = mine.set_index("language").reindex(languages)
            colour, marker = _MARKS[position % len(_MARKS)]
            at = np.arange(len(languages)) + 0.22 * (position - (len(found) - 1) / 2)
            axis.hlines(at, mine["drop_low"], mine["drop_high"], color=colour, linewidth=1.2, alpha=0.55)
            axis.plot(mine["drop"], at, marker, markersize=4.2, color=colour, label=label)
        axis.axvline(0.0, color=MUTED, linewidth=1.0, linestyle="--")
        language_axis(axis, languages)
        axis.set_title(family if len(families) > 1 else "")
    x_label(figure, f"drop of {METRICS[metric].title} (before minus after)")
    legend(figure, grid[0, 0])
    return figure


def plot_against_perplexity(table: pd.DataFrame) -> Figure:
    """EMT and ToxProb against the median perplexity, a point a configuration, joined; a row of panels a family."""
    use_theme()
    means = table[table["language"] == MEAN].dropna(subset="after")
    families = list(means.groupby("family", sort=False))
    figure, grid = plt.subplots(len(families), 2, figsize=(WIDTH, 3.1 * len(families)), squeeze=False)
    for axes, (family, rows) in zip(grid, families, strict=True):
        axes[0].set_title(family if len(families) > 1 else "", loc="left")
        by_metric = {metric: mine.set_index("label") for metric, mine in rows.groupby("metric")}
        fluency = by_metric["perplexity"]
        for axis, metric in zip(axes, ("emt", "toxprob"), strict=True):
            toxicity = by_metric[metric]
            labels = toxicity.index.intersection(fluency.index, sort=False)
            points = [("before", labels[0], "base model"), *(("after", label, label) for label in labels)]
            for side, label, said in points:
                x, y = fluency.loc[label], toxicity.loc[label]
                colour, marker, fill = SIDES[side]
                axis.hlines(y[side], x[f"{side}_low"], x[f"{side}_high"], color=colour, linewidth=1.0, alpha=0.4)
                axis.vlines(x[side], y[f"{side}_low"], y[f"{side}_high"], color=colour, linewidth=1.0, alpha=0.4)
                axis.plot(x[side], y[side], marker, markersize=5.5, markeredgecolor=colour, markerfacecolor=fill)
                axis.annotate(said, (x[side], y[side]), xytext=(5, 5), textcoords="offset points", fontsize=8)
            axis.plot(*([side.loc[label, end] for end, label, _ in points] for side in (fluency, toxicity)),
                      color=MUTED, linewidth=0.9, zorder=1)  # fmt: skip
            axis.set(xlabel="median perplexity (mean over languages)", ylabel=METRICS[metric].title)
            axis.set_ylim(bottom=0.0)
            axis.margins(x=0.12)
            axis.grid(True, axis="both")
    return figure


def plot_sets(drops: Mapping[str, pd.DataFrame], metric: str = "emt") -> Figure:
    """The drop of one metric on a further set of prompts against that on the first, a point a language.

    ``drops`` holds of each family a table with a row a language and the two sets as its columns.
    """
    use_theme()
    columns = min(len(drops), 3)
    lines = math.ceil(len(drops) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(WIDTH, 3.2 * lines), squeeze=False, sharex=True, sharey=True)
    for axis in grid.flat[len(drops) :]:
        axis.set_visible(False)
    for axis, (title, wide) in zip(grid.flat, drops.items(), strict=False):
        first, second = wide.columns
        axis.plot(wide[first], wide[second], "o", markersize=4.5, color=AFTER)
        for language, x, y in wide.itertuples():
            axis.annotate(language, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=7.5)
        axis.axline((0.0, 0.0), slope=1.0, color=MUTED, linewidth=0.9, linestyle=":")
        axis.axhline(0.0, color=MUTED, linewidth=0.8, linestyle="--")
        axis.axvline(0.0, color=MUTED, linewidth=0.8, linestyle="--")
        axis.set_xlabel(f"drop of {METRICS[metric].title}, {first} prompts", fontsize=8.5)
        axis.set_ylabel(f"drop of {METRICS[metric].title}, {second} prompts", fontsize=8.5)
        axis.set_title(title, fontsize=9)
        axis.grid(True, axis="both")
    return figure


def plot_perplexities(continuations: pd.DataFrame, largest: float) -> Figure:
    """Histograms of the perplexity on a logarithmic axis, before and after, with their medians; a panel a comparison.

    ``continuations`` has the columns ``comparison, side, perplexity``. What is above ``largest`` is in the last bin.
    """
    use_theme()
    found = list(continuations.groupby("comparison", sort=False))
    figure, grid = plt.subplots(len(found), 1, figsize=(WIDTH, 0.6 + 2.1 * len(found)), squeeze=False, sharex=True)
    bins = np.geomspace(1.0, largest, 61)
    for axis, (title, rows) in zip(grid[:, 0], found, strict=True):
        for side, values in rows.groupby("side", sort=False)["perplexity"]:
            colour = SIDES[str(side)][0]
            axis.hist(np.clip(values, bins[0], bins[-1] * 0.999), bins.tolist(), histtype="step", linewidth=1.6,
                      color=colour, label=side, weights=np.full(len(values), 1.0 / len(values)))  # fmt: skip
            axis.axvline(values.median(), color=colour, linewidth=1.0, linestyle="--")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylabel("fraction of continuations")
        axis.set_title(title, loc="left")
    x_label(figure, "perplexity (logarithmic)")
    legend(figure, grid[0, 0])
    return figure
