"""The figures of attribute control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

from polydetox.attribute_control.results import Control, rows_of
from polydetox.results.collect import ENGLISH
from polydetox.results.figures import AFTER, BEFORE, CHOSEN, INK, MUTED, ROW, WIDTH, language_axis, use_theme, x_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# An algorithm has its colour and its marker.
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "<"]
_COLOURS = [BEFORE, MUTED, CHOSEN, "#CC79A7", "#E69F00", AFTER, INK, "#56B4E9", "#009E73"]


def plot_schedules() -> Figure:
    """Who works when in the two schedules: the head and the model, an iteration a shade, in arbitrary units of time."""
    use_theme()
    starts: dict[str, dict[str, tuple[int, ...]]] = {  # of the head and the model of each iteration
        "sequential": {"head": (0, 2, 4), "model": (1, 3, 5)}, "parallel": {"head": (0, 2), "model": (1, 2, 3)},
    }  # fmt: skip
    needed = {  # the parts and iterations between which an arrow goes
        "sequential": ["h1 m1", "m1 h2", "h2 m2", "m2 h3", "h3 m3"], "parallel": ["h1 m1", "m1 h2", "h1 m2", "h2 m3"],
    }  # fmt: skip
    height, colours = {"head": 1, "model": 0}, {"head": CHOSEN, "model": AFTER}
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 3.4), sharex=True)
    for axis, (title, parts) in zip(axes, starts.items(), strict=True):
        places = {}
        for part, begins in parts.items():
            for number, begin in enumerate(begins, start=1):
                places[f"{part[0]}{number}"] = (begin, height[part])
                axis.barh(height[part], 0.88, 0.56, begin + 0.06, color=colours[part], alpha=0.2 + 0.18 * number)
                axis.annotate(rf"${'R' if part == 'head' else 'p'}_{number}$", (begin + 0.5, height[part]),
                              ha="center", va="center", color=INK)  # fmt: skip
        for source, target in (pair.split() for pair in needed[title]):
            (begin, low), (end, high) = places[source], places[target]
            axis.annotate("", (end + 0.1, high), (begin + 0.9, low), arrowprops={"arrowstyle": "-|>", "color": MUTED})
        axis.set(xlim=(-0.05, 6.05), ylim=(-0.6, 1.6), xticks=[])
        axis.set_yticks([1, 0], ["head", "model"])
        axis.tick_params(length=0)
        axis.grid(False)
        axis.set_title(title, loc="left")
        axis.spines[["left", "bottom"]].set_visible(False)
    x_label(figure, "time →")
    return figure


def plot_tradeoff(control: Control) -> Figure:
    """Toxic English continuations against accuracy, one point an algorithm, with intervals; a panel a model."""
    use_theme()
    figure, grid = plt.subplots(1, len(control.models), figsize=(WIDTH, 3.6), sharey=True, squeeze=False)
    for axis, (model, title) in zip(grid.flat, control.models.items(), strict=True):
        english = rows_of(control.compared["toxic"], model=model, language=ENGLISH).set_index("algorithm")
        accuracy = rows_of(control.accuracy, model=model).set_index("algorithm")
        for position, name in enumerate(control.algorithms):
            if name not in accuracy.index or name not in english.index or np.isnan(english.loc[name, "after"]):
                continue
            x, y = accuracy.loc[name], english.loc[name]
            colour = _COLOURS[position % len(_COLOURS)]
            axis.errorbar(x["value"], y["after"], xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
                          yerr=[[y["after"] - y["after_low"]], [y["after_high"] - y["after"]]],
                          marker=_MARKERS[position % len(_MARKERS)], color=colour, markersize=6.5, elinewidth=1.0,
                          linestyle="none", alpha=0.9, label=control.titles[name])  # fmt: skip
        axis.set_xlabel("mean accuracy (%)")
        axis.grid(True, axis="both")
        axis.set_title(title if len(control.models) > 1 else "")
        axis.annotate("better", (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=8, color=MUTED)
    grid[0, 0].set_ylabel("toxic continuations (%), English")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def plot_languages(control: Control) -> Figure:
    """How far each algorithm lowers the fraction of toxic continuations in each language, a panel for each."""
    use_theme()
    panels = [(model, name) for model in control.models for name in control.algorithms[1:]]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    height = rows * (0.75 + ROW * max(len(control.languages), 3))
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height), sharex=True, sharey=True, squeeze=False)
    for unused in list(grid.flat)[len(panels) :]:
        unused.set_visible(False)
    for axis, (model, name) in zip(grid.flat, panels, strict=False):
        language_axis(axis, control.languages)
        mine = rows_of(control.compared["toxic"], model=model, algorithm=name)
        panel = mine.set_index("language").reindex(control.languages)
        positions = np.arange(len(panel))
        axis.axvline(0.0, color=MUTED, linewidth=1.0, linestyle="--")
        if panel["drop"].notna().any():
            axis.hlines(positions, panel["drop_low"], panel["drop_high"], color=INK, linewidth=1.6, alpha=0.7)
            axis.plot(panel["drop"], positions, linestyle="none", marker="o", markersize=4.8, color=INK)
        else:
            axis.annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
        title = control.titles[name]
        axis.set_title(title if len(control.models) == 1 else f"{control.models[model]}\n{title}")
    for axis in list(grid.flat)[max(0, len(panels) - columns) : len(panels)]:
        axis.tick_params(axis="x", labelbottom=True)  # also above an empty place of the last row
    x_label(figure, "drop of toxic continuations (points, base model minus algorithm)")
    return figure
