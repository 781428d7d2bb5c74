"""The figures of the chapter *Why it transfers*, on the theme of :mod:`polydetox.results.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from polydetox.core.languages import LANGUAGES
from polydetox.mechanism.tables import GROUPS
from polydetox.results.figures import (
    AFTER,
    BEFORE,
    INK,
    MUTED,
    ROW,
    SIDES,
    WIDTH,
    language_axis,
    legend,
    points,
    use_theme,
    x_label,
)
from polydetox.results.published import paper_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OUTCOMES = {"toxicity": "average toxicity (0 to 1)", "repeated": "fraction of repeated words"}

# Sources and random neurons differ by colour and by line.
_STYLES = {"sources": (BEFORE, "-", "o"), "random": (MUTED, "--", "s")}


def _panels(languages: Sequence[str], rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    """Axes (rows, columns) with a line for each language."""
    use_theme()
    size = (WIDTH, (1.0 + ROW * max(len(languages), 3)) * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, **options)
    for axis in grid.flat:
        language_axis(axis, languages)
    return figure, grid


def plot_probe_by_language(qualities: Mapping[str, pd.DataFrame]) -> Figure:
    """Area under the ROC curve of each model's probe in each language, with its interval; a panel a model."""
    found = set().union(*(set(quality["texts_of"]) for quality in qualities.values()))
    languages = [language for language in LANGUAGES if language in found]
    figure, grid = _panels(languages, 1, len(qualities), sharex=True)
    for axis, (title, quality) in zip(grid.flat, qualities.items(), strict=True):
        for classifier, colour, marker, offset in (
            ("probe", AFTER, "D", -0.12),
            ("logistic regression", MUTED, "o", 0.12),
        ):
            rows = quality[quality["classifier"] == classifier].set_index("texts_of").reindex(languages)
            places = np.arange(len(rows)) + offset
            low, high = (rows[f"roc_auc_{end}"].astype(float) for end in ("low", "high"))
            axis.hlines(places, low, high, color=colour, linewidth=1.4, alpha=0.7)
            axis.plot(rows["roc_auc"].astype(float), places, linestyle="none", marker=marker, markersize=5,
                      color=colour, label=classifier)  # fmt: skip
        axis.axvline(0.5, color=MUTED, linewidth=1.0, linestyle="--")
        axis.set_xlim(right=1.02)
        if len(qualities) > 1:
            axis.set_title(title)
    x_label(figure, "area under the ROC curve (0 to 1)")
    legend(figure, grid[0, 0])
    return figure


def plot_sources_by_layer(found: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]) -> Figure:
    """How many potential and actual sources lie in each layer; a panel a model."""
    use_theme()
    figure, grid = plt.subplots(len(found), 1, figsize=(WIDTH, 2.4 * len(found)), squeeze=False)
    for axis, (title, (table, metrics)) in zip(grid.flat, found.items(), strict=True):
        layers = np.arange(metrics["layers"])
        counts = {name: rows["layer"].value_counts().reindex(layers, fill_value=0)
                  for name, rows in (("potential", table), ("actual", table[table["actual"]]))}  # fmt: skip
        axis.bar(layers + 1, counts["potential"], color="white", edgecolor=INK, label="potential sources")
        axis.bar(layers + 1, counts["actual"], color=BEFORE, edgecolor=INK, label="actual sources")
        axis.set_xlabel("layer")
        axis.set_ylabel("neurons")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, axis="y")
        if len(found) > 1:
            axis.set_title(title)
    legend(figure, grid[0, 0])
    return figure


