"""The figures of preference pairs and of DPO training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from polydetox.results.figures import CHOSEN, INK, MUTED, REJECTED, WIDTH, legend, use_theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
            axes, ("loss", "reward_margin"), ("loss (nats)", "reward margin (nats)"), strict=True
        ):
            _curve(axis, log[log["metric"] == metric])
            axis.set_xlabel("step")
            axis.set_ylabel(label)
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        first = log[(log["metric"] == "loss") & (log["split"] == "held_out") & (log["step"] == 0)]["value"]
        untuned = math.log(2.0) if first.empty else first.iloc[0]  # DPO's loss begins at log 2, others elsewhere
        axes[0].axhline(untuned, color=MUTED, linewidth=0.8, linestyle=":")
        axes[0].annotate("untuned", (1.0, untuned), xycoords=("axes fraction", "data"), ha="right", va="bottom",
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
    bins = np.linspace(0.0, 1.0, 26).tolist()
    for side, colour, hatch in (("chosen", CHOSEN, ""), ("rejected", REJECTED, "///")):
        axis.hist(pairs[f"{side}_toxicity"], bins, color=colour, alpha=0.65, label=side, hatch=hatch, edgecolor="white")
    axis.set_xlabel("toxicity (0 to 1)")
    axis.set_ylabel("continuations")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(True, axis="y")
    legend(figure, axis)
    return figure
