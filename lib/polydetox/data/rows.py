"""Rows of data files, line by line: what cannot be read or does not fit is skipped, counted and listed.

A line that is not valid, or whose fields are not what its data set's schema says (``schemas.py``), is rejected with
its reason. A few of them are reported and the rest is used; many mean that the file is damaged or another one than was
expected, which is a ``UserError`` that names file, line, field and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.core.errors import UserError, nearest
from polydetox.data.schemas import SCHEMAS, Field

# More than this fraction of a file's rows rejected, and the file is refused.
MOST_REJECTED = 0.05

# So many rejected lines are listed one by one in a manifest; all of them are counted.
MOST_LISTED = 100

_NO_TEXT = frozenset({"", "na", "n/a", "nan", "none", "null"})


def is_blank(text: object) -> bool:
    """Whether a field holds no text: missing, empty, or a spelled-out NA."""
    return not isinstance(text, str) or text.strip().lower() in _NO_TEXT


@dataclass(frozen=True)
class Rejected:
    """One line of a data file that was skipped. The reason never quotes a text, which may be toxic."""

    file: str  # its name, without folders
    line: int  # of a JSON array: the position in it; of a table (CSV, Parquet): the row
    field: str | None
    reason: str

    def __str__(self) -> str:
        named = f"field {self.field!r} " if self.field else ""
        return f"{self.file}:{self.line}: {named}{self.reason}"


@dataclass
class Skipped:
    """What was not used of the files that a table was read from."""

    blank: int = 0  # rows that are in order but hold no text
    rejected: list[Rejected] = field(default_factory=list)
    repeated: int = 0  # rows that are in order but hold a text that an earlier one has
    by_label: int = 0  # rows whose label the reader has said to skip

    def __add__(self, other: Skipped) -> Skipped:
        return Skipped(self.blank + other.blank, self.rejected + other.rejected, self.repeated + other.repeated,
                       self.by_label + other.by_label)  # fmt: skip

    def __bool__(self) -> bool:
        return bool(self.blank or self.rejected or self.repeated or self.by_label)

    def __str__(self) -> str:
        said = f"{self.blank} rows without text skipped"
        if self.repeated:
            said += f", {self.repeated} rows that repeat a text skipped"
        if self.by_label:
            said += f", {self.by_label} rows skipped by their label"
        if self.rejected:
            more = f", and {len(self.rejected) - 3} more" if len(self.rejected) > 3 else ""
            said += f", {len(self.rejected)} malformed lines skipped ({'; '.join(map(str, self.rejected[:3]))}{more})"
        return said

    def record(self) -> dict[str, Any]:
        """For a manifest."""
        further = {"repeated": self.repeated, "skipped": self.by_label}
        further = {name: number for name, number in further.items() if number}
        return {"blank": self.blank, **further, "rejected": len(self.rejected),
                "rejected_lines": [str(line) for line in self.rejected[:MOST_LISTED]]}  # fmt: skip


@dataclass
class Rows:
    """The rows of one file with their line numbers, and what was rejected so far."""

    path: Path
    rows: list[tuple[int, dict[str, Any]]]
    rejected: list[Rejected] = field(default_factory=list)

    def reject(self, line: int, name: str | None, reason: str) -> None:
        """Leave one line out."""
        self.rejected.append(Rejected(self.path.name, line, name, reason))


def read_rows(path: Path) -> Rows:
    """All rows of a JSON-lines file, a JSON array, or a CSV or Parquet table; a JSON object alone is one row."""
    if path.suffix in (".csv", ".parquet"):
        return Rows(path, _table_rows(path))
    content = _content(path)
    if content.lstrip().startswith(b"["):
        return _objects(path, enumerate(_array(path, content), 1))
    if path.suffix == ".json":
        with suppress(ValueError, RecursionError):  # many objects, a line each, are not valid together
            if isinstance(whole := json.loads(content.decode("utf-8")), dict):
                return Rows(path, [(1, whole)])
    found, broken = [], []
    for number, line in _written_lines(content):
        try:
            found.append((number, json.loads(line.decode("utf-8"))))
        except UnicodeDecodeError as error:
            broken.append((number, f"not UTF-8 text ({error.reason} at byte {error.start})"))
        except ValueError as error:
            broken.append((number, f"not valid JSON ({getattr(error, 'msg', error)})"))
        except RecursionError:
            broken.append((number, "not valid JSON (nested too deep)"))
    rows = _objects(path, found)
    for number, reason in broken:
        rows.reject(number, None, reason)
    return rows


def read_lines(path: Path, name: str) -> Rows:
    """All lines of a text file but the empty ones, each a row with the one field ``name``."""
    rows = Rows(path, [])
    for number, line in _written_lines(_content(path)):
        try:
            rows.rows.append((number, {name: line.decode("utf-8").removesuffix("\r")}))
        except UnicodeDecodeError as error:
            rows.reject(number, None, f"not UTF-8 text ({error.reason} at byte {error.start})")
    return rows


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _written_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers.

    Split at newlines alone: a text may hold a raw U+2028, which is no end of line here.
    """
    return ((number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip())


def _array(path: Path, content: bytes) -> list[Any]:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); fetch the file again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({str(error)[:80]}); fetch the file again") from None


