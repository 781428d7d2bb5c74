"""The figures of the notebooks and the report, on one theme.

Before and after have the same two colours everywhere (vermilion and blue of Okabe and Ito's colour-blind safe palette,
the vermilion dark enough for text) and differ in shape as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.text import Text

from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import ENGLISH, Results
from polydetox.results.tables import NOT_RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER = "#C25500", "#0072B2"
CHOSEN, REJECTED = "#009E73", "#CC79A7"
INK, MUTED = "#2b2b2b", "#6e6e6e"

SIDES = {"before": (BEFORE, "o", "white"), "after": (AFTER, "D", AFTER)}

WIDTH = 7.2  # inches: as wide as the report's text
ROW = 0.27  # inches a language takes
_PANELS_IN_A_ROW = 3

# Where a name may stand beside its point, in points to the right and upwards; the far places have a line to the point.
_PLACES = [(x * far, y * far - 3, side, far > 1) for far in (1, 3, 5, 7)
           for x, side in ((5, "left"), (-5, "right"), (0, "center")) for y in (6, -6, 0) if x or y]  # fmt: skip


@cache
def use_theme() -> None:
    """Set the shared theme; in a notebook also store figures as SVG."""
    plt.style.use("polydetox.results.theme")
    from IPython import get_ipython

    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")


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
    """Languages from top to bottom as they are given; English, the language of the pairs, in bold."""
    axis.set_yticks(range(len(languages)), [LANGUAGES[language] for language in languages])
    for label in axis.get_yticklabels():  # none on a panel that shares the axis of its neighbour
        # Said of all, since an axis whose languages are put in another order keeps its labels.
        label.set_fontweight("bold" if label.get_text() == LANGUAGES[ENGLISH] else "normal")
    axis.set_ylim(len(languages) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)


def panels(results: Results, languages: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A panel a comparison, up to three in a row, with a line for each language."""
    use_theme()
    count = len(results.comparisons)
    columns = min(count, _PANELS_IN_A_ROW)
    rows = math.ceil(count / columns)
    height = rows * (1.1 + ROW * max(len(languages), 3))
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height), sharex=True, sharey=True, squeeze=False)
    figure.set_layout_engine("constrained", wspace=0.05)
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
    figure.supxlabel(label, color=INK)


def most_first(values: pd.Series) -> list[str]:
    """The index of some values by the values, the largest first; equal ones stay in their order on every machine."""
    return list(values.sort_values(ascending=False, kind="stable").index)


def name_sides(axis: Axes, panel: pd.DataFrame) -> None:
    """Write ``before`` and ``after`` above the points of the first row of a panel."""
    values = panel[list(SIDES)].iloc[0].astype(float)
    axis.set_ylim(top=-1.3)
    if values.notna().all():
        ordered = values.sort_values(kind="stable").index
        for side, alignment, gap in zip(ordered, ("right", "left"), (-1, 1), strict=True):
            axis.annotate(side, (values[side], -0.7), (gap, 0), textcoords="offset points", ha=alignment, fontsize=8,
                          color=SIDES[side][0])  # fmt: skip


def name_lines(axes: np.ndarray) -> None:
    """Write the name of each labelled line at its right end, above those that it would meet, in a figure's axes."""
    axes[0].figure.draw_without_rendering()  # lays the axes out
    for axis in axes:
        ends = []
        for line in axis.get_lines():
            data = np.asarray(line.get_xydata(), dtype=float)
            data = data[np.isfinite(data).all(axis=1)]
            if len(data) and not str(line.get_label()).startswith("_"):
                places = axis.transLimits.transform(axis.transScale.transform(data))
                ends.append((float(places[places[:, 0].argmax(), 1]), line))
        height = -math.inf
        for end, line in sorted(ends, key=lambda found: found[0]):
            height = max(end, height + 11.0 * axis.figure.dpi / 72 / axis.bbox.height)
            axis.annotate(str(line.get_label()), (1.02, height), xycoords="axes fraction", va="center", fontsize=8,
                          color=line.get_color(), annotation_clip=False)  # fmt: skip


def name_points(axis: Axes, names: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
    """Write each name beside its point, at the first place where it covers least of the points and of other names."""
    cast("Figure", axis.figure).draw_without_rendering()  # lays the axes out, so that places can be compared
    measured = np.isfinite(x) & np.isfinite(y)
    points = np.column_stack([x, y])[measured]
    pixels = axis.transData.transform(points)
    marker = 3.0 * axis.figure.dpi / 72  # the half of a marker that a point stands for
    taken: list[Any] = []
    for index, (name, point) in enumerate(zip(np.asarray(names)[measured], points, strict=True)):
        tried = [axis.annotate(name, point, (right, up), textcoords="offset points", fontsize=7.5, ha=side,
                               arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5} if far else None)
                 for right, up, side, far in _PLACES]  # fmt: skip
        for text in tried:
            text.get_window_extent()  # moves it to its place
        boxes = [Text.get_window_extent(text) for text in tried]  # without the lines
        others = np.delete(pixels, index, axis=0)
        clashes = [sum(map(box.overlaps, taken)) + sum(box.padded(marker).contains(*pixel) for pixel in others)
                   for box in boxes]  # fmt: skip
        best = int(np.argmin(clashes))
        taken.append(boxes[best])
        for text in tried[:best] + tried[best + 1 :]:
            text.remove()


def legend(figure: Figure, axis: Axes) -> None:
    """One legend above all panels."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper right", ncols=2, handletextpad=0.3)
