"""The tables of the synthetic multilingual setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from polydetox.core.languages import LANGUAGES
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, fixed

# By the heading above them, the measures and their headings. Rates among the well-formed are in the artefacts.
_TUNED = {
    "Insulting": {"before": "before", "after": "after", "relative_drop": "drop", "kept_drop": "well-formed drop"},
    "Well-formed": {"well_formed_before": "before", "well_formed_after": "after"},
}
_BASE = {
    "Retrieval": {"accuracy": "as it is", "centred_accuracy": "centred"},
    "Direction": {"direction_cosine": "cosine"},
    "Tied to": {"tone_effect": "tone"},
}
_Lines = list[tuple[str, pd.Series]]  # a title and its measures each


def configuration_table(table: pd.DataFrame) -> PaperTable:
    """One model: insults, well-formed continuations and retrieval in each language."""
    lines = [(LANGUAGES[row["language"]], row) for _, row in table.iterrows()]
    return _measures("Language", [(None, lines)], _TUNED | _BASE)


def levels_table(levels: pd.DataFrame, *, tuned: bool) -> PaperTable:
    """What the tuning does, or else the base models, at each size and alignment: means over seeds with deviation."""
    groups: list[tuple[str | None, _Lines]] = []
    for size, rows in levels.groupby("size", sort=False):
        lines = [(f"{row['alignment']:.0%}", row) for _, row in rows.iterrows()]
        groups.append((f"{size} ({int(rows['models'].sum())} models)", lines))
    return _measures("Aligned", groups, _TUNED if tuned else _BASE)


def _measures(
    first: str, groups: Sequence[tuple[str | None, _Lines]], spans: Mapping[str, Mapping[str, str]]
) -> PaperTable:
    names = {name: heading for columns in spans.values() for name, heading in columns.items()}
    filled = [
        Group(heading, [[title, *(_measure(row, name) for name in names)] for title, row in lines])
        for heading, lines in groups
    ]
    empty = Group(None, [["", *[Cell(NOT_RUN)] * len(names)]])
    return PaperTable([first, *names.values()], filled or [empty], [("", 1), *((k, len(v)) for k, v in spans.items())])


def _measure(row: pd.Series, name: str) -> Cell:
    """A mean with its deviation where there is one; a tone that no text says was not measured, a drop from nothing is
    none."""
    if pd.isna(row[name]):
        return Cell(NOT_MEASURED if name == "tone_effect" else NOT_APPLICABLE)
    deviation = row.get(f"{name}_sd")
    return Cell(fixed(row[name], 2), "" if pd.isna(deviation) else f"± {fixed(deviation, 2)}")
