"""What the figures of toxicity and fluency before and after tuning, and of several scorers, have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from polydetox.results.collect import Results
from polydetox.results.figures import INK, most_first, points
from polydetox.results.stages import Comparison
from polydetox.results.tables import NOT_MEASURED, NOT_RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rows_of(results: Results, comparison: Comparison, metric: str) -> pd.DataFrame:
    """Before, after and drop of one metric, a row a language."""
    table = results.by_language
    return table[(table["comparison"] == comparison.name) & (table["metric"] == metric)].set_index("language")


def by_drop(results: Results, metric: str) -> list[str]:
    """The languages of the profile, those in which a metric falls most under the first comparison first."""
    return most_first(rows_of(results, results.comparisons[0], metric)["drop"])


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
