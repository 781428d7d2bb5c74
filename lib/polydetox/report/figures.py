"""The figures of the notebooks and the report, on one theme.

Before and after have the same two colours everywhere (vermilion and blue of Okabe and Ito's colour-blind safe
palette) and differ in shape as well. Languages stand in the paper's order. Every function returns a matplotlib
figure, which a notebook shows at the end of its cell; in a notebook it is stored as SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from polydetox.languages import LANGUAGES
from polydetox.report.collect import ENGLISH, METRICS, Comparison, Results
from polydetox.report.tables import NOT_MEASURED, NOT_RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER = "#D55E00", "#0072B2"
CHOSEN, REJECTED = "#009E73", "#CC79A7"
INK, MUTED = "#2b2b2b", "#8c8c8c"

SIDES = {"before": (BEFORE, "o", "white"), "after": (AFTER, "D", AFTER)}

WIDTH = 7.2  # inches: as wide as the report's text
ROW = 0.27  # inches a language takes
_PANELS_IN_A_ROW = 3


# seaborn's style "ticks" in its context "paper", with changes. Written out, since importing seaborn, and scipy's
# statistics with it, takes longer than evaluating a language.
_THEME = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 1.0,
    "axes.prop_cycle": plt.cycler("color", ["#4C72B0", "#DD8452", "#55A868", "#C44E52", "#8172B3", "#937860", "#DA8BC3",
                                            "#8C8C8C", "#CCB974", "#64B5CD"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.sans-serif": ["Arial", "DejaVu Sans", "Liberation Sans", "Bitstream Vera Sans", "sans-serif"],
    "font.size": 9.6,
    "grid.color": "#e6e6e6",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.title_fontsize": 9.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.8,
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "w",
    "patch.force_edgecolor": True,
    "patch.linewidth": 0.8,
    "svg.hashsalt": "polydetox",  # the same figure gives the same file
    "text.color": INK,
    **{
        f"{axis}tick.{key}": value
        for axis in "xy"
        for key, value in {
            "color": INK, "labelsize": 9, "major.size": 4.8, "major.width": 1.0, "minor.size": 3.2, "minor.width": 0.8,
        }.items()
    },
}  # fmt: skip


@cache
def use_theme() -> None:
    """Set the shared theme; in a notebook also store figures as SVG."""
    plt.rcParams.update(_THEME)
    from IPython import get_ipython

    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


# --- before and after by language -------------------------------------------------------------------------------


def plot_by_language(results: Results, metric: str) -> Figure:
    """One metric before and after in each language, with its interval; a panel a comparison."""
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        panel = _rows(results, comparison, metric)
        for offset, (side, (colour, marker, fill)) in zip((-0.17, 0.17), SIDES.items(), strict=True):
            points(axis, panel, side, offset, colour, marker, fill, missing=_why_missing(panel, side))
        if metric in ("emt", "toxprob", "language_share"):
            axis.set_xlim(-0.03, 1.03)
    x_label(figure, METRICS[metric].axis)
    legend(figure, axes[0])
    return figure


def plot_drop_by_language(results: Results, metric: str) -> Figure:
    """How far one metric drops in each language (before minus after), with its interval; a panel a comparison."""
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        panel = _rows(results, comparison, metric)
        points(axis, panel, "drop", 0.0, INK, "o", INK, missing=_why_missing(panel, "before", "after"))
        axis.axvline(0.0, color=MUTED, linewidth=1.0, linestyle="--")
    x_label(figure, f"drop of {METRICS[metric].title} (before minus after)")
    return figure


def plot_perplexity_quartiles(results: Results) -> Figure:
    """The quartiles of the continuations' perplexity in each language, before and after, on a logarithmic axis."""
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        for offset, (side, variant) in zip(
            (-0.17, 0.17), (("before", "base"), ("after", comparison.variant)), strict=True
        ):
            mine = (results.metrics["model"] == comparison.model) & (results.metrics["variant"] == variant)
            wide = results.metrics[mine].pivot(index="language", columns="metric", values="value")
            quartiles = wide.reindex(
                results.profile.languages, columns=["perplexity", "perplexity_q1", "perplexity_q3"]
            )
            panel = quartiles.set_axis([side, f"{side}_low", f"{side}_high"], axis="columns")
            why = _why_missing(_rows(results, comparison, "perplexity"), side)
            points(axis, panel, side, offset, *SIDES[side], missing=why)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
    x_label(figure, "perplexity: median and quartiles (logarithmic)")
    legend(figure, axes[0])
    return figure


def _rows(results: Results, comparison: Comparison, metric: str) -> pd.DataFrame:
    """Before, after and drop of one metric, a row a language."""
    table = results.by_language
    return table[(table["comparison"] == comparison.name) & (table["metric"] == metric)].set_index("language")


def _why_missing(panel: pd.DataFrame, *sides: str) -> list[str]:
    """What stands in place of a value that a row of :func:`_rows` lacks."""
    ran = panel[[f"{side}_run" for side in sides]].all(axis=1)
    return [NOT_MEASURED if each else NOT_RUN for each in ran]


