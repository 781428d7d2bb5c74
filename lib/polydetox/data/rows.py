"""Rows of data files, checked as they are read: what does not fit is skipped, counted and listed.

Many rows that do not fit mean a damaged file or another one: a ``UserError`` that names file, line, field and remedy.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from polydetox.core.errors import UserError, nearest

# More than this fraction of a file's rows rejected, and the file is refused.
MOST_REJECTED = 0.05

# So many rejected lines are listed one by one in a manifest; all of them are counted.
MOST_LISTED = 100

# A cell may be as long as a text; the csv module itself stops at 131,072 characters.
csv.field_size_limit(2**31 - 1)

# Larger files are not kept in memory (bytes).
MOST_CACHED = 64_000_000

_NO_TEXT = frozenset({"", "na", "n/a", "nan", "none", "null"})


class Row(BaseModel, allow_inf_nan=False):
    """The fields of a row that are read; others are ignored. ``title`` names the data set in messages."""


def writable(text: str | None) -> str | None:
    """A text as it is, if it can be written as UTF-8."""
    if text is not None:
        text.encode("utf-8")  # a ValueError for half of a surrogate pair, which JSON can spell
        if "\0" in text:
            raise ValueError("holds the character NUL, which no text has")
    return text


# A text, or none: a row without one is in order, and counted as blank.
Text = Annotated[str | None, AfterValidator(writable)]
Fraction = Annotated[float | None, Field(ge=0.0, le=1.0)]


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
        return f"{self.file}:{self.line}: " + (f"field {self.field!r} " if self.field else "") + self.reason


@dataclass
class Skipped:
    """What was not used of the files that a table was read from."""

    blank: int = 0  # rows that are in order but hold no text
    rejected: list[Rejected] = field(default_factory=list)
    repeated: int = 0  # rows that are in order but hold a text that an earlier one has
    by_label: int = 0  # rows whose label the reader has said to skip

    def __add__(self, other: Skipped) -> Skipped:
        return Skipped(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __bool__(self) -> bool:
        return self != Skipped()

    def __str__(self) -> str:
        said = [f"{self.blank} rows without text skipped"]
        said += [f"{self.repeated} rows that repeat a text skipped"] if self.repeated else []
        said += [f"{self.by_label} rows skipped by their label"] if self.by_label else []
        if self.rejected:
            more = f", and {len(self.rejected) - 3} more" if len(self.rejected) > 3 else ""
            first = "; ".join(map(str, self.rejected[:3]))
            said.append(f"{len(self.rejected)} malformed lines skipped ({first}{more})")
        return ", ".join(said)

    def record(self) -> dict[str, Any]:
        """For a manifest."""
        further = {name: number for name, number in (("repeated", self.repeated), ("skipped", self.by_label)) if number}
        listed = [str(line) for line in self.rejected[:MOST_LISTED]]
        return {"blank": self.blank, **further, "rejected": len(self.rejected), "rejected_lines": listed}


@dataclass
class Rows:
    """The rows of one file with their line numbers, and what was rejected so far."""

    path: Path
    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def reject(self, line: int, name: str | None, reason: str) -> None:
        """Skip one line."""
        self.rejected.append(Rejected(self.path.name, line, name, reason))


def read_table(files: Iterable[Path], kind: type[Row], needed: Sequence[str]) -> tuple[pd.DataFrame, Skipped]:
    """The rows of some files that fit ``kind`` and have text in ``needed``, with their ``file`` (stem) and ``line``."""
    found, skipped = [], Skipped()
    for file in files:
        kept, rejected = check_rows(read_rows(file), kind)
        whole = [dict(row) | {"file": file.stem, "line": line} for line, row in kept
                 if not any(is_blank(getattr(row, name)) for name in needed)]  # fmt: skip
        skipped += Skipped(len(kept) - len(whole), rejected)
        found += whole
    return pd.DataFrame(found, columns=[*kind.model_fields, "file", "line"], dtype=object), skipped


def check_rows(rows: Rows, kind: type[Row]) -> tuple[list[tuple[int, Any]], list[Rejected]]:
    """The rows that fit, by line, and what was rejected: a ``UserError`` where that is too many, or all."""
    kept, title = {}, kind.model_config["title"]
    rejected = {line.line: line for line in reversed(rows.rejected)}  # of each line the first reason
    for line, row in rows.rows:
        if line not in rejected:
            try:
                kept[line] = kind.model_validate(row)
            except ValidationError as error:
                rejected[line] = Rejected(rows.path.name, line, *_complaint(error))
    if not kept and not rejected:
        raise UserError(f"{rows.path}: empty, it has no rows; fetch the file again, or name another one")
    if not kept or len(rejected) > MOST_REJECTED * (len(kept) + len(rejected)):
        first = rejected[min(rejected)]
        names = [" ".join(str(name).split())[:40] for name in dict(rows.rows).get(first.line, ())][:8]
        meant = hint if "did you mean" in (hint := nearest(str(first.field), names)) else ""
        has = f"{meant} (it has: {', '.join(names) or 'none'})" if first.reason == "is missing" else ""
        raise UserError(
            f"{rows.path.parent / str(first)}{has}; {len(rejected)} of {len(kept) + len(rejected)} rows are so: mend "
            f"or remove them, or fetch the file again, if it is {title} at all"
        )
    return list(kept.items()), [rejected[line] for line in sorted(rejected)]


def _complaint(error: ValidationError) -> tuple[str, str]:
    """The field and the reason of pydantic's first error, whose message quotes no value."""
    first = error.errors(include_url=False, include_input=False)[0]
    reason = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return ".".join(map(str, first["loc"])), reason.replace("Input should", "should")


