"""The section *A controlled world*: its tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from polydetox import paths
from polydetox.artifacts import finished, read_json, read_parquet
from polydetox.languages import LANGUAGES
from polydetox.params import Profile
from polydetox.report.collect import ENGLISH
from polydetox.report.figures import AFTER, BEFORE, INK, MUTED, WIDTH, legend, use_theme
from polydetox.report.tables import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_RUN,
    Cell,
    Group,
    PaperTable,
    fixed,
    listing,
    number,
    significance,
)
from polydetox.stats.correlation import correlation, line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = [
    "before",
    "after",
    "relative_drop",
    "kept_before",
    "kept_after",
    "kept_drop",
    "well_formed_before",
    "well_formed_after",
    "accuracy",
    "centred_accuracy",
    "direction_cosine",
    "tone_effect",
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
        table = read_parquet(folder / "languages.parquet", ["language", *MEASURES])
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


ALIGNMENT = ["size", "alignment"]  # what models of the same corpus share
SEED = [*ALIGNMENT, "language"]  # and with the language, only the seed is left to differ
PREDICTORS = {"accuracy": "retrieval accuracy", "direction_cosine": "cosine of directions"}


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """What correlates: a row a model and language other than English whose drop is defined."""
    return table[(table["language"] != ENGLISH) & table["relative_drop"].notna()].astype(
        dict.fromkeys(("alignment", "accuracy", "direction_cosine", "relative_drop", "kept_drop"), float)
    )


def within(points: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """What predicts and the relative drop less their means over the points that share ``keys``."""
    values = points[[*PREDICTORS, "relative_drop"]]
    return values - values.groupby([points[key] for key in keys]).transform("mean")


def figures(table: pd.DataFrame) -> dict[str, Any]:
    """What correlates with the drop over models and languages other than English, by size, and what is left within.

    ``sizes`` has for each size the correlations of ``_BY_SIZE``: what follows from the alignment that was set, what
    retrieval and the cosine of directions tell of the drop, in all continuations and among the well-formed ones, and
    what alignment tells once a straight line through retrieval is taken away; and under ``most_aligned`` the two drops
    where most of the text is aligned. Over all sizes, ``within_alignment`` and ``within_seed`` take the means of each
    corpus away, and of each corpus and language, for each of ``PREDICTORS``. Intervals draw whole models, as the
    languages of one model are not independent; the p of ``within_seed`` is that of :func:`permutation_p`.
    """
    points = _points(table)
    found: dict[str, Any] = {"models": int(table["cell"].nunique()), "points": len(points), "sizes": {}}
    if points.empty:
        return found
    for size, rows in points.groupby("size", sort=True):
        alignment, accuracy, drop = (rows[name].to_numpy() for name in ("alignment", "accuracy", "relative_drop"))
        most = rows.loc[alignment == alignment.max(), ["relative_drop", "kept_drop"]]
        beyond = rows.assign(alignment=_beyond(alignment, accuracy), relative_drop=_beyond(drop, accuracy))
        found["sizes"][size] = {
            **{f"{x}_{short}": _correlation(rows, x, y) for x, y, short in _PAIRS},
            "most_aligned": most.mean().to_dict(),
            "alignment_drop_given_accuracy": _correlation(beyond, "alignment", "relative_drop"),
        }
    for name, keys in (("within_alignment", ALIGNMENT), ("within_seed", SEED)):
        left = within(points, keys).assign(cell=points["cell"])
        found[name] = {predictor: _correlation(left, predictor, "relative_drop") for predictor in PREDICTORS}
    for predictor, row in found["within_seed"].items():
        row["p"] = permutation_p(points, predictor)
    return found


_PAIRS = [
    ("alignment", "accuracy", "accuracy"),
    ("alignment", "direction_cosine", "direction_cosine"),
    *(
        (x, y, short)
        for y, short in (("relative_drop", "drop"), ("kept_drop", "kept"))
        for x in ("alignment", *PREDICTORS)
    ),
]


def _correlation(rows: pd.DataFrame, x: str, y: str) -> dict[str, Any]:
    """Over the rows in which both are defined; whole models are drawn."""
    rows = rows[[x, y, "cell"]].dropna()
    return correlation(rows[x].to_numpy(), rows[y].to_numpy(), pd.factorize(rows["cell"])[0])


def _beyond(values: np.ndarray, predictor: np.ndarray) -> np.ndarray:
    """What a line of least squares through ``predictor`` leaves of some values."""
    slope, intercept = line(predictor, values)
    return values - slope * predictor - intercept


def permutation_p(
    points: pd.DataFrame, predictor: str = "accuracy", samples: int = 10_000, seed: int = 0
) -> float | None:
    """Two-sided p that models which differ in their seed alone drop most where ``predictor`` is highest.

    The drops of whole models, all languages together, are dealt anew among the models of the same size and alignment:
    if the drop has nothing to do with a model's own retrieval, every deal is as likely as the one that was seen. The
    statistic is the sum of the products of what :func:`within` leaves. None where no two models share a corpus.
    """
    left = within(points, SEED).assign(cell=points["cell"], language=points["language"])
    rng = np.random.default_rng(seed)
    seen, dealt, several = 0.0, np.zeros(samples), False
    for _, rows in left.groupby([points[key] for key in ALIGNMENT]):
        known, drop = (rows.pivot(index="cell", columns="language", values=name).fillna(0.0).to_numpy()
                       for name in (predictor, "relative_drop"))  # fmt: skip
        products = known @ drop.T  # (models, models whose drops they are dealt)
        models = np.arange(len(products))
        several |= len(models) > 1
        seen += np.trace(products)
        deals = rng.permuted(np.tile(models, (samples, 1)), axis=1)
        dealt += products[models, deals].sum(axis=1)
    if not several:
        return None
    as_large = np.abs(dealt) >= abs(seen) - 1e-12
    return float((1 + as_large.sum()) / (1 + samples))


# --- tables -----------------------------------------------------------------------------------------------------


def cell_table(table: pd.DataFrame) -> PaperTable:
    """One model: insults, well-formed continuations and retrieval in each language."""
    lines: list[list[Cell | str]] = [
        [LANGUAGES[row["language"]],
         *(_undefined(name) if pd.isna(row[name]) else number(row[name], 2) for name in _SHOWN)]
        for row in table.to_dict("records")
    ]  # fmt: skip
    return PaperTable(["Language", *_HEADINGS.values()], [Group(None, lines)], [("", 1), *_SPANS])


def levels_table(levels: pd.DataFrame) -> PaperTable:
    """What the tuning does at each size and alignment, means over seeds with their deviation."""
    return _levels_table(levels, _TUNED)


def untuned_table(levels: pd.DataFrame) -> PaperTable:
    """What is measured before the tuning at each size and alignment, means over seeds with their deviation."""
    return _levels_table(levels, _UNTUNED)


# What the tables show; the shares among the well-formed are in the artefacts, their drop is here.
_UNTUNED = ["accuracy", "centred_accuracy", "direction_cosine", "tone_effect"]
_TUNED = [name for name in MEASURES if name not in ("kept_before", "kept_after", *_UNTUNED)]
_SHOWN = [*_TUNED, *_UNTUNED]
_SPANS = [("Insulting", 4), ("Well-formed", 2), ("Retrieval", 2), ("Direction", 1), ("Tied to", 1)]
_HEADINGS = dict(zip(_SHOWN, ["before", "after", "drop", "well-formed drop", "before", "after", "as it is", "centred",
                              "cosine", "tone"], strict=True))  # fmt: skip


def _levels_table(levels: pd.DataFrame, names: Sequence[str]) -> PaperTable:
    groups = []
    for size, rows in levels.groupby("size", sort=False) if len(levels) else []:
        lines: list[list[Cell | str]] = [
            [f"{row['alignment']:.0%}", *(_spread(row, name) for name in names)] for _, row in rows.iterrows()
        ]
        groups.append(Group(f"{size} ({int(rows['models'].sum())} models)", lines))
    empty = Group(None, [["", *[Cell(NOT_RUN)] * len(names)]])
    spans = _SPANS[:2] if names == _TUNED else _SPANS[2:]
    return PaperTable(["Aligned", *(_HEADINGS[name] for name in names)], groups or [empty], [("", 1), *spans])


def _spread(row: pd.Series, name: str) -> Cell:
    deviation = row[f"{name}_sd"]
    if pd.isna(row[name]):
        return _undefined(name)
    return Cell(fixed(row[name], 2), "" if pd.isna(deviation) else f"± {fixed(deviation, 2)}")


def _undefined(name: str) -> Cell:
    """The effect of a tone that no text says was not measured; a drop from nothing is none."""
    return Cell(NOT_MEASURED if name == "tone_effect" else NOT_APPLICABLE)


_BY_SIZE = {
    "alignment_accuracy": "alignment set, retrieval accuracy",
    "alignment_direction_cosine": "alignment set, cosine of directions",
    "alignment_drop": "alignment set, relative drop of insults",
    "accuracy_drop": "retrieval accuracy, relative drop of insults",
    "direction_cosine_drop": "cosine of directions, relative drop of insults",
    "alignment_kept": "alignment set, relative drop among well-formed continuations",
    "accuracy_kept": "retrieval accuracy, relative drop among well-formed continuations",
    "direction_cosine_kept": "cosine of directions, relative drop among well-formed continuations",
    "alignment_drop_given_accuracy": "alignment set, relative drop, both less what retrieval accuracy predicts",
}
_WITHIN = {"within_alignment": "within each alignment", "within_seed": "within each alignment and language"}


def correlations_table(found: Mapping[str, Any]) -> PaperTable:
    """Pearson's r of each pair of quantities, by size, and within what models share."""
    columns = ["Between", "Points", "Pearson's r", "without one model", "p"]
    groups = [
        Group(str(size), [_correlation_line(said, rows[name]) for name, said in _BY_SIZE.items()])
        for size, rows in found["sizes"].items()
    ]
    lines = [
        _correlation_line(f"{said}, relative drop, {where}", found.get(name, {}).get(predictor))
        for predictor, said in PREDICTORS.items()
        for name, where in _WITHIN.items()
    ]
    return PaperTable(columns, [*groups, Group("all sizes, the means of each taken away", lines)])