def points(
    axis: Axes, panel: pd.DataFrame, side: str, offset: float, colour: Any, marker: str, fill: Any,
    *, missing: str | Sequence[str] = NOT_RUN,
) -> None:  # fmt: skip
    """A point with its interval for each row of ``panel`` that has a value; ``missing``, one text for all rows or one a
    row, is written for the others."""
    missing = [missing] * len(panel) if isinstance(missing, str) else missing
    positions = np.arange(len(panel)) + offset
    axis.hlines(positions, panel[f"{side}_low"], panel[f"{side}_high"], color=colour, linewidth=1.6, alpha=0.7)
    axis.plot(
        panel[side], positions, linestyle="none", marker=marker, markersize=5.2, markeredgewidth=1.4,
        markeredgecolor=colour, markerfacecolor=fill, label=side,
    )  # fmt: skip
    for position, value, why in zip(positions - offset, panel[side], missing, strict=True):
        if math.isnan(value):
            axis.annotate(why, (0.02, position + offset), xycoords=("axes fraction", "data"), va="center",
                          fontsize=7.5, color=MUTED)  # fmt: skip


def language_axis(axis: Axes, languages: Sequence[str]) -> None:
    """Languages from top to bottom in the paper's order; English, the language of the pairs, in bold."""
    axis.set_yticks(range(len(languages)), [LANGUAGES[language] for language in languages])
    for label in axis.get_yticklabels():  # none on a panel that shares the axis of its neighbour
        if label.get_text() == LANGUAGES[ENGLISH]:
            label.set_fontweight("bold")
    axis.set_ylim(len(languages) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)


def panels(results: Results) -> tuple[Figure, list[Axes]]:
    """A panel a comparison, up to three in a row, with a line for each language of the profile."""
    use_theme()
    count, languages = len(results.comparisons), results.profile.languages
    columns = min(count, _PANELS_IN_A_ROW)
    rows = math.ceil(count / columns)
    height = rows * (1.1 + ROW * max(len(languages), 3))
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height), sharex=True, sharey=True, squeeze=False)
    figure.get_layout_engine().set(wspace=0.05)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    for axis, comparison in zip(axes, results.comparisons, strict=False):
        language_axis(axis, languages)
        if count > 1:
            axis.set_title(comparison.title)
    return figure, axes[:count]


def x_label(figure: Figure, label: str) -> None:
    """One label for the axes of all panels."""
    figure.supxlabel(label, fontsize=9.5, color=INK)


def legend(figure: Figure, axis: Axes) -> None:
    """One legend above all panels."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper right", ncols=2, handletextpad=0.3)


# --- training ---------------------------------------------------------------------------------------------------


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
            axes, ("loss", "reward_margin"), ("DPO loss (nats)", "reward margin (nats)"), strict=True
        ):
            _curve(axis, log[log["metric"] == metric])
            axis.set_xlabel("step")
            axis.set_ylabel(label)
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axes[0].axhline(math.log(2.0), color=MUTED, linewidth=0.8, linestyle=":")
        axes[0].annotate("untuned", (1.0, math.log(2.0)), xycoords=("axes fraction", "data"), ha="right", va="bottom",
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
    bins = np.linspace(0.0, 1.0, 26)
    for side, colour, hatch in (("chosen", CHOSEN, ""), ("rejected", REJECTED, "///")):
        axis.hist(pairs[f"{side}_toxicity"], bins, color=colour, alpha=0.65, label=side, hatch=hatch, edgecolor="white")
    axis.set_xlabel("toxicity (0 to 1)")
    axis.set_ylabel("continuations")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(True, axis="y")
    legend(figure, axis)
    return figure


# --- one evaluation ---------------------------------------------------------------------------------------------


def plot_toxicity_distribution(scores: pd.DataFrame, threshold: float) -> Figure:
    """Histograms of toxicity: of all continuations, and of the most toxic one of each prompt.

    ``scores`` has the columns ``prompt_id`` and ``toxicity``; missing scores are left out.
    """
    use_theme()
    highest = scores.groupby("prompt_id")["toxicity"].max()
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    bins = np.linspace(0.0, 1.0, 26)
    for axis, values, title, counted in zip(
        axes,
        (scores["toxicity"], highest),
        ("All continuations", "The most toxic of each prompt"),
        ("continuations", "prompts"),
        strict=True,
    ):
        axis.hist(values.dropna(), bins, color=INK, alpha=0.75, edgecolor="white")
        axis.axvline(threshold, color=MUTED, linewidth=1.0, linestyle="--")
        axis.annotate(f"toxic from {threshold:g}", (threshold, 1.0), xycoords=("data", "axes fraction"),
                      xytext=(3, -2), textcoords="offset points", va="top", fontsize=7.5, color=MUTED)  # fmt: skip
        axis.set_xlim(0.0, 1.0)
        axis.set_xlabel("toxicity (0 to 1)")
        axis.set_ylabel(counted)
        axis.set_title(title)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, axis="y")
    return figure
