"""The figure of DPO training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from polydetox.results.figures import INK, MUTED, WIDTH, name_lines, use_theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SPLITS: dict[str, dict[str, Any]] = {
    "train": {"color": MUTED, "linewidth": 0.9, "label": "pairs of the step"},
    "held_out": {"color": INK, "linewidth": 1.6, "marker": "o", "markersize": 4, "label": "held-out pairs"},
}


def plot_training_runs(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss and reward margin over the steps of each training: a thin line for the pairs of each step, points for the
    held-out pairs.

    ``logs`` holds training logs in long form (``step, split, metric, value``) by title.
    """
    use_theme()
    figure, grid = plt.subplots(len(logs), 2, figsize=(WIDTH, 2.7 * len(logs)), squeeze=False)
    for axes, (title, log) in zip(grid, logs.items(), strict=True):
        for axis, metric in zip(axes, ("loss", "reward_margin"), strict=True):
            for split, look in _SPLITS.items():
                rows = log[(log["metric"] == metric) & (log["split"] == split)].sort_values("step")
                axis.plot(rows["step"], rows["value"], **look)
            axis.set(xlabel="step", ylabel=f"{metric.replace('_', ' ')} (nats)")
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            axis.grid(True, axis="both")
        first = log[(log["metric"] == "loss") & (log["split"] == "held_out") & (log["step"] == 0)]["value"]
        base = math.log(2.0) if first.empty else first.iloc[0]  # DPO's loss begins at log 2, others elsewhere
        axes[0].axhline(base, color=MUTED, linewidth=0.8, linestyle=":")
        axes[0].annotate("base model", (1.0, base), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                         fontsize=7.5, color=MUTED)  # fmt: skip
        axes[0].set_title(title, loc="left")
    name_lines(grid[:, 1])
    return figure