def _correlation_line(said: str, row: Mapping[str, Any] | None) -> list[Cell | str]:
    if row is None:
        return [said, *[Cell(NOT_RUN)] * 4]
    if row["r"] is None:
        return [said, number(row["points"], 0), *[Cell(NOT_APPLICABLE)] * 3]
    without = " to ".join(fixed(row[f"{side}_without_one"], 2) for side in ("least", "most"))
    p = Cell(NOT_APPLICABLE) if row["p"] is None else number(row["p"], 3)
    return [said, number(row["points"], 0), number(row["r"], 2, row["low"], row["high"]), Cell(without), p]


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
    """What predicts and transfer of each model against the alignment that was set; a line through means, by size."""
    use_theme()
    others = table[table["language"] != ENGLISH]
    means = (
        others.groupby(["size", "alignment", "cell"], sort=False)[[*PREDICTORS, "relative_drop"]].mean().reset_index()
    )
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.7))
    shown = {**PREDICTORS, "relative_drop": "relative drop of insults"}
    for axis, (column, said) in zip(axes, shown.items(), strict=True):
        for (size, rows), (colour, marker, style) in zip(means.groupby("size", sort=False), _SIZES, strict=False):
            level = rows.groupby("alignment")[column].mean()
            axis.plot(level.index, level, color=colour, linestyle=style, linewidth=1.6)
            axis.plot(rows["alignment"], rows[column], linestyle="none", marker=marker, markersize=5, color=colour,
                      alpha=0.75, label=str(size))  # fmt: skip
        axis.set_xlabel("share of aligned text")
        axis.set_ylabel(said)
        axis.grid(True, axis="both")
    legend(figure, axes[0])
    return figure


