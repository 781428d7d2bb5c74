"""The figures of toxicity and fluency before and after tuning in every language, and of several scorers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from polydetox.results.collect import METRICS, Results
from polydetox.results.figures import INK, SIDES, legend, panels, points, x_label
from polydetox.results.stages import Comparison
from polydetox.results.tables import NOT_MEASURED, NOT_RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_by_language(results: Results, metric: str) -> Figure:
    """One metric before and after in each language, with its interval; a panel a comparison."""
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        panel = rows_of(results, comparison, metric)
        for offset, (side, (colour, marker, fill)) in zip((-0.17, 0.17), SIDES.items(), strict=True):
            points(axis, panel, side, offset, colour, marker, fill, missing=why_missing(panel, side))
    x_label(figure, METRICS[metric].axis)
    legend(figure, axes[0])
    return figure


def rows_of(results: Results, comparison: Comparison, metric: str) -> pd.DataFrame:
    """Before, after and drop of one metric, a row a language."""
    table = results.by_language
    return table[(table["comparison"] == comparison.name) & (table["metric"] == metric)].set_index("language")


def why_missing(panel: pd.DataFrame, *sides: str) -> list[str]:
    """What stands in place of a value that a row of :func:`rows_of` lacks."""
    ran = panel[[f"{side}_run" for side in sides]].all(axis=1)
    return [NOT_MEASURED if each else NOT_RUN for each in ran]


def side_by_side(axis: Axes, shown: dict[str, pd.DataFrame]) -> None:
    """A point and interval for each language of each table (value, low, high), in a colour and a shape of its own."""
    import seaborn as sns

    colours = [INK, *sns.color_palette("colorblind")]
    for position, (name, panel) in enumerate(shown.items()):
        panel = panel.set_axis([name, f"{name}_low", f"{name}_high"], axis="columns")
        offset = (position - (len(shown) - 1) / 2) * 0.6 / max(len(shown), 2)
        colour = colours[position % len(colours)]
        points(axis, panel, name, offset, colour, "oDs^vP"[position % 6], colour, missing="")