def _objects(path: Path, numbered: Iterable[tuple[int, Any]]) -> Rows:
    rows = Rows(path, [])
    for number, row in numbered:
        if isinstance(row, dict):
            rows.rows.append((number, row))
        else:
            rows.reject(number, None, f"expected an object with fields, found {type(row).__name__}")
    return rows


def _table_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        # Cells stay as they are written: a text may be the word NA, and only a label's column holds numbers.
        table = (pd.read_csv(path, dtype=str, keep_default_na=False) if path.suffix == ".csv"
                 else pd.read_parquet(path))  # fmt: skip
    except Exception as error:  # pandas raises many kinds; all mean that the file is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: not readable ({reason}); fetch the file again") from None
    return list(enumerate(table.to_dict("records"), 1))


def check_rows(rows: Rows, schema: str) -> tuple[list[tuple[int, dict[str, Any]]], list[Rejected]]:
    """The rows that fit a schema, with their line numbers, and what was rejected.

    A file in which a required field is nowhere, of which no row is left, or of which too many were rejected, is a
    ``UserError``.
    """
    fields = SCHEMAS[schema].fields
    total = len({line for line, _ in rows.rows} | {rejected.line for rejected in rows.rejected})
    if not total:
        raise UserError(f"{rows.path}: empty, it has no rows; fetch the file again, or name another one")
    _check_fields(rows, fields, SCHEMAS[schema].title)
    for index, name, reason in _failures(rows, schema):
        rows.reject(rows.rows[index][0], name, reason)
    bad = {rejected.line for rejected in rows.rejected}
    kept = [(line, row) for line, row in rows.rows if line not in bad]
    rejected = sorted({rejected.line: rejected for rejected in reversed(rows.rejected)}.values(), key=lambda r: r.line)
    if not kept or len(rejected) > MOST_REJECTED * total:
        first = rejected[0]
        named = f"field {first.field!r} " if first.field else ""
        raise UserError(
            f"{rows.path}:{first.line}: {named}{first.reason}; {len(rejected)} of {total} rows are so: mend or remove "
            f"them, or fetch the file again, if it is {SCHEMAS[schema].title} at all"
        )
    return kept, rejected


def _check_fields(rows: Rows, fields: dict[str, Field], title: str) -> None:
    """Refuse a file that has a required field in no row; a typo is named with what it may have meant."""
    if not rows.rows:
        return
    line, first = rows.rows[0]
    for name, wanted in fields.items():
        if wanted.required and not any(name in row for _, row in rows.rows):
            names = [" ".join(key.split())[:40] for key in map(str, list(first)[:8])]
            meant = hint if "did you mean" in (hint := nearest(name, names)) else ""
            raise UserError(
                f"{rows.path}:{line}: no field {name!r}{meant} (it has: {', '.join(names) or 'none'}), in no row of "
                f"the file; is this {title}?"
            )


def _failures(rows: Rows, schema: str) -> list[tuple[int, str, str]]:
    """Rows that a pandera schema refuses: their position, field and reason."""
    if not rows.rows:
        return []
    import pandera.pandas as pandera

    fields = SCHEMAS[schema].fields
    columns = {
        name: [row.get(name, _MISSING if wanted.required else None) for _, row in rows.rows]
        for name, wanted in fields.items()
    }
    # Cells may be lists and objects, which a frame built from columns of Python objects keeps as they are.
    table = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
    checks = pandera.DataFrameSchema({
        name: pandera.Column(
            object, pandera.Check(wanted.accepts, element_wise=True, ignore_na=False, name=name), nullable=True
        )
        for name, wanted in fields.items()
    })  # fmt: skip
    try:
        checks.validate(table, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        cases = errors.failure_cases.dropna(subset=["index"])
        failures = []
        for index, name in zip(cases["index"].astype(int), cases["column"], strict=True):
            value = table[name][index]
            failures.append((index, name, fields[name].complaint(value, missing=value is _MISSING)))
        return failures
    return []


class _Missing:
    """Stands for a field that a row lacks; unlike None, it is no value that a file could hold."""


_MISSING = _Missing()