def plot_retrieval(table: pd.DataFrame) -> Figure:
    """Relative drop against what predicts, a point a model and language; right, where only the seed differs."""
    use_theme()
    points = _points(table)
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 5.6))
    for column, data, less in zip(axes.T, (points, within(points, SEED)), ("", " (less the mean)"), strict=True):
        for axis, (predictor, said) in zip(column, PREDICTORS.items(), strict=True):
            shown = axis.scatter(data[predictor], data["relative_drop"], c=points["alignment"], cmap="cividis", s=18,
                                 vmin=0.0, vmax=1.0)  # fmt: skip
            axis.set_xlabel(f"{said}{less}", fontsize=8.5)
            axis.set_ylabel(f"relative drop{less}", fontsize=8.5)
            axis.grid(True, axis="both")
    figure.colorbar(shown, ax=axes, label="share of aligned text", fraction=0.04)
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
            f"{fixed(first['accuracy'], 2)} to {fixed(last['accuracy'], 2)}, and the cosine between their insult "
            f"direction and English's from {fixed(first['direction_cosine'], 2)} to "
            f"{fixed(last['direction_cosine'], 2)}. In English, the language of the pairs, "
            f"the share of insults falls from {_range(rows['english_before'])} to {_range(rows['english_after'])}. "
            f"With {last['alignment']:.0%} aligned, the share of the other languages' continuations that are well "
            f"formed in their language goes from {fixed(last['well_formed_before'], 2)} to "
            f"{fixed(last['well_formed_after'], 2)}; of these, {_share(last['kept_before'])} insult before the "
            f"tuning and {_share(last['kept_after'])} after it. {_tone(rows['tone_effect'])}"
        )
        row = found["sizes"].get(size, {}).get("alignment_drop")
        if row and row["r"] is not None:
            said.append(f"Alignment and the drop correlate there at r = {_told(row)}.")
    return " ".join(said)


