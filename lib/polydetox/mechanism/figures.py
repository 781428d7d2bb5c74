"""The figures of the chapter *Why it transfers*, on the theme of :mod:`polydetox.results.figures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from polydetox.core.languages import LANGUAGES
from polydetox.mechanism.tables import GROUPS
from polydetox.results import figures as shared
from polydetox.results.figures import AFTER, BEFORE, INK, MUTED, WIDTH
from polydetox.results.tables import NOT_APPLICABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_probe_by_language(qualities: Mapping[str, pd.DataFrame]) -> Figure:
    """Area under the ROC curve of each model's probe in each language, with its interval; a panel a model."""
    found = set().union(*(set(quality["texts_of"]) for quality in qualities.values()))
    first = next(iter(qualities.values())).query("classifier == 'probe'").set_index("texts_of")["roc_auc"]
    languages = shared.most_first(first.reindex([language for language in LANGUAGES if language in found]))
    shared.use_theme()
    size = (WIDTH, 1.0 + shared.ROW * max(len(languages), 3))
    figure, grid = plt.subplots(1, len(qualities), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis, (title, quality) in zip(grid.flat, qualities.items(), strict=True):
        shared.language_axis(axis, languages)
        for name, offset, colour, marker in (("probe", -0.12, AFTER, "D"), ("logistic regression", 0.12, MUTED, "o")):
            rows = quality[quality["classifier"] == name].set_index("texts_of").filter(like="roc_auc")
            rows = rows.rename(columns=lambda column, to=name: column.replace("roc_auc", to)).reindex(languages)
            missing = NOT_APPLICABLE if name == "probe" else ""
            shared.points(axis, rows.astype(float), name, offset, colour, marker, colour, missing=missing)
        axis.axvline(0.5, color=MUTED, linewidth=1.0, linestyle="--")
        axis.set_xlim(right=1.02)
        if len(qualities) > 1:
            axis.set_title(title)
    shared.x_label(figure, "area under the ROC curve (0 to 1)")
    shared.legend(figure, grid[0, 0])
    return figure


def plot_sources_by_layer(found: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]) -> Figure:
    """How many potential and actual sources lie in each layer; a panel a model."""
    shared.use_theme()
    figure, grid = plt.subplots(len(found), 1, figsize=(WIDTH, 2.4 * len(found)), squeeze=False)
    for axis, (title, (table, metrics)) in zip(grid.flat, found.items(), strict=True):
        layers = range(1, metrics["layers"] + 1)
        for label, colour, rows in (("potential", "white", table), ("actual", BEFORE, table[table["actual"]])):
            counts = (rows["layer"] + 1).value_counts().reindex(layers, fill_value=0)
            axis.bar(layers, counts, color=colour, edgecolor=INK, label=f"{label} sources")
        axis.set(xlabel="layer", ylabel="neurons", title=title if len(found) > 1 else "")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, axis="y")
    shared.legend(figure, grid[0, 0])
    return figure


def plot_intervention(table: pd.DataFrame) -> Figure:
    """Toxicity, its difference and repetition by offset: a thin line a language, a thick one their mean; a row a model.

    ``table`` is what the notebook ``intervene`` writes as offsets.parquet, with the column ``model``. Bars are the
    intervals of the mean over languages; a band reaches from the least to the most toxic random set.
    """
    shared.use_theme()
    models = table.groupby("model", sort=False)
    panels = {"average toxicity (0 to 1)": ["sources", "random"], "sources less random neurons": ["difference"],
              "fraction of repeated words": ["sources_repeated", "random_repeated"]}  # fmt: skip
    styles = {"sources": {"color": BEFORE}, "random": {"color": MUTED, "linestyle": "--"}, "difference": {"color": INK}}
    figure, grid = plt.subplots(len(models), len(panels), figsize=(WIDTH, 3.1 * len(models)), squeeze=False)
    for axes, (title, mine) in zip(grid, models, strict=True):
        axes[0].set_title(title, loc="left")
        wide = mine.pivot(index="offset", columns="language").sort_index()
        mean = wide.xs("mean", axis=1, level="language")
        axes[0].fill_between(mean.index, mean["random_least"], mean["random_most"], color=MUTED, alpha=0.3)
        for axis, (said, names) in zip(axes, panels.items(), strict=True):
            for name in names:
                group = name.removesuffix("_repeated")
                axis.plot(mean.index, wide[name], linewidth=0.6, alpha=0.35, **styles[group])
                axis.plot(mean.index, mean[name], marker="o", linewidth=2.0, label=GROUPS.get(group), **styles[group])
                if name == group:
                    axis.vlines(mean.index, mean[f"{name}_low"], mean[f"{name}_high"], color=styles[group]["color"])
            axis.set(ylabel=said, ylim=(None if "difference" in names else 0.0, None))
            axis.grid(True, axis="both")
            axis.invert_xaxis()  # from no offset to the largest
    unit = "in rms activations of the sources" if (table["unit"] == "rms").all() else "of the activation"
    shared.x_label(figure, f"offset {unit}")
    shared.legend(figure, grid[0, 0])
    return figure


def plot_shift(table: pd.DataFrame) -> Figure:
    """How much of the change lies along each direction, layer by layer; a row a ``comparison``."""
    lines = {"shift": "change on English", "base": "base model's variance", "random": "random"}
    long = table.rename(columns=lines).melt(["comparison", "language", "layer"], list(lines.values()), "line", "value")
    colours = dict(zip(lines.values(), (AFTER, BEFORE, MUTED), strict=True))
    return _plot_by_layer(long.assign(panel=""), colours, "fraction of the squared change")


def plot_lens(table: pd.DataFrame) -> Figure:
    """Where each layer puts the tokens of a group before and after, a panel a group; a row a ``comparison``."""
    long = table.rename(columns={"side": "line", "standing": "value"})
    long["panel"] = "tokens of " + long["group"].map(GROUPS)
    return _plot_by_layer(long, {"before": BEFORE, "after": AFTER}, "mean logit (sd of the vocabulary)")


def _plot_by_layer(table: pd.DataFrame, colours: Mapping[str, str], said: str) -> Figure:
    """Each ``value`` by ``layer``: a thin line a ``language``, a thick one for their mean; a row a ``comparison``."""
    shared.use_theme()
    panels, titles = list(table["panel"].unique()), list(table["comparison"].unique())
    size = (WIDTH, 2.9 * len(titles))
    figure, grid = plt.subplots(len(titles), len(panels), figsize=size, squeeze=False, sharey=True)
    groups = table.groupby(["comparison", "panel", "line"])
    for axes, title in zip(grid, titles, strict=True):
        for axis, panel in zip(axes, panels, strict=True):
            for line, colour in colours.items():
                wide = groups.get_group((title, panel, line)).pivot(index="layer", columns="language", values="value")
                axis.plot(wide.index + 1, wide, linewidth=0.6, alpha=0.35, color=colour)
                axis.plot(wide.index + 1, wide.mean(axis=1), linewidth=2.0, label=line, color=colour)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set(xlabel="layer", title="\n".join(filter(None, (title, panel))))
        axes[0].set_ylabel(said)
    shared.name_lines(grid[:, -1])
    return figure