def plot_neuron_activations(neurons: pd.DataFrame) -> Figure:
    """The mean activation of each neuron by language: the sources, and random neurons of the same layers."""
    languages = list(neurons["language"].unique())
    figure, grid = _panels(languages, 1, 1)
    axis = grid[0, 0]
    for offset, (group, (colour, _, marker)) in zip((-0.17, 0.17), _STYLES.items(), strict=True):
        rows = neurons[neurons["group"] == group]
        places = rows["language"].map(languages.index) + offset
        axis.plot(rows["activation"], places, linestyle="none", marker=marker, markersize=3, alpha=0.35, color=colour)
        mean = rows.groupby("language", sort=False)["activation"].mean().reindex(languages)
        axis.plot(mean, np.arange(len(languages)) + offset, linestyle="none", marker="|", markersize=11,
                  markeredgewidth=2.0, color=colour, label=f"{GROUPS[group]}, mean")  # fmt: skip
    axis.axvline(0.0, color=MUTED, linewidth=0.8, linestyle=":")
    axis.set_xlabel("mean activation over the next tokens")
    legend(figure, axis)
    return figure


def plot_activations(table: pd.DataFrame, languages: Sequence[str]) -> Figure:
    """Mean activations before and after by language: both groups of each comparison, and the paper's sources."""
    paper = paper_table("figure3_neuron_activation").set_index("language").reindex(languages)
    theirs = {f"{side}{end}": paper[column] for side, column in (("before", "pre_dpo"), ("after", "post_dpo"))
              for end in ("", "_low", "_high")}  # fmt: skip
    titles = list(table["comparison"].unique())
    figure, grid = _panels(languages, len(titles), 3)
    for axes, title in zip(grid, titles, strict=True):
        mine = table[table["comparison"] == title].set_index("language")
        panels = [mine[mine["group"] == group].reindex(languages) for group in GROUPS]
        names = (GROUPS["sources"], "random neurons", "paper: mGPT, sources")
        for axis, panel, name in zip(axes, [*panels, pd.DataFrame(theirs)], names, strict=True):
            for offset, (side, (colour, marker, fill)) in zip((-0.17, 0.17), SIDES.items(), strict=True):
                points(axis, panel, side, offset, colour, marker, fill)
            axis.axvline(0.0, color=MUTED, linewidth=0.8, linestyle=":")
            axis.set_title(name, fontsize=9)
        # Sources and random neurons share their unit, the paper's model has its own.
        limits = [axis.get_xlim() for axis in axes[:-1]]
        for axis in axes[:-1]:
            axis.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
        if len(titles) > 1:
            axes[0].set_title(f"{title}\n{GROUPS['sources']}", fontsize=9)
    x_label(figure, "mean activation over the next tokens")
    legend(figure, grid[0, 0])
    return figure


def plot_intervention(table: pd.DataFrame) -> Figure:
    """Toxicity and repetition against the offset: a thin line a language, a thick one for their mean; a row a model."""
    use_theme()
    titles = list(table["model"].unique())
    figure, grid = plt.subplots(len(titles), 2, figsize=(WIDTH, 2.9 * len(titles)), squeeze=False)
    unit = "the sources' rms activation" if (table["unit"] == "rms").all() else "activation"
    several = table["language"].nunique() > 1
    for axes, title in zip(grid, titles, strict=True):
        mine = table[table["model"] == title]
        for axis, (column, said) in zip(axes, _OUTCOMES.items(), strict=True):
            for group, (colour, style, marker) in _STYLES.items():
                rows = mine[mine["group"] == group]
                if rows.empty:
                    continue
                wide = rows.pivot(index="offset", columns="language", values=column).sort_index()
                if several:
                    axis.plot(wide.index, wide, color=colour, linestyle=style, linewidth=0.6, alpha=0.35)
                axis.plot(wide.index, wide.mean(axis=1), color=colour, linestyle=style, marker=marker, linewidth=2.0,
                          label=GROUPS[group])  # fmt: skip
            axis.invert_xaxis()  # from no offset to the largest
            axis.set_ylim(bottom=0.0)
            axis.set_xlabel(f"offset (in {unit})" if unit != "activation" else "offset of the activation")
            axis.set_ylabel(said)
            axis.grid(True, axis="both")
        axes[0].set_title(title, loc="left")
    legend(figure, grid[0, 0])
    return figure