def read_rows(path: Path) -> Rows:
    """All rows of a JSON-lines file, a JSON array, a CSV or Parquet table, or a text (each line the field ``text``)."""
    try:
        status = path.stat()
        # The checks before a run read a file several times, and many languages may share one.
        read = (_cached if status.st_size <= MOST_CACHED else _read)(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return Rows(path, read.rows, list(read.rejected))


def _read(path: Path, _modified: int, _size: int) -> Rows:
    rows = Rows(path)
    if path.suffix == ".csv":
        values: Iterable[tuple[int, Any]] = _csv_values(rows)
    elif path.suffix == ".parquet":
        values = enumerate(_table(path), 1)
    elif path.suffix in (".txt", ".tokens", ".raw"):
        values = ((number, {"text": line}) for number, line in _lines(rows))
    else:
        values = _json_values(rows)
    for number, value in values:
        if isinstance(value, dict):
            rows.rows.append((number, value))
        else:
            rows.reject(number, None, f"expected an object with fields, found {type(value).__name__}")
    return rows


_cached = lru_cache(maxsize=20)(_read)


def _table(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:  # of many kinds; all mean that the file is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: not readable ({reason}); fetch the file again") from None


def _csv_values(rows: Rows) -> Iterator[tuple[int, Any]]:
    """The rows of a CSV table, as they are written: a text may be the word NA.

    A row with a cell beyond the headings is rejected, since its cells may stand below others' headings; empty ones,
    which spreadsheets add, and cells that are left out at the end are in order.
    """
    with rows.path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        lines = (_without_empty_end(cells) for cells in reader)
        filled = filter(None, lines)
        try:
            headings = next(filled, [])
            if len(set(filter(None, headings))) < sum(map(bool, headings)):
                raise csv.Error("two columns have one heading")
            for number, cells in enumerate(filled, 1):
                if len(cells) <= len(headings):
                    yield number, dict(zip_longest(headings, cells, fillvalue=""))
                else:
                    rows.reject(number, None, f"has {len(cells)} cells, and {len(headings)} columns have a heading")
        except (csv.Error, UnicodeDecodeError) as error:
            line = f":{reader.line_num}" if isinstance(error, csv.Error) else ""
            raise UserError(f"{rows.path}{line}: not valid CSV ({error}); mend it, or save the table again as CSV in "
                            "UTF-8") from None  # fmt: skip


def _without_empty_end(cells: list[str]) -> list[str]:
    """The cells of a row up to the last that holds something."""
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


class _Twice(ValueError):
    """An object has one key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def _json_values(rows: Rows) -> Iterator[tuple[int, Any]]:
    """The entries of a JSON array, a JSON object alone, or the value of each line."""
    text = ""
    try:
        whole = _loads(text := rows.path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # objects, a line each, are no JSON together
        if isinstance(error, _Twice) and text.lstrip().startswith("["):
            raise UserError(f"{rows.path}: {error} in one object; mend it") from None
        for number, line in _lines(rows):
            try:
                yield number, _loads(line)
            except (ValueError, RecursionError) as error:
                reason = "nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", error)
                rows.reject(number, None, f"not valid JSON ({reason})")
    else:
        yield from enumerate(whole if isinstance(whole, list) else [whole], 1)


def _loads(text: str) -> Any:
    # NaN is how some write that there is none.
    return json.loads(text, parse_constant=lambda _: None, object_pairs_hook=_object)


def _lines(rows: Rows) -> Iterator[tuple[int, str]]:
    """The lines that hold something, with their numbers; those that are not UTF-8 are rejected."""
    content = rows.path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or content.count(0) > len(content) // 10:
        raise UserError(f"{rows.path}: not UTF-8 text, but perhaps UTF-16; save it as UTF-8")
    for number, line in enumerate(content.splitlines(), 1):  # of bytes: a U+2028, which a text may hold, ends no line
        try:
            if line.strip():
                yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            rows.reject(number, None, f"not UTF-8 text ({error.reason} at byte {error.start})")
