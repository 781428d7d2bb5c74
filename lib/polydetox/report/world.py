"""The section *A controlled world*: its tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from polydetox import paths
from polydetox.artifacts import finished, read_json, read_parquet
from polydetox.languages import LANGUAGES
from polydetox.params import Profile
from polydetox.report.collect import ENGLISH
from polydetox.report.figures import AFTER, BEFORE, INK, MUTED, WIDTH, legend, use_theme
from polydetox.report.tables import NOT_APPLICABLE, NOT_RUN, Cell, Group, PaperTable, fixed, number
from polydetox.retrieval.transfer import correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = [
    "before",
    "after",
    "relative_drop",
    "well_formed_before",
    "well_formed_after",
    "accuracy",
    "centred_accuracy",
]
COLUMNS = ["cell", "size", "alignment", "seed", "parameters", "language", *MEASURES]


# --- what has been run ------------------------------------------------------------------------------------------


def _done(profile: Profile) -> list[Path]:
    names = profile.world.cells() if profile.world else {}
    folders = [paths.world_transfer(profile.name, cell) for cell in names]
    return [folder for folder in folders if finished(folder)]


def files(profile: Profile) -> list[Path]:
    """What the section reads."""
    return [folder / name for folder in _done(profile) for name in ("metrics.json", "languages.parquet")]


def cells(profile: Profile) -> pd.DataFrame:
    """Every model and language that was measured, a row each."""
    tables = []
    for folder in _done(profile):
        metrics = read_json(folder / "metrics.json")
        table = read_parquet(folder / "languages.parquet", ["language", "before", "after", "accuracy"])
        # Readers know a size by its parameters, not by the profile's name for it.
        told = {**metrics, "size": f"{metrics['parameters'] / 1e6:.1f} M parameters"}
        tables.append(table.assign(**{key: told[key] for key in COLUMNS[:5]})[COLUMNS])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def by_alignment(table: pd.DataFrame) -> pd.DataFrame:
    """Of each size and alignment the mean over seeds of each model's mean over languages, and its deviation.

    Columns: ``size, alignment, models``, each of ``MEASURES`` (languages other than English) with ``_sd`` (standard
    deviation over seeds), and ``english_before, english_after``.
    """
    rows = []
    for (size, alignment), group in table.groupby(["size", "alignment"], sort=True):
        others = group[group["language"] != ENGLISH].groupby("cell")[MEASURES].mean()
        english = group[group["language"] == ENGLISH]
        row = {"size": size, "alignment": alignment, "models": len(others)}
        for name in MEASURES:
            row |= {name: others[name].mean(), f"{name}_sd": others[name].std()}
        rows.append(row | {f"english_{side}": english[side].mean() for side in ("before", "after")})
    return pd.DataFrame(rows)


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """Correlations over models and languages other than English, with and without the means of each alignment.

    Their intervals draw whole models, as the languages of one model are not independent.
    """
    others = table[(table["language"] != ENGLISH) & table["relative_drop"].notna()]
    found: dict[str, Any] = {"models": int(table["cell"].nunique()), "points": len(others)}
    if others.empty:
        return found
    columns = others[["alignment", "accuracy", "relative_drop"]].astype(float)
    centred = columns - columns.groupby([others["size"], columns["alignment"]]).transform("mean")
    models = pd.factorize(others["cell"])[0]
    for name, (data, x, y) in {
        "alignment_drop": (columns, "alignment", "relative_drop"),
        "alignment_accuracy": (columns, "alignment", "accuracy"),
        "accuracy_drop": (columns, "accuracy", "relative_drop"),
        "accuracy_drop_within": (centred.assign(alignment=0.0), "accuracy", "relative_drop"),
    }.items():
        found[name] = correlation(data[x].to_numpy(), data[y].to_numpy(), models)
    return found


# --- tables -----------------------------------------------------------------------------------------------------


def cell_table(table: pd.DataFrame) -> PaperTable:
    """One model: insults, well-formed continuations and retrieval in each language."""
    spans = [("", 1), ("Insulting", 3), ("Well-formed", 2), ("Retrieval", 2)]
    columns = ["Language", "before", "after", "relative drop", "before", "after", "as it is", "centred"]
    lines: list[list[Cell | str]] = [
        [LANGUAGES[str(row.language)], number(row.before, 2), number(row.after, 2), _share(row.relative_drop),
         number(row.well_formed_before, 2), number(row.well_formed_after, 2), number(row.accuracy, 2),
         number(row.centred_accuracy, 2)]
        for row in table.itertuples()
    ]  # fmt: skip
    return PaperTable(columns, [Group(None, lines)], spans)


def _share(value: float) -> Cell:
    return Cell(NOT_APPLICABLE) if pd.isna(value) else number(value, 2)


_SHOWN = ["before", "after", "relative_drop", "well_formed_before", "well_formed_after", "accuracy", "centred_accuracy"]


def levels_table(levels: pd.DataFrame) -> PaperTable:
    """Each size and alignment, means over seeds with their deviation."""
    spans = [("", 1), ("Insulting", 3), ("Well-formed", 2), ("Retrieval", 2)]
    columns = ["Aligned", "before", "after", "drop", "before", "after", "as it is", "centred"]
    groups = []
    for size, rows in levels.groupby("size", sort=False) if len(levels) else []:
        lines: list[list[Cell | str]] = [
            [f"{row['alignment']:.0%}", *(_spread(row, name) for name in _SHOWN)] for _, row in rows.iterrows()
        ]
        groups.append(Group(f"{size} ({int(rows['models'].sum())} models)", lines))
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * 7]])], spans)


def _spread(row: pd.Series, name: str) -> Cell:
    deviation = row[f"{name}_sd"]
    if pd.isna(row[name]):
        return Cell(NOT_APPLICABLE)
    return Cell(fixed(row[name], 2), "" if pd.isna(deviation) else f"± {fixed(deviation, 2)}")


_SAID = {
    "alignment_drop": "alignment set, relative drop of insults",
    "alignment_accuracy": "alignment set, retrieval accuracy",
    "accuracy_drop": "retrieval accuracy, relative drop of insults",
    "accuracy_drop_within": "the same within each alignment",
}


def correlations_table(found: Mapping[str, Any]) -> PaperTable:
    """Pearson's r of each pair of quantities."""
    columns = ["Between", "Points", "Pearson's r", "without one model"]
    lines: list[list[Cell | str]] = []
    for name, said in _SAID.items():
        row = found.get(name)
        if row is None:
            lines.append([said, *[Cell(NOT_RUN)] * 3])
        elif row["r"] is None:
            lines.append([said, number(row["points"], 0), *[Cell(NOT_APPLICABLE)] * 2])
        else:
            without = [fixed(row[f"{side}_without_one"], 2) for side in ("least", "most")]
            lines.append([said, number(row["points"], 0), number(row["r"], 2, row["low"], row["high"]),
                          Cell(" to ".join(without))])  # fmt: skip
    return PaperTable(columns, [Group(None, lines)])


