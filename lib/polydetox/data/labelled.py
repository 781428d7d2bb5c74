"""Texts labelled toxic or neutral, as Jigsaw's comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd

from polydetox.core.errors import UserError
from polydetox.core.parameters import label_name
from polydetox.data.rows import Skipped, check_rows, is_blank, read_rows
from polydetox.data.schemas import fraction, number

# What a file of labelled texts may call its two columns; the second line is Jigsaw's.
TEXT_COLUMNS = ("text", "comment_text")

LABEL_COLUMNS = ("label", "toxic", "toxicity", "target")

# What labels mean where the reader says nothing.
_PLAIN_LABELS = {"0": "neutral", "1": "toxic"}


def read_labelled(
    path: Path, threshold: float = 0.5, labels: Mapping[str, str] | Literal["scores"] = MappingProxyType({})
) -> tuple[pd.DataFrame, Skipped]:
    """Labelled texts of a CSV, JSON Lines or Parquet file: ``text, label`` (1: toxic).

    ``labels`` says what a label means, toxic, neutral or skipped, by its ``label_name``; empty:
    0 is neutral and 1 toxic. With ``scores`` it is a number from 0 to 1, toxic from ``threshold`` up. Any other label
    is a ``UserError``.
    """
    kinds = (".csv", ".jsonl", ".parquet")
    if path.suffix not in kinds:
        raise UserError(f"{path}: not a kind of file that can be read; use one of {', '.join(kinds)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; 'probe: texts' should name a file with columns text and label")
    rows = read_rows(path)
    columns = list(dict.fromkeys(name for _, row in rows.rows for name in row))
    for wanted, names in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS)):
        found = [name for name in names if name in columns]
        if rows.rows and not found:
            raise UserError(f"{path}: no column {' or '.join(names)} (it has {', '.join(map(str, columns[:8]))})")
        for _, row in rows.rows if found else []:
            if found[0] in row:
                row[wanted] = row[found[0]]
    kept, rejected = check_rows(rows, "labelled")
    meanings = _meanings(path, kept, threshold, labels)
    usable = [(row["text"].strip(), int(meaning == "toxic")) for (_, row), meaning in zip(kept, meanings, strict=True)
              if meaning != "skipped" and not is_blank(row["text"])]  # fmt: skip
    by_label = meanings.count("skipped")
    skipped = Skipped(len(kept) - len(usable) - by_label, rejected, by_label=by_label)
    return pd.DataFrame(usable, columns=["text", "label"]), skipped


def _meanings(
    path: Path, rows: list[tuple[int, dict[str, Any]]], threshold: float, labels: Mapping[str, str] | Literal["scores"]
) -> list[str]:
    """What the label of each row means; a ``UserError`` for labels of which nobody has said it."""
    if labels == "scores":
        meanings = [("toxic" if float(row["label"]) >= threshold else "neutral")
                    if number(row["label"]) and fraction(row["label"]) else None for _, row in rows]  # fmt: skip
    else:
        said = labels or _PLAIN_LABELS
        meanings = [said.get(label_name(row["label"])) for _, row in rows]
    unknown: dict[str, list[int]] = {}
    for (line, row), meaning in zip(rows, meanings, strict=True):
        if meaning is None:
            unknown.setdefault(label_name(row["label"]), []).append(line)
    if unknown:
        expected = "a score from 0 to 1" if labels == "scores" else f"one of {', '.join(said)}"
        # A long one is no label but a text, which is never quoted.
        seen = [f"{name if len(name) <= 16 else 'a text'} ({len(lines)} rows)" for name, lines in unknown.items()]
        seen = [*seen[:5], *(["..."] if len(seen) > 5 else [])]
        raise UserError(
            f"{path}:{min(map(min, unknown.values()))}: label {', '.join(seen)} is not {expected}; say what each label "
            "means in the parameter 'labels', as {-1: skipped, 0: neutral, 1: toxic}, or 'labels: scores' where they "
            "are scores from 0 to 1, toxic from label_threshold up"
        )
    return [meaning for meaning in meanings if meaning]


def check_both_labels(table: pd.DataFrame, what: str) -> None:
    """Refuse labelled texts of one kind, from which nothing can be learnt."""
    if table["label"].nunique() < 2:
        found = "no texts" if table.empty else f"all texts are {'toxic' if table['label'].iloc[0] else 'neutral'}"
        raise UserError(
            f"{what}: {found}; give texts of both kinds, or say in 'labels' or 'label_threshold' which are toxic"
        )
