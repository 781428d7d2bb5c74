"""The figures of toxicity and fluency before and after tuning in every language, and of several scorers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator

from polydetox.results import figures
from polydetox.results.collect import METRICS, Results
from polydetox.results.figures import INK, MUTED, SIDES, legend, panels, points, use_theme, x_label
from polydetox.results.stages import Comparison
from polydetox.results.tables import NOT_MEASURED, NOT_RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_by_language(results: Results, metric: str) -> Figure:
    """One metric before and after in each language, with its interval; a panel a comparison."""
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        panel = _rows(results, comparison, metric)
        for offset, (side, (colour, marker, fill)) in zip((-0.17, 0.17), SIDES.items(), strict=True):
            points(axis, panel, side, offset, colour, marker, fill, missing=_why_missing(panel, side))
        if metric in ("emt", "toxprob", "language_rate"):
            axis.set_xlim(-0.03, 1.03)
    x_label(figure, METRICS[metric].axis)
    legend(figure, axes[0])
    return figure


def plot_drop_by_language(results: Results, metric: str) -> Figure:
    """How far one metric drops in each language (before minus after), with its interval; a panel a comparison."""
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        panel = _rows(results, comparison, metric)
        points(axis, panel, "drop", 0.0, INK, "o", INK, missing=_why_missing(panel, "before", "after"))
        axis.axvline(0.0, color=MUTED, linewidth=1.0, linestyle="--")
    x_label(figure, f"drop of {METRICS[metric].title} (before minus after)")
    return figure


def plot_perplexity_quartiles(results: Results) -> Figure:
    """The quartiles of the continuations' perplexity in each language, before and after, on a logarithmic axis."""
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        variants = {"before": "base", "after": comparison.variant}
        for offset, (side, variant) in zip((-0.17, 0.17), variants.items(), strict=True):
            mine = (results.metrics["model"] == comparison.model) & (results.metrics["variant"] == variant)
            wide = results.metrics[mine].pivot(index="language", columns="metric", values="value")
            panel = wide.reindex(results.profile.languages, columns=["perplexity", "perplexity_q1", "perplexity_q3"])
            panel = panel.set_axis([side, f"{side}_low", f"{side}_high"], axis="columns")
            why = _why_missing(_rows(results, comparison, "perplexity"), side)
            points(axis, panel, side, offset, *SIDES[side], missing=why)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
    x_label(figure, "perplexity: median and quartiles (logarithmic)")
    legend(figure, axes[0])
    return figure


def _rows(results: Results, comparison: Comparison, metric: str) -> pd.DataFrame:
    """Before, after and drop of one metric, a row a language."""
    table = results.by_language
    return table[(table["comparison"] == comparison.name) & (table["metric"] == metric)].set_index("language")


def _why_missing(panel: pd.DataFrame, *sides: str) -> list[str]:
    """What stands in place of a value that a row of :func:`_rows` lacks."""
    ran = panel[[f"{side}_run" for side in sides]].all(axis=1)
    return [NOT_MEASURED if each else NOT_RUN for each in ran]


def plot_drop_by_scorer(results: Results, drops: pd.DataFrame) -> Figure:
    """The drop of ToxProb in each language under every scorer, at matched thresholds; a panel a comparison."""
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        rows = drops[drops["comparison"] == comparison.name]
        shown = {name: mine.set_index("language").reindex(results.profile.languages)[["drop", "drop_low", "drop_high"]]
                 for name, mine in rows.groupby("scorer", sort=False)}  # fmt: skip
        _side_by_side(axis, shown)
        axis.axvline(0.0, color=MUTED, linewidth=1.0, linestyle="--")
    x_label(figure, "drop of ToxProb at matched thresholds (before minus after)")
    legend(figure, axes[0])
    return figure


def plot_agreement(agreed: pd.DataFrame) -> Figure:
    """Rank correlation, area under the curve and kappa on the base model's continuations by language, with intervals.

    ``agreed`` is what the notebook ``agreement`` has as ``pairs``; a colour a pair of scorers.
    """
    use_theme()
    base = agreed[agreed["variant"] == "base"]
    languages = list(dict.fromkeys(base["language"]))
    measures = {"spearman": "Spearman", "auc_of_second": "AUC of the second", "kappa": "kappa"}
    figure, axes = plt.subplots(1, 3, figsize=(figures.WIDTH, 1.1 + figures.ROW * max(len(languages), 3)), sharey=True)
    for axis, (measure, said) in zip(axes, measures.items(), strict=True):
        figures.language_axis(axis, languages)
        columns = [measure, f"{measure}_low", f"{measure}_high"]
        _side_by_side(axis, {" and ".join(pair): rows.set_index("language").reindex(languages)[columns]
                             for pair, rows in base.groupby(["first", "second"], sort=False)})  # fmt: skip
        axis.set_xlabel(said)
    legend(figure, axes[0])
    return figure


def _side_by_side(axis: Axes, shown: dict[str, pd.DataFrame]) -> None:
    """A point and interval for each language of each table (value, low, high), in a colour and a shape of its own."""
    import seaborn as sns

    colours = [INK, *sns.color_palette("colorblind")]
    for position, (name, panel) in enumerate(shown.items()):
        panel = panel.set_axis([name, f"{name}_low", f"{name}_high"], axis="columns")
        offset = (position - (len(shown) - 1) / 2) * 0.6 / max(len(shown), 2)
        colour = colours[position % len(colours)]
        points(axis, panel, name, offset, colour, "oDs^vP"[position % 6], colour, missing="")
