"""The figure of one method of attribute control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from polydetox.report.figures import AFTER, BEFORE, CHOSEN, WIDTH, use_theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_iterations(iterations: pd.DataFrame) -> Figure:
    """Held-out loss of both domains, and the share of samples that the oracle rejects, by iteration.

    ``iterations`` has a row an iteration, 0 before training; what was not measured in one is left open.
    """
    use_theme()
    sampled = iterations.dropna(subset=["rejected"])
    figure, axes = plt.subplots(1, 2 if len(sampled) else 1, figsize=(WIDTH, 2.6), squeeze=False)
    for column, label, colour, marker in (
        ("held_out_toxic", "toxic text", BEFORE, "o"), ("held_out_neutral", "neutral text", AFTER, "D")
    ):  # fmt: skip
        known = iterations.dropna(subset=[column])
        axes[0, 0].plot(known["iteration"], known[column], color=colour, marker=marker, label=label)
    axes[0, 0].set_ylabel("held-out loss (nats a token)")
    axes[0, 0].legend()
    if len(sampled):
        axes[0, 1].plot(sampled["iteration"], sampled["rejected"], color=CHOSEN, marker="s")
        axes[0, 1].set_ylabel("samples rejected (share)")
        axes[0, 1].set_ylim(0.0, max(0.05, 1.1 * float(sampled["rejected"].max())))
    for axis in axes[0]:
        axis.set_xlabel("iteration")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
