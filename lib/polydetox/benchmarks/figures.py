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


def plot_changes(changes: pd.DataFrame) -> Figure:
    """Accuracy before and after in each language, with intervals; a panel a comparison and suite."""
    use_theme()
    parts = list(changes.groupby(["title", "suite"], sort=False))
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    height = rows * (1.0 + 0.3 * max(3, *(len(panel) for _, panel in parts)))
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False)
    for axis in list(grid.flat)[len(parts) :]:
        axis.set_visible(False)
    for axis, ((title, suite), panel) in zip(grid.flat, parts, strict=False):
        points(axis, panel, "before", -0.15, BEFORE, "o", "white")
        points(axis, panel, "after", 0.15, AFTER, "D", AFTER)
        names = ["mean" if language == "mean" else language_name(language) for language in panel["language"]]
        axis.set_yticks(np.arange(len(panel)), names)
        axis.tick_params(axis="y", length=0)
        axis.set_title(suite_title(suite) if changes["title"].nunique() == 1 else f"{title}\n{suite_title(suite)}")
        axis.set(xlabel="accuracy (%)", xlim=(-3, 103), ylim=(len(panel) - 0.4, -0.6))
    legend(figure, grid[0, 0])
    return figure