# --- figures ----------------------------------------------------------------------------------------------------


def plot_pretraining(log: pd.DataFrame) -> Figure:
    """The loss at every step of one pretraining."""
    use_theme()
    figure, axis = plt.subplots(figsize=(WIDTH, 2.4))
    axis.plot(log["step"], log["loss"], color=INK, linewidth=1.2)
    axis.set_xlabel("step")
    axis.set_ylabel("loss (nats a token)")
    axis.set_ylim(bottom=0.0)
    axis.grid(True, axis="both")
    return figure


_SIZES = [(AFTER, "o", "-"), (BEFORE, "s", "--"), (MUTED, "^", ":")]


def plot_alignment(table: pd.DataFrame) -> Figure:
    """Retrieval and transfer of each model against the alignment that was set; a line through means, by size."""
    use_theme()
    others = table[table["language"] != ENGLISH]
    means = (
        others.groupby(["size", "alignment", "cell"], sort=False)[["accuracy", "relative_drop"]].mean().reset_index()
    )
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.0))
    for axis, column, said in zip(
        axes, ("accuracy", "relative_drop"), ("retrieval accuracy (0 to 1)", "relative drop of insults"), strict=True
    ):
        for (size, rows), (colour, marker, style) in zip(means.groupby("size", sort=False), _SIZES, strict=False):
            level = rows.groupby("alignment")[column].mean()
            axis.plot(level.index, level, color=colour, linestyle=style, linewidth=1.6)
            axis.plot(rows["alignment"], rows[column], linestyle="none", marker=marker, markersize=5, color=colour,
                      alpha=0.75, label=str(size))  # fmt: skip
        axis.set_xlabel("share of aligned text in pretraining (0 to 1)")
        axis.set_ylabel(said)
        axis.grid(True, axis="both")
    legend(figure, axes[0])
    return figure


