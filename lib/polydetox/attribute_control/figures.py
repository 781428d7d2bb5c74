"""The figures of attribute control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from polydetox.attribute_control.results import Control
from polydetox.results.collect import ENGLISH
from polydetox.results.figures import AFTER, BEFORE, CHOSEN, INK, MUTED, ROW, WIDTH, language_axis, use_theme, x_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A method has its colour and its marker.
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "<"]
_COLOURS = [BEFORE, MUTED, CHOSEN, "#CC79A7", "#E69F00", AFTER, INK, "#56B4E9", "#009E73"]


def plot_schedules() -> Figure:
    """Who works when in the two schedules: the head and the model, an iteration a shade."""
    use_theme()
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 3.4), sharex=True)
    # Time in arbitrary units: an iteration of the head takes as long as one of the model.
    sequential = [("head", 1, 0), ("model", 1, 1), ("head", 2, 2), ("model", 2, 3), ("head", 3, 4), ("model", 3, 5)]
    parallel = [("head", 1, 0), ("model", 1, 1), ("head", 2, 2), ("model", 2, 2), ("model", 3, 3)]
    needs = {
        "sequential": [(("head", n), ("model", n)) for n in (1, 2, 3)]
        + [(("model", n), ("head", n + 1)) for n in (1, 2)],
        "parallel": [
            (("head", 1), ("model", 1)),
            (("model", 1), ("head", 2)),
            (("head", 1), ("model", 2)),
            (("head", 2), ("model", 3)),
        ],
    }
    for axis, (title, jobs) in zip(axes, {"sequential": sequential, "parallel": parallel}.items(), strict=True):
        places = {(kind, number): begin for kind, number, begin in jobs}
        for kind, number, begin in jobs:
            _job(axis, kind, number, begin)
        for source, target in needs[title]:
            _arrow(axis, source, places[source], target, places[target])
        axis.set_xlim(-0.05, 6.05)
        axis.set_ylim(-0.6, 1.6)
        axis.set_yticks([1, 0], ["head", "model"])
        axis.tick_params(length=0)
        axis.set_xticks([])
        axis.grid(False)
        axis.set_title(title, loc="left")
        axis.spines[["left", "bottom"]].set_visible(False)
    x_label(figure, "time →")
    return figure


def _job(axis: Axes, kind: str, number: int, begin: int) -> None:
    row = 1 if kind == "head" else 0
    colour = CHOSEN if kind == "head" else AFTER
    axis.add_patch(Rectangle((begin + 0.06, row - 0.28), 0.88, 0.56, facecolor=colour, alpha=0.2 + 0.18 * number,
                             edgecolor=colour))  # fmt: skip
    symbol = rf"$R_{number}$" if kind == "head" else rf"$p_{number}$"
    axis.annotate(symbol, (begin + 0.5, row), ha="center", va="center", color=INK)


def _arrow(axis: Axes, source: tuple[str, int], begin: int, target: tuple[str, int], end: int) -> None:
    height = {"head": 1, "model": 0}
    axis.add_patch(FancyArrowPatch((begin + 0.9, height[source[0]]), (end + 0.1, height[target[0]]), arrowstyle="-|>",
                                   mutation_scale=9, color=MUTED, linewidth=0.9, shrinkA=0, shrinkB=0))  # fmt: skip


def plot_tradeoff(control: Control) -> Figure:
    """Toxic English continuations against accuracy, one point a method, with intervals; a panel a model."""
    use_theme()
    figure, grid = plt.subplots(1, len(control.models), figsize=(WIDTH, 3.6), sharey=True, squeeze=False)
    for axis, (model, title) in zip(grid.flat, control.models.items(), strict=True):
        toxicity = control.toxicity[(control.toxicity["model"] == model) & (control.toxicity["language"] == ENGLISH)]
        toxicity, utility = (
            table.set_index("method") for table in (toxicity, control.utility[control.utility["model"] == model])
        )
        for position, method in enumerate(control.methods):
            if method not in utility.index or method not in toxicity.index or np.isnan(toxicity.loc[method, "after"]):
                continue
            x, y = utility.loc[method], toxicity.loc[method]
            colour = _COLOURS[position % len(_COLOURS)]
            axis.errorbar(x["value"], y["after"], xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
                          yerr=[[y["after"] - y["after_low"]], [y["after_high"] - y["after"]]],
                          marker=_MARKERS[position % len(_MARKERS)], color=colour, markersize=6.5, elinewidth=1.0,
                          linestyle="none", alpha=0.9, label=control.titles[method])  # fmt: skip
        axis.set_xlabel("mean accuracy (%)")
        axis.grid(True, axis="both")
        axis.set_title(title if len(control.models) > 1 else "")
        axis.annotate("better", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=8, color=MUTED)
    grid[0, 0].set_ylabel("toxic continuations (%), English")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def plot_languages(control: Control) -> Figure:
    """How far each method lowers the fraction of toxic continuations in each language; a panel a model and method."""
    use_theme()
    tuned = [method for method in control.methods if method != "base"]
    panels = [(model, method) for model in control.models for method in tuned]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    height = rows * (0.75 + ROW * max(len(control.languages), 3))
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height), sharex=True, sharey=True, squeeze=False)
    for unused in list(grid.flat)[len(panels) :]:
        unused.set_visible(False)
    for axis, (model, method) in zip(grid.flat, panels, strict=False):
        language_axis(axis, control.languages)
        table = control.toxicity
        mine = table[(table["model"] == model) & (table["method"] == method)].set_index("language")
        panel = mine.reindex(control.languages)
        positions = np.arange(len(panel))
        axis.axvline(0.0, color=MUTED, linewidth=1.0, linestyle="--")
        if panel["drop"].notna().any():
            axis.hlines(positions, panel["drop_low"], panel["drop_high"], color=INK, linewidth=1.6, alpha=0.7)
            axis.plot(panel["drop"], positions, linestyle="none", marker="o", markersize=4.8, color=INK)
        else:
            axis.annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
        title = control.titles[method]
        axis.set_title(title if len(control.models) == 1 else f"{control.models[model]}\n{title}")
    for axis in list(grid.flat)[max(0, len(panels) - columns) : len(panels)]:
        axis.tick_params(axis="x", labelbottom=True)  # also above an empty place of the last row
    x_label(figure, "drop of toxic continuations (points, base model minus method)")
    return figure


def plot_iterations(iterations: pd.DataFrame) -> Figure:
    """Held-out loss of both domains, and the fraction of samples that the oracle rejects, by iteration.

    ``iterations`` has a row an iteration, 0 before training; what was not measured in one is missing.
    """
    use_theme()
    sampled = iterations.dropna(subset=["rejected"])
    figure, axes = plt.subplots(1, 2 if len(sampled) else 1, figsize=(WIDTH, 2.6), squeeze=False)
    for column, label, colour, marker in (
        ("held_out_toxic", "toxic text", BEFORE, "o"), ("held_out_neutral", "neutral text", AFTER, "D")
    ):  # fmt: skip
        known = iterations.dropna(subset=[column])
        axes[0, 0].plot(known["iteration"], known[column], color=colour, marker=marker, label=label)
    axes[0, 0].set_ylabel("held-out loss (nats a token)")
    axes[0, 0].legend()
    if len(sampled):
        axes[0, 1].plot(sampled["iteration"], sampled["rejected"], color=CHOSEN, marker="s")
        axes[0, 1].set_ylabel("samples rejected (fraction)")
        axes[0, 1].set_ylim(0.0, max(0.05, 1.1 * float(sampled["rejected"].max())))
    for axis in axes[0]:
        axis.set_xlabel("iteration")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