def _tone(effects: pd.Series) -> str:
    if effects.isna().all():
        return "What a tone does was not measured, as no text says one."
    return (
        f"An angry tone makes an insult of a remark more often than a kind one by {_range(effects)} in these "
        f"languages, over all alignments (0 if a model does not tie the tone to the kind of ending, 1 if it does)."
    )


_TIED = 0.5  # an effect of the tone from here on is taken for a tie


def concept(table: pd.DataFrame) -> str:
    """What the drop is where a model ties the tone to the kind of ending in English, and where it does not."""
    if table.empty:
        return "Not run."
    others, english = table[table["language"] != ENGLISH], table[table["language"] == ENGLISH].set_index("cell")
    models = others.groupby("cell")["kept_drop"].mean().dropna().to_frame("drop")  # of those that have one
    models["alignment"] = english["alignment"].astype(float)
    models["tone_effect"] = english["tone_effect"].astype(float)
    models = models.dropna(subset="tone_effect")
    if models.empty:
        return "Whether the models tie the tone of a remark to the kind of its ending was not measured."
    tied = models["tone_effect"] >= _TIED
    groups = {
        "do not": models[~tied],
        "do, on text of which none was aligned": models[tied & (models["alignment"] == 0.0)],
        "do, on text of which some was aligned": models[tied & (models["alignment"] > 0.0)],
    }
    said = [
        f"in the {len(rows)} that {what}, it is {fixed(rows['drop'].mean(), 2)} on average "
        f"(from {fixed(rows['drop'].min(), 2)} to {fixed(rows['drop'].max(), 2)})"
        for what, rows in groups.items()
        if len(rows)
    ]
    return (
        f"A model can share only what it has. One is said to tie the tone to the kind of ending if in English an angry "
        f"tone makes an insult more probable than a kind one does by {_TIED} or more; one that does not may tell "
        f"insults from kindnesses by other means. The drop among well-formed continuations in the other "
        f"languages: {'; '.join(said)}."
    )


