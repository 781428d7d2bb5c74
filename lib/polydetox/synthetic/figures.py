"""The figures of the synthetic multilingual setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd

from polydetox.results.collect import ENGLISH
from polydetox.results.figures import AFTER, BEFORE, MUTED, WIDTH, legend, use_theme
from polydetox.synthetic.results import PREDICTORS, SEED, others, within

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZES = [(AFTER, "o", "-"), (BEFORE, "s", "--"), (MUTED, "^", ":")]


def plot_alignment(table: pd.DataFrame) -> Figure:
    """What predicts and transfer of each model against the alignment that was set; a line through means, by size."""
    use_theme()
    shown = {**PREDICTORS, "relative_drop": "relative drop of insults"}
    by_model = table[table["language"] != ENGLISH].groupby(["size", "alignment", "configuration"], sort=False)
    means = by_model[list(shown)].mean().reset_index()
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.7))
    for axis, (column, said) in zip(axes, shown.items(), strict=True):
        for (size, rows), (colour, marker, style) in zip(means.groupby("size", sort=False), _SIZES, strict=False):
            level = rows.groupby("alignment")[column].mean()
            axis.plot(level.index, level, color=colour, linestyle=style, linewidth=1.6)
            axis.plot(rows["alignment"], rows[column], linestyle="none", marker=marker, markersize=5, color=colour,
                      alpha=0.75, label=str(size))  # fmt: skip
        axis.set_xlabel("fraction of aligned text")
        axis.set_ylabel(said)
        axis.grid(True, axis="both")
    legend(figure, axes[0])
    return figure


def plot_retrieval(table: pd.DataFrame) -> Figure:
    """Relative drop against what predicts, a point a model and language; right, where only the seed differs."""
    use_theme()
    points = others(table)
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 5.6))
    for column, data, less in zip(axes.T, (points, within(points, SEED)), ("", " (less the mean)"), strict=True):
        for axis, (predictor, said) in zip(column, PREDICTORS.items(), strict=True):
            shown = axis.scatter(data[predictor], data["relative_drop"], c=points["alignment"], cmap="cividis", s=18,
                                 vmin=0.0, vmax=1.0)  # fmt: skip
            axis.set_xlabel(f"{said}{less}", fontsize=8.5)
            axis.set_ylabel(f"relative drop{less}", fontsize=8.5)
            axis.grid(True, axis="both")
    figure.colorbar(shown, ax=axes, label="fraction of aligned text", fraction=0.04)
    return figure
