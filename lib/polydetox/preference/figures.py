"""The figures of DPO training and of ablations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

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
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SPLITS: dict[str, dict[str, Any]] = {
    "train": {"color": MUTED, "linewidth": 0.9, "label": "pairs of the step"},
    "held_out": {"color": INK, "linewidth": 1.6, "marker": "o", "markersize": 4, "label": "held-out pairs"},
}


def plot_training_runs(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss and reward margin over the steps of each training: a thin line for the pairs of each step, points for the
    held-out pairs.

    ``logs`` holds training logs in long form (``step, split, metric, value``) by title.
    """
    use_theme()
    figure, grid = plt.subplots(len(logs), 2, figsize=(WIDTH, 2.7 * len(logs)), squeeze=False)
    for axes, (title, log) in zip(grid, logs.items(), strict=True):
        for axis, metric in zip(axes, ("loss", "reward_margin"), strict=True):
            for split, look in _SPLITS.items():
                rows = log[(log["metric"] == metric) & (log["split"] == split)].sort_values("step")
                axis.plot(rows["step"], rows["value"], **look)
            axis.set(xlabel="step", ylabel=f"{metric.replace('_', ' ')} (nats)")
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            axis.grid(True, axis="both")
        first = log[(log["metric"] == "loss") & (log["split"] == "held_out") & (log["step"] == 0)]["value"]
        base = math.log(2.0) if first.empty else first.iloc[0]  # DPO's loss begins at log 2, others elsewhere
        axes[0].axhline(base, color=MUTED, linewidth=0.8, linestyle=":")
        axes[0].annotate("base model", (1.0, base), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                         fontsize=7.5, color=MUTED)  # fmt: skip
        axes[0].set_title(title, loc="left")
    legend(figure, grid[0, 0])
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
