"""The tables of the synthetic multilingual setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from polydetox.core.languages import LANGUAGES
from polydetox.results.tables import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_RUN,
    Cell,
    Group,
    PaperTable,
    fixed,
    number,
)
from polydetox.synthetic.results import MEASURES, PREDICTORS


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


# --- sentences --------------------------------------------------------------------------------------------------
