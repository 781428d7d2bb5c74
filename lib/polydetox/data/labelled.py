"""Texts labelled toxic or neutral, as Jigsaw's comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, AliasChoices, Field

from polydetox.core.artifacts import Stage, read_parquet
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings, label_name
from polydetox.data.catalogue import local_path
from polydetox.data.rows import Row, Skipped, Text, check_rows, is_blank, read_rows


def _label(value: Any) -> str:
    name = label_name(value) if isinstance(value, bool | int | float | str) else ""
    if not name or name == "nan":
        raise ValueError("should be a label: a number, true or false, or a word")
    return name


class Labelled(Row, title="a file of labelled texts"):
    """The second name of each is Jigsaw's. A label is its :func:`~polydetox.core.parameters.label_name`."""

    text: Text = Field(validation_alias=AliasChoices("text", "comment_text"))
    label: Annotated[Any, AfterValidator(_label)] = Field(
        validation_alias=AliasChoices("label", "toxic", "toxicity", "target")
    )


# What labels mean where the reader says nothing.
_PLAIN_LABELS = {"0": "neutral", "1": "toxic"}


def read_labelled(
    path: Path, threshold: float = 0.5, labels: Mapping[str, str] | Literal["scores"] = MappingProxyType({})
) -> tuple[pd.DataFrame, Skipped]:
    """Labelled texts of a CSV, JSON Lines or Parquet file: ``text, label`` (1: toxic).

    ``labels`` says what a label means, toxic, neutral or skipped, by its name; empty: 0 is neutral and 1 toxic. With
    ``scores`` it is a number from 0 to 1, toxic from ``threshold`` up. Any other label is a ``UserError``.
    """
    kinds = (".csv", ".jsonl", ".parquet")
    if path.suffix not in kinds:
        raise UserError(f"{path}: not a kind of file that can be read; use one of {', '.join(kinds)}")
    kept, rejected = check_rows(read_rows(path), Labelled)
    meanings = [_meaning(row.label, threshold, labels) for _, row in kept]
    unknown: dict[str, list[int]] = {}
    for (line, row), meaning in zip(kept, meanings, strict=True):
        if meaning is None:
            unknown.setdefault(row.label, []).append(line)
    if unknown:
        expected = "a score from 0 to 1" if labels == "scores" else f"one of {', '.join(labels or _PLAIN_LABELS)}"
        # A long one is no label but a text, which is never quoted.
        seen = [f"{name if len(name) <= 16 else 'a text'} ({len(lines)} rows)" for name, lines in unknown.items()]
        raise UserError(
            f"{path}:{min(map(min, unknown.values()))}: label {', '.join(seen[:5] + ['...'] * (len(seen) > 5))} is not "
            f"{expected}; say what each label means in the parameter 'labels', as {{-1: skipped, 0: neutral, 1: toxic}}"
            ", or 'labels: scores' where they are scores from 0 to 1, toxic from label_threshold up"
        )
    usable = [(row.text.strip(), int(meaning == "toxic")) for (_, row), meaning in zip(kept, meanings, strict=True)
              if meaning != "skipped" and not is_blank(row.text)]  # fmt: skip
    by_label = meanings.count("skipped")
    skipped = Skipped(len(kept) - len(usable) - by_label, rejected, by_label=by_label)
    return pd.DataFrame(usable, columns=["text", "label"]), skipped


def _meaning(label: str, threshold: float, labels: Mapping[str, str] | Literal["scores"]) -> str | None:
    """Toxic, neutral or skipped; None for a label of which nobody has said it."""
    if labels != "scores":
        return (labels or _PLAIN_LABELS).get(label)
    try:
        score = float(label)
    except ValueError:
        return None
    return None if not 0.0 <= score <= 1.0 else "toxic" if score >= threshold else "neutral"


def check_both_labels(table: pd.DataFrame, what: str) -> None:
    """Refuse labelled texts of one kind, from which nothing can be learnt."""
    if table["label"].nunique() < 2:
        found = "no texts" if table.empty else f"all texts are {'toxic' if table['label'].iloc[0] else 'neutral'}"
        raise UserError(f"{what}: {found}; give texts of both kinds, or say in 'labels' or 'label_threshold' which are "
                        "toxic")  # fmt: skip


def labelled_texts(settings: Settings, continuations: str, stage: Stage) -> pd.DataFrame:
    """English texts of the file ``settings.texts``, else continuations: ``text, label`` (1: toxic), and ``group``,
    which is never split.
    """
    if settings.texts:
        file = local_path(settings.texts)
        table, skipped = read_labelled(file, settings.label_threshold, settings.labels)
        stage.reads(file)
        stage.skips(skipped)
        table["group"] = np.arange(len(table))
    else:
        scored = read_parquet(stage.reads(continuations), ["prompt_id", "continuation", "toxicity"])
        table = labelled_continuations(scored, settings.label_threshold)
    table = table.drop_duplicates("text")
    if settings.limit and len(table) > settings.limit:
        table = table.sample(settings.limit, random_state=settings.seed)
    check_both_labels(table, settings.texts or continuations)
    return table.reset_index(drop=True)


def labelled_continuations(scored: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Scored continuations with words, as ``text``, ``group`` (prompt) and ``label`` (1 from ``threshold`` on)."""
    table = scored.assign(text=scored["continuation"].str.strip(), group=scored["prompt_id"])
    table = table[table["text"] != ""].dropna(subset=["toxicity"])
    return table.assign(label=(table["toxicity"] >= threshold).astype(int))