def plot_retrieval(table: pd.DataFrame) -> Figure:
    """Relative drop against retrieval accuracy, a point a model and language; right, within each alignment."""
    use_theme()
    others = table[(table["language"] != ENGLISH) & table["relative_drop"].notna()]
    columns = others[["accuracy", "relative_drop"]].astype(float)
    centred = columns - columns.groupby([others["size"], others["alignment"]]).transform("mean")
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    for axis, data, said in zip(axes, (columns, centred), ("", " (less the mean of its alignment)"), strict=True):
        points = axis.scatter(data["accuracy"], data["relative_drop"], c=others["alignment"].astype(float),
                              cmap="cividis", s=18, vmin=0.0, vmax=1.0)  # fmt: skip
        axis.set_xlabel(f"retrieval accuracy{said}", fontsize=8.5)
        axis.set_ylabel(f"relative drop{said}", fontsize=8.5)
        axis.grid(True, axis="both")
    figure.colorbar(points, ax=axes, label="share of aligned text", fraction=0.04)
    return figure


# --- sentences --------------------------------------------------------------------------------------------------


def sentence(table: pd.DataFrame, found: Mapping[str, Any]) -> str:
    """What came of it, chosen by the numbers."""
    if table.empty:
        return "Not run."
    levels = by_alignment(table)
    said = []
    for size, rows in levels.groupby("size", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        said.append(
            f"In models of {size} the relative drop of insults in languages other than English is "
            f"{_or_undefined(first['relative_drop'])} with {first['alignment']:.0%} of the text aligned and "
            f"{_or_undefined(last['relative_drop'])} with {last['alignment']:.0%}, while retrieval accuracy goes from "
            f"{fixed(first['accuracy'], 2)} to {fixed(last['accuracy'], 2)}. In English, the language of the pairs, "
            f"the share of insults falls from {_range(rows['english_before'])} to {_range(rows['english_after'])}. "
            f"What reaches the other languages is not all kindness: with {last['alignment']:.0%} aligned, the share of "
            f"their continuations that are well formed goes from {fixed(last['well_formed_before'], 2)} to "
            f"{fixed(last['well_formed_after'], 2)}."
        )
    for name, words in (
        ("alignment_drop", "The alignment that was set and the drop correlate"),
        ("accuracy_drop_within", "Among models of the same alignment, retrieval accuracy and the drop correlate"),
    ):
        row = found.get(name)
        if row and row["r"] is not None:
            said.append(f"{words} at r = {fixed(row['r'], 2)} [{fixed(row['low'], 2)}, {fixed(row['high'], 2)}].")
    return " ".join(said)


def _range(values: pd.Series) -> str:
    low, high = fixed(values.min(), 2), fixed(values.max(), 2)
    return low if low == high else f"{low}\N{EN DASH}{high}"


def _or_undefined(value: float) -> str:
    return "undefined, as nothing insulted," if pd.isna(value) else fixed(value, 2)


def overview(profile: Profile) -> str:
    """What the world is made of, for the report's prose."""
    if profile.world is None:
        return "This profile has no controlled world: not run."
    world = profile.world
    done, asked = len(_done(profile)), len(world.cells())
    return (
        f"The profile asks for {asked} small models ({_counted(len(world.sizes), 'size')}, "
        f"{_counted(len(world.alignments), 'alignment')}, {_counted(len(world.seeds), 'seed')}) in "
        f"{_counted(len(profile.languages), 'language')}, of which {done} {'was' if done == 1 else 'were'} run."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
