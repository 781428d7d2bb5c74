"""Perspective scores that were saved earlier: JSON lines or Parquet, a file or a folder of files.

Known are the layouts of the published evaluation code (``query, prompt, response``) and of PolygloToxicityPrompts
(Jain et al. 2024, as its card describes them). The language is that of a row, else of the file's name, which ends in a
locale. A stored score of a blank text counts, as in the published averages; every other scorer skips blank texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from polydetox.core import paths
from polydetox.core.artifacts import file_sha256
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES, code_of_locale
from polydetox.data.corpora import language_of, summary_score
from polydetox.data.rows import Fraction, Row, Rows, Skipped, Text, check_rows, read_rows
from polydetox.scoring.base import NO_TEXT, Score, Scorer, is_blank, missing

ATTRIBUTE = "TOXICITY"
_SUFFIXES = (".json", ".jsonl", ".parquet")

# The field of a row that holds the text, and the field that holds what Perspective answered.
_LAYOUTS = [("query", "response"), ("text", "perspective"), ("prompt", "prompt_perspective")]


class StoredScore(Row, title="a file of stored scores"):
    language: str | None
    prompt: Any
    text: Text
    toxicity: Fraction = Field(alias=ATTRIBUTE)


def stored_files(source: str | Path) -> list[Path]:
    """The files of a source; a ``UserError`` where there are none."""
    path = paths.expanded(source)
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in _SUFFIXES)
    if not files:
        raise UserError(f"stored scores: no {', '.join(_SUFFIXES)} at {str(source)!r}; name a file or a folder of them")
    return files


def read_stored(source: str | Path) -> tuple[pd.DataFrame, Skipped]:
    """All stored scores, ``language, prompt, text, score`` (NaN: none), in their order; and what was rejected."""
    rows, skipped, of_no_language = [], Skipped(), []
    for path in stored_files(source):
        read = read_rows(path)
        if not read.rows and not read.rejected:
            continue  # one language of many may have no scores
        flat = Rows(path, [], read.rejected)
        for line, row in read.rows:
            text, answer = next((layout for layout in _LAYOUTS if row.keys() >= set(layout)), ("", ""))
            if not text:
                wanted = " or ".join(f"{text!r} with {answer!r}" for text, answer in _LAYOUTS)
                flat.reject(line, None, f"no stored score here: expected the fields {wanted}")
                continue
            language = language_of(row) or code_of_locale(path.stem.rsplit("_", 1)[-1])
            flat.rows.append((line, {"language": language, "prompt": row.get("prompt"), "text": row[text],
                                     ATTRIBUTE: summary_score(row[answer])}))  # fmt: skip
        kept, rejected = check_rows(flat, StoredScore)
        skipped.rejected += rejected
        if any(row.language is None for _, row in kept):
            of_no_language.append(path.name)
        rows += [(row.language, row.prompt, row.text or "", row.toxicity) for _, row in kept]
    if of_no_language:
        raise UserError(
            f"stored scores at {str(source)!r}: of which language are {', '.join(of_no_language)}? Let a file's name "
            f"end in its locale (..._de.json, ..._pt-br.json; known are {' '.join(LANGUAGES)}), or give each row a "
            "field 'language'"
        )
    return pd.DataFrame(rows, columns=["language", "prompt", "text", "score"]).astype({"score": float}), skipped


class StoredScorer(Scorer):
    """Looks texts up among the stored scores of a file or folder, blank ones too; one that is not there is missing."""

    id = "stored"
    scores_blank = True

    def __init__(self, source: str | Path):
        self._source, self._files = source, stored_files(source)

    @cached_property
    def revision(self) -> str:  # type: ignore[override]
        # A file's name counts, since it names the language.
        hashes = "".join(f"{path.name}\0{file_sha256(path)}\n" for path in self._files)
        return f"{ATTRIBUTE}-{hashlib.sha256(hashes.encode()).hexdigest()[:12]}"

    @cached_property
    def languages(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset(self._read[0]["language"]) & frozenset(LANGUAGES)

    @property
    def skipped(self) -> Skipped:  # type: ignore[override]
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[pd.DataFrame, Skipped]:
        return read_stored(self._source)

    @cached_property
    def _scores(self) -> dict[tuple[str, str], float]:
        # A text that was scored several times keeps its first score; ``first`` passes over missing ones.
        return self._read[0].groupby(["language", "text"])["score"].first().to_dict()

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        results = []
        for text in texts:
            score = self._scores.get((language, text))
            if score is None:
                results.append(missing(NO_TEXT if is_blank(text) else "not among the stored scores"))
            else:
                results.append(missing("no score in the stored response") if score != score else Score(score))
        yield list(enumerate(results))
