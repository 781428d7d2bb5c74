"""Tables as the report prints them: HTML that both renderers take; a cell is a text, or a value with its interval."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pandas as pd

from polydetox.core.languages import LANGUAGES

NOT_RUN = "not run"
NOT_MEASURED = "not measured"
NOT_APPLICABLE = "–"
_NUMBER, _SPAN = ' class="number"', ' class="span"'


@dataclass(frozen=True)
class Cell:
    """A cell of numbers: its text, and beneath it a smaller one."""

    text: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


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


def scientific(value: float) -> str:
    """A number with the digits that it has, and its power of ten: ``2.5e-6``."""
    digits, exponent = f"{value:.5e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


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
    drop, low, high = (row[name] for name in ("drop", "drop_low", "drop_high"))
    if pd.isna(drop):
        return "was not measured on both sides"
    before, after = fixed(row["before"], digits), fixed(row["after"], digits)
    if pd.isna(low):
        return f"goes from {before} to {after} (interval not defined)"
    if low > 0:
        return f"falls from {before} to {after} (by {_difference(drop, low, high, digits)})"
    difference = _difference(-drop, -high, -low, digits)  # after minus before
    if high < 0:
        return f"rises from {before} to {after} (by {difference})"
    return f"shows no detectable change ({before} to {after}, {difference})"


def _difference(value: float, low: float, high: float, digits: int) -> str:
    """A difference and its interval, with digits enough for a bound near zero to show on which side of it it lies."""
    while 0 < min(abs(low), abs(high)) < 0.5 * 10**-digits and digits < 4:
        digits += 1
    return bracketed(value, low, high, digits)


def compared(value: float, low: float, high: float, digits: int) -> str:
    """A difference in words that its interval allows: ``lower (−0.20 [−0.30, −0.10])``."""
    if pd.isna(value):
        return NOT_MEASURED
    if pd.isna(low):
        return f"not known to differ ({fixed(value, digits)}, interval not defined)"
    verdict = "lower" if high < 0 else "higher" if low > 0 else "not detectably different"
    return f"{verdict} ({_difference(value, low, high, digits)})"


def bracketed(value: float | None, low: float | None, high: float | None, digits: int) -> str:
    """A value and its interval: ``0.60 [0.50, 0.70]``; ``not measured`` without a value."""
    if value is None:
        return NOT_MEASURED
    return f"{fixed(value, digits)} [{fixed(low, digits)}, {fixed(high, digits)}]"


def html_table(table: pd.DataFrame) -> str:
    """A table whose cells are HTML already."""
    with pd.option_context("display.max_colwidth", None):
        return str(table.to_html(index=False, escape=False, border=0, classes="paper-table table", justify="left"))


@dataclass(frozen=True)
class Group:
    """Rows under one heading (none: no heading row)."""

    heading: str | None
    rows: Sequence[Sequence[Cell | str]]


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper, numbers aligned on the right; ``spans`` are headings over so many column headings."""

    columns: Sequence[str]
    groups: Sequence[Group]
    spans: Sequence[tuple[str, int]] = ()

    def __repr__(self) -> str:
        lines = [" | ".join(title for title, _ in self.spans)] if self.spans else []
        lines.append(" | ".join(self.columns))
        for group in self.groups:
            lines += [group.heading] if group.heading else []
            lines += [" | ".join(map(str, row)) for row in group.rows]
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        over = [f"{title}: " if title else "" for title, width in self.spans for _ in range(width)]
        names = [above + title for above, title in zip_longest(over, self.columns, fillvalue="")]
        rows = [[group.heading, *map(str, row)] for group in self.groups for row in group.rows]
        data = pd.DataFrame(rows, columns=["group", *names]).dropna(axis="columns", how="all").to_csv(index=False)
        shown = {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return shown | {"text/csv": data.replace("\N{MINUS SIGN}", "-")}

    def _repr_html_(self) -> str:
        first = next((row for group in self.groups for row in group.rows), [])
        heads = [f"<th{_NUMBER if isinstance(cell, Cell) else ''}>{html.escape(title)}</th>"
                 for title, cell in zip_longest(self.columns, first)]  # fmt: skip
        lines = [f"<tr>{''.join(heads)}</tr>\n</thead>\n<tbody>"]
        if self.spans:
            over = [f'<th{_SPAN if title else ""} colspan="{width}">{html.escape(title)}</th>'
                    for title, width in self.spans]  # fmt: skip
            lines.insert(0, f"<tr>{''.join(over)}</tr>")
        for group in self.groups:
            if group.heading:
                lines += ["</tbody>\n<tbody>"] if len(lines) > 1 + bool(self.spans) else []
                over_all = f'<th scope="rowgroup" colspan="{len(self.columns)}">'
                lines.append(f'<tr class="group">{over_all}{html.escape(group.heading)}</th></tr>')
            lines += [f"<tr>{''.join(map(_td, row))}</tr>" for row in group.rows]
        return "\n".join(['<table class="paper-table table">\n<thead>', *lines, "</tbody>\n</table>"])


def _td(cell: Cell | str) -> str:
    text, detail = (cell, "") if isinstance(cell, str) else (cell.text, cell.detail)
    kinds = ["number"] if isinstance(cell, Cell) else []
    kinds += ["missing"] if text in (NOT_RUN, NOT_MEASURED) else []
    attributes = f' class="{" ".join(kinds)}"' if kinds else ""
    below = f'<br><span class="interval">{html.escape(detail)}</span>' if detail else ""
    return f"<td{attributes}>{html.escape(text)}{below}</td>"
