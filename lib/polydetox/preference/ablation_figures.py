"""The figures of the chapter *Ablations*."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

from polydetox.preference import ablations
from polydetox.preference.ablations import BASE, MEAN, TAIL, Family, means, set_title
from polydetox.results.collect import METRICS, Results
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Sequence[tuple[Family, pd.DataFrame]]

# Members of a family differ in shape as well as in colour.
_MEMBERS = [(AFTER, "D"), (CHOSEN, "s"), (REJECTED, "^"), (BEFORE, "v"), (MUTED, "P")]


def was_run(found: Found) -> bool:
    """Whether at least two members of some family were run, so that there is something to draw."""
    return any(ablations.was_run(table) for _, table in found)


def plot_seeds(found: Found, metric: str = "emt") -> Figure:
    """The drop of one metric in each language under every seed, with the interval of each; a panel a family."""
    use_theme()
    languages = max((_languages(table) for _, table in found), key=len)
    height = 1.2 + 1.15 * ROW * max(len(languages), 3)
    figure, grid = plt.subplots(1, len(found), figsize=(WIDTH, height), sharex=True, sharey=True, squeeze=False)
    for axis, (family, table) in zip(grid[0], found, strict=True):
        rows = table[(table["metric"] == metric) & (table["language"] != MEAN)]
        for position, member in enumerate(family.members):
            mine = rows[rows["variant"] == member.variant].set_index("language").reindex(languages)
            colour, marker = _MEMBERS[position % len(_MEMBERS)]
            at = np.arange(len(languages)) + 0.22 * (position - (len(family.members) - 1) / 2)
            axis.hlines(at, mine["drop_low"], mine["drop_high"], color=colour, linewidth=1.2, alpha=0.55)
            axis.plot(mine["drop"], at, linestyle="none", marker=marker, markersize=4.2, color=colour,
                      label=member.label)  # fmt: skip
        axis.axvline(0.0, color=MUTED, linewidth=1.0, linestyle="--")
        language_axis(axis, languages)
        if len(found) > 1:
            axis.set_title(family.title)
    x_label(figure, f"drop of {METRICS[metric].title} (before minus after)")
    legend(figure, grid[0, 0])
    return figure


def _languages(table: pd.DataFrame) -> list[str]:
    return [language for language in table["language"].unique() if language != MEAN]


def plot_learning_rates(found: Found) -> Figure:
    """EMT and ToxProb against the median perplexity, a point a learning rate; a row of panels a family."""
    use_theme()
    metrics = ("emt", "toxprob")
    figure, grid = plt.subplots(len(found), 2, figsize=(WIDTH, 3.1 * len(found)), squeeze=False)
    for axes, (family, table) in zip(grid, found, strict=True):
        for axis, metric in zip(axes, metrics, strict=True):
            _against_perplexity(axis, table, metric)
        if len(found) > 1:
            axes[0].set_title(family.title, loc="left")
    return figure


def _against_perplexity(axis: Axes, table: pd.DataFrame, metric: str) -> None:
    """One panel: the untuned model and every learning rate, joined in the order of the rate."""
    toxicity, fluency = (means(table, name).set_index("variant") for name in (metric, "perplexity"))
    both = [variant for variant in toxicity.index
            if pd.notna(toxicity.loc[variant, "after"]) and pd.notna(fluency.loc[variant, "after"])]  # fmt: skip
    points = [("before", both[0], BASE)] + [("after", variant, toxicity.loc[variant, "label"]) for variant in both]
    xs, ys = [], []
    for side, variant, label in points:
        x, y = fluency.loc[variant], toxicity.loc[variant]
        colour, marker, fill = SIDES[side]
        axis.hlines(y[side], x[f"{side}_low"], x[f"{side}_high"], color=colour, linewidth=1.0, alpha=0.4)
        axis.vlines(x[side], y[f"{side}_low"], y[f"{side}_high"], color=colour, linewidth=1.0, alpha=0.4)
        axis.plot(x[side], y[side], linestyle="none", marker=marker, markersize=5.5, markeredgecolor=colour,
                  markerfacecolor=fill, zorder=3)  # fmt: skip
        axis.annotate(label, (x[side], y[side]), xytext=(5, 5), textcoords="offset points", fontsize=8, color=INK)
        xs.append(x[side])
        ys.append(y[side])
    axis.plot(xs, ys, color=MUTED, linewidth=0.9, zorder=1)
    axis.set_xlabel("median perplexity (mean over languages)")
    axis.set_ylabel(METRICS[metric].title)
    axis.set_ylim(bottom=0.0)
    axis.margins(x=0.12)
    axis.grid(True, axis="both")


def plot_prompt_sets(results: Results, table: pd.DataFrame, metric: str = "emt") -> Figure:
    """The drop of one metric on a further set of prompts against that on the first, a point a language."""
    use_theme()
    rows = table[(table["metric"] == metric) & (table["language"] != MEAN)]
    groups = list(rows.groupby(["comparison", "beside"], sort=False))
    columns = min(len(groups), 3)
    lines = math.ceil(len(groups) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(WIDTH, 3.2 * lines), squeeze=False, sharex=True, sharey=True)
    for axis, ((title, further), mine) in zip(grid.flat, groups, strict=False):
        wide = mine.pivot(index="language", columns="set", values="drop").dropna()
        axis.plot(wide[""], wide[further], linestyle="none", marker="o", markersize=4.5, color=AFTER)
        for language, row in wide.iterrows():
            axis.annotate(str(language), (row[""], row[further]), xytext=(3, 3), textcoords="offset points",
                          fontsize=7.5, color=INK)  # fmt: skip
        axis.axline((0.0, 0.0), slope=1.0, color=MUTED, linewidth=0.9, linestyle=":")
        axis.axhline(0.0, color=MUTED, linewidth=0.8, linestyle="--")
        axis.axvline(0.0, color=MUTED, linewidth=0.8, linestyle="--")
        axis.set_xlabel(f"drop of {METRICS[metric].title}, {set_title(results, '')} prompts", fontsize=8.5)
        axis.set_ylabel(f"drop of {METRICS[metric].title}, {set_title(results, str(further))} prompts", fontsize=8.5)
        axis.set_title(title, fontsize=9)
        axis.grid(True, axis="both")
    for unused in list(grid.flat)[len(groups) :]:
        unused.set_visible(False)
    return figure


def plot_perplexities(found: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Histograms of the perplexity of all continuations that have one on a logarithmic axis; a panel a comparison.

    What lies above the axis is drawn in its last bin, so that nothing is left out.
    """
    use_theme()
    figure, grid = plt.subplots(len(found), 1, figsize=(WIDTH, 0.6 + 2.1 * len(found)), squeeze=False, sharex=True)
    bins = np.geomspace(1.0, 10.0 * TAIL, 61)
    for axis, (title, sides) in zip(grid[:, 0], found.items(), strict=True):
        for side, values in sides.items():
            colour = SIDES[side][0]
            axis.hist(np.clip(values, bins[0], bins[-1] * 0.999), bins, density=False, histtype="step", linewidth=1.6,
                      color=colour, label=side, weights=np.full(len(values), 1.0 / len(values)))  # fmt: skip
            axis.axvline(float(np.median(values)), color=colour, linewidth=1.0, linestyle="--")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylabel("share of continuations")
        axis.set_title(title, loc="left")
    x_label(figure, "perplexity (logarithmic)")
    legend(figure, grid[0, 0])
    return figure
