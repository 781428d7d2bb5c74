"""The figures of retrieval across languages and of its correlation with the drop of toxicity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from polydetox.core.languages import LANGUAGES
from polydetox.results.figures import AFTER, BEFORE, MUTED, WIDTH, name_lines, name_points, use_theme
from polydetox.stats.correlation import line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RETRIEVED = {"accuracy": "retrieval accuracy (0 to 1)", "aligned_cosine": "mean cosine"}


def plot_retrieval(found: Sequence[tuple[str, Mapping[str, pd.DataFrame], int]]) -> Figure:
    """Accuracy, and the mean cosine of aligned and other pairs, at every layer; a thin line a language.

    ``found`` has of each model its title, a table of layers by language, and the number of sentences.
    """
    use_theme()
    figure, grid = plt.subplots(len(found), 2, figsize=(WIDTH, 2.9 * len(found)), squeeze=False)
    for axes, (title, tables, sentences) in zip(grid, found, strict=True):
        for axis, (column, said) in zip(axes, _RETRIEVED.items(), strict=True):
            wide = pd.DataFrame({name: table.set_index("layer")[column] for name, table in tables.items()})
            if len(tables) > 1:
                axis.plot(wide.index, wide, color=AFTER, linewidth=0.6, alpha=0.4)
            aligned = "aligned pairs" if column == "aligned_cosine" else None
            axis.plot(wide.index, wide.mean(axis=1), color=AFTER, linewidth=2.2, label=aligned)
            axis.set_xlabel("layer")
            axis.set_ylabel(said)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(True, axis="y")
        other = pd.DataFrame({name: table.set_index("layer")["other_cosine"] for name, table in tables.items()})
        mean = other.mean(axis=1)
        axes[1].plot(other.index, mean, color=BEFORE, linewidth=2.2, linestyle="--", label="other pairs")
        axes[0].axhline(1.0 / sentences, color=MUTED, linewidth=1.0, linestyle=":")
        axes[0].set_ylim(-0.02, 1.02)
        if len(found) > 1:
            axes[0].set_title(title, loc="left")
    name_lines(grid[:, 1])
    return figure


def plot_transfer(found: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]) -> Figure:
    """Relative drop of EMT against retrieval accuracy, every language labelled; a panel a comparison."""
    use_theme()
    columns = min(len(found), 2)
    rows = -(-len(found) // columns)
    size = (WIDTH, 4.0 * rows) if columns == 1 else (WIDTH, 3.4 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for unused in list(grid.flat)[len(found) :]:
        unused.set_visible(False)
    for axis, (title, (table, metrics)) in zip(grid.flat, found.items(), strict=False):
        x, y = table["accuracy"].to_numpy(float), table["relative_drop"].to_numpy(float)
        if len(x) > 1:
            slope, intercept = line(x, y)
            ends = np.array([x.min(), x.max()])
            axis.plot(ends, slope * ends + intercept, color=MUTED, linestyle="--", linewidth=1.2)
        axis.plot(x, y, linestyle="none", marker="o", markersize=5, color=AFTER)
        axis.margins(x=0.12, y=0.1)
        name_points(axis, [LANGUAGES[language] for language in table["language"]], x, y)
        r = metrics["accuracy"]["r"]
        axis.set_title((f"{title}: " if len(found) > 1 else "") + ("r not defined" if r is None else f"r = {r:.2f}"))
        axis.set_xlabel("retrieval accuracy, mean over layers (0 to 1)")
        axis.set_ylabel("relative drop of EMT")
        axis.grid(True, axis="both")
    return figure
