"""The figure of the capability benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from polydetox.benchmarks.tables import language_name, suite_title
from polydetox.results.figures import AFTER, BEFORE, WIDTH, legend, points, use_theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_changes(table: pd.DataFrame) -> Figure:
    """Accuracy before and after in each language, with intervals; a panel a comparison and suite."""
    use_theme()
    keys = list(table.groupby(["title", "suite"], sort=False).groups)
    most = max(len(table[(table["title"] == title) & (table["suite"] == suite)]) for title, suite in keys)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, rows * (1.0 + 0.3 * max(most, 3))), squeeze=False)
    for axis in list(grid.flat)[len(keys) :]:
        axis.set_visible(False)
    for axis, (title, suite) in zip(grid.flat, keys, strict=False):
        panel = table[(table["title"] == title) & (table["suite"] == suite)]
        points(axis, panel, "before", -0.15, BEFORE, "o", "white")
        points(axis, panel, "after", 0.15, AFTER, "D", AFTER)
        axis.set_yticks(np.arange(len(panel)), [
            "mean" if language == "mean" else language_name(language) for language in panel["language"]
        ])  # fmt: skip
        axis.set_ylim(len(panel) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.set_title(suite_title(suite) if table["title"].nunique() == 1 else f"{title}\n{suite_title(suite)}")
        axis.set_xlabel("accuracy (%)")
        axis.set_xlim(-3, 103)
    legend(figure, grid[0, 0])
    return figure