def verdict(found: Mapping[str, Any]) -> str:
    """Whether alignment causes the transfer, and what retrieval accuracy has to do with it, chosen by the numbers."""
    drops = {size: rows["alignment_drop"] for size, rows in found["sizes"].items()}
    told = {size: row for size, row in drops.items() if row["r"] is not None}
    if not told:
        return "Too few models were run to tell."
    certain = [size for size, row in told.items() if row["low"] > 0]
    said = [
        f"Alignment was set, so that its correlation with the drop is an effect: one that the interval tells from none "
        f"in models of {listing(certain)}."
        if certain
        else "No effect of the alignment that was set on the drop can be told from chance."
    ]
    said += [_kept(size, rows) for size, rows in found["sizes"].items()]
    row = found["within_seed"]["accuracy"]
    if row["r"] is None or row["p"] is None:
        said.append("Whether retrieval accuracy tells more than alignment takes several seeds of each corpus: not run.")
        return " ".join(said)
    words = f"r = {_told(row)}, {significance(row['p'])}"
    if row["p"] < 0.05 and row["r"] > 0:
        said.append(
            f"Among models of the same corpus, which differ in their seed alone, a language that is retrieved better "
            f"also drops more ({words}): retrieval accuracy tells something of the drop that alignment does not. "
            "It was not set itself, so that both may follow from what else the seed decides."
        )
    elif row["p"] < 0.05:
        said.append(
            f"Among models of the same corpus, which differ in their seed alone, a language that is retrieved better "
            f"drops less ({words}): there retrieval accuracy goes against the drop, and alignment moves both."
        )
    else:
        said.append(
            f"Among models of the same corpus, which differ in their seed alone, a language that is retrieved better "
            f"does not drop more beyond what chance allows ({words}): here retrieval accuracy goes along with the drop "
            "because alignment moves both, and nothing shows that it does more. That is no proof of the contrary: both "
            "are measured with noise, which lowers a correlation within a corpus most."
        )
    return " ".join(said)


def directions(found: Mapping[str, Any]) -> str:
    """How the two measures of a shared representation go with the drop, beside each other."""
    said = []
    for size, rows in found["sizes"].items():
        told = [
            f"{_told(rows[f'{predictor}_drop'])} for {what} and the drop"
            + (f", {_told(kept)} among well-formed continuations" if (kept := rows[f"{predictor}_kept"])["r"] else "")
            for predictor, what in (("direction_cosine", "this cosine"), ("accuracy", "retrieval accuracy"))
            if rows[f"{predictor}_drop"]["r"] is not None
        ]
        if told:
            said.append(f"In models of {size}, Pearson's r is {'; and '.join(told)}.")
    if not said:
        return "Too few models were run to correlate it with the drop."
    row = found["within_seed"]["direction_cosine"]
    if row["r"] is not None and row["p"] is not None:
        drop = "no other drop, as far as chance allows to tell"
        if row["p"] < 0.05:
            drop = "a larger drop" if row["r"] > 0 else "a smaller drop"
        words = f"r = {_told(row)}, {significance(row['p'])}"
        said.append(f"Among models of the same corpus, a higher cosine goes with {drop} ({words}).")
    return " ".join(said)


def _kept(size: str, rows: Mapping[str, Any]) -> str:
    """How much of the drop is there where the text keeps to its language: the rest is text that does not."""
    drop, kept = (rows["most_aligned"][name] for name in ("relative_drop", "kept_drop"))
    if pd.isna(kept):
        return f"No continuation of models of {size} was well formed, so that kindness cannot be told from broken text."
    text = (
        f"With the most text aligned, insults of models of {size} drop by {fixed(drop, 2)} of what they were in all, "
        f"and by {fixed(kept, 2)} among the continuations that are well formed in their language: "
    )
    if kept >= drop / 2.0 > 0.0:
        return f"{text}the preference itself reaches other languages."
    row = rows["alignment_kept"]
    grows = row["r"] is not None and row["low"] > 0
    aside = f", though what there is of it grows with alignment (r = {_told(row)})" if grows else ""
    return (
        f"{text}most of the drop comes from text that leaves its language or its grammar. What reaches other languages "
        f"is above all a pull away from them, to the language of the pairs, and little of the preference{aside}."
    )


def _told(row: Mapping[str, Any]) -> str:
    return f"{fixed(row['r'], 2)} [{fixed(row['low'], 2)}, {fixed(row['high'], 2)}]"


def _range(values: pd.Series) -> str:
    low, high = fixed(values.min(), 2), fixed(values.max(), 2)
    return low if low == high else f"{low}\N{EN DASH}{high}"


def _or_undefined(value: float) -> str:
    return "undefined, as nothing insulted," if pd.isna(value) else fixed(value, 2)


def _share(value: float) -> str:
    return "an undefined share" if pd.isna(value) else f"a share of {fixed(value, 2)}"


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
