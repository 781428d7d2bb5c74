"""Tables as the report prints them: plain HTML that Quarto and the preview renderer both take.

A cell is a text, or a value with its interval beneath it. What was not run says so.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from polydetox.core.languages import LANGUAGES

NOT_RUN = "not run"
NOT_MEASURED = "not measured"
NOT_APPLICABLE = "–"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and beneath it a smaller one."""

    text: str
    detail: str = ""
    number: bool = True

    def to_html(self) -> str:
        classes = [
            name for name, on in (("number", self.number), ("missing", self.text in (NOT_RUN, NOT_MEASURED))) if on
        ]
        attributes = f' class="{" ".join(classes)}"' if classes else ""
        detail = f'<br><span class="interval">{html.escape(self.detail)}</span>' if self.detail else ""
        return f"<td{attributes}>{html.escape(self.text)}{detail}</td>"


def number(
    value: float | None, digits: int, low: float | None = None, high: float | None = None, *, missing: str = NOT_RUN
) -> Cell:
    """A value with its interval; ``missing`` where there is none."""
    if value is None or math.isnan(value):
        return Cell(missing)
    bounded = low is not None and high is not None and not math.isnan(low) and not math.isnan(high)
    return Cell(fixed(value, digits), f"{fixed(low, digits)} to {fixed(high, digits)}" if bounded else "")


def significance(p: float) -> str:
    """A p value as prose prints it.

    >>> significance(0.00004)
    'p < 0.001'
    """
    return "p < 0.001" if p < 0.001 else f"p = {fixed(p, 3)}"


def fixed(value: float | None, digits: int) -> str:
    """A value with a fixed number of decimals, a real minus sign, and no negative zero; NaN is ``not measured``."""
    assert value is not None
    if math.isnan(value):
        return NOT_MEASURED
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0.0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def listing(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def span(values: pd.Series, digits: int) -> str:
    """The least and the most of some values by language: ``0.50 (Japanese) to 0.80 (Arabic)``."""
    if values.empty:
        return NOT_MEASURED
    least, most = values.idxmin(), values.idxmax()
    return " to ".join(f"{fixed(values[key], digits)} ({LANGUAGES[str(key)]})" for key in (least, most))


def change(row: pd.Series, digits: int) -> str:
    """How a value went from before to after, in words that the interval of the difference allows."""
    if pd.isna(row["drop"]):
        return "was not measured on both sides"
    before, after = fixed(row["before"], digits), fixed(row["after"], digits)
    if row["drop_low"] > 0:
        drop = bracketed(row["drop"], row["drop_low"], row["drop_high"], digits)
        return f"falls from {before} to {after} (by {drop})"
    # From here on the difference is after minus before.
    difference = bracketed(-row["drop"], -row["drop_high"], -row["drop_low"], digits)
    if row["drop_high"] < 0:
        return f"rises from {before} to {after} (by {difference})"
    return f"shows no detectable change ({before} to {after}, {difference})"


def compared(value: float, low: float, high: float, digits: int) -> str:
    """A difference in words that its interval allows: ``lower (−0.20 [−0.30, −0.10])``."""
    if pd.isna(value):
        return NOT_MEASURED
    verdict = "lower" if high < 0 else "higher" if low > 0 else "not detectably different"
    return f"{verdict} ({bracketed(value, low, high, digits)})"


def bracketed(value: float | None, low: float | None, high: float | None, digits: int) -> str:
    """A value and its interval: ``0.60 [0.50, 0.70]``; ``not measured`` without a value."""
    if value is None:
        return NOT_MEASURED
    return f"{fixed(value, digits)} [{fixed(low, digits)}, {fixed(high, digits)}]"


@dataclass(frozen=True)
class Group:
    """Rows under one heading (none: no heading row)."""

    heading: str | None
    rows: Sequence[Sequence[Cell | str]]


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper: column headings, groups of rows; text cells first, numbers aligned on the right.

    ``spans`` are headings above the column headings, each with the number of columns that it covers.
    """

    columns: Sequence[str]
    groups: Sequence[Group]
    spans: Sequence[tuple[str, int]] = ()

    def __repr__(self) -> str:
        lines = [" | ".join(title for title, _ in self.spans)] if self.spans else []
        lines.append(" | ".join(self.columns))
        for group in self.groups:
            lines += [group.heading] if group.heading else []
            for row in group.rows:
                cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
                lines.append(" | ".join(f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in cells))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        width = len(self.columns)
        numeric = ' class="number"'
        text_columns = self._text_columns()
        head = "".join(
            f"<th{'' if position in text_columns else numeric}>{html.escape(column)}</th>"
            for position, column in enumerate(self.columns)
        )
        body = []
        for group in self.groups:
            if group.heading:
                body.append(f'<tr class="group"><td colspan="{width}">{html.escape(group.heading)}</td></tr>')
            for row in group.rows:
                assert len(row) == width, f"a row of {len(row)} cells in a table of {width} columns"
                cells = [cell if isinstance(cell, Cell) else Cell(cell, number=False) for cell in row]
                body.append(f"<tr>{''.join(cell.to_html() for cell in cells)}</tr>")
        rows = "\n".join(body)
        return (
            f'<table class="paper-table table">\n<thead>\n{self._spans()}<tr>{head}</tr>\n</thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table>"
        )

    def _spans(self) -> str:
        if not self.spans:
            return ""
        assert sum(width for _, width in self.spans) == len(self.columns), "the spans do not cover the columns"
        cells = (
            f'<th class="span" colspan="{width}">{html.escape(title)}</th>' if title else f'<th colspan="{width}"></th>'
            for title, width in self.spans
        )
        return f"<tr>{''.join(cells)}</tr>\n"

    def _text_columns(self) -> set[int]:
        first = next((row for group in self.groups for row in group.rows), [])
        return {position for position, cell in enumerate(first) if not isinstance(cell, Cell) or not cell.number}
