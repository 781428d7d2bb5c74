"""Perspective scores that were saved earlier, so that they can be used after the service has ended.

Two layouts are read, as JSON lines or Parquet, a file or a folder of files:

- what the published evaluation code writes: one response a line, with ``query`` (the text that was scored),
  ``prompt`` and ``response.attributeScores.TOXICITY.summaryScore.value``; the language is the last part of the file's
  name (``..._zh-hans.json``), or the field ``language``;
- PolygloToxicityPrompts (Jain et al. 2024), with the field names of its card on the Hub: ``text`` with
  ``perspective.attributeScores`` and ``meta_data.lang`` in the parts ``ptp-*``, ``prompt`` with
  ``prompt_perspective.attributeScores`` in the parts ``wildchat-*``, whose language is the last part of the folder's
  name unless a field ``lang`` tells it. The test reads lines of this form; the data set itself was not at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.artifacts import file_sha256
from polydetox.corpora import summary_score, told_language
from polydetox.errors import UserError
from polydetox.languages import LANGUAGES
from polydetox.rows import LeftOut, Rows, check_rows, read_rows
from polydetox.scoring.base import Score, Scorer, missing

ATTRIBUTE = "TOXICITY"
_ALIASES = {"zh-hans": "zh", "zh-cn": "zh"}
_SUFFIXES = (".json", ".jsonl", ".parquet")

# The field of a row that holds the text, and the field that holds what Perspective answered.
_LAYOUTS = [("query", "response"), ("text", "perspective"), ("prompt", "prompt_perspective")]


def stored_files(source: str | Path) -> list[Path]:
    """The files of a source; a ``UserError`` where there are none."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*") if file.suffix in _SUFFIXES) if path.is_dir() else []
    if not files:
        raise UserError(f"stored scores: no {', '.join(_SUFFIXES)} at {str(source)!r}; name a file or a folder of them")
    return files


def read_stored(source: str | Path) -> tuple[pd.DataFrame, LeftOut]:
    """All stored scores, and what was rejected.

    Columns: ``language`` (empty where the file does not tell), ``prompt`` (None where there is none), ``text``,
    ``score`` (NaN where the response holds none), ``reason`` (why it is missing). One row a stored response, in the
    order of the files. Malformed lines are counted and listed; a file of many is a ``UserError`` that names the first.
    """
    rows, left_out = [], LeftOut()
    for path in stored_files(source):
        named = _language_code(path.stem.rsplit("_", 1)[-1]) or _language_code(path.parent.name.rsplit("-", 1)[-1])
        read = read_rows(path)
        if not read.rows and not read.rejected:
            continue  # one language of many may have no scores
        flat = Rows(path, [], read.rejected)
        for line, row in read.rows:
            layout = next(((text, answer) for text, answer in _LAYOUTS if text in row and answer in row), None)
            if layout is None:
                wanted = " or ".join(f"{text!r} with {answer!r}" for text, answer in _LAYOUTS)
                flat.reject(line, None, f"no stored score here: expected the fields {wanted}")
                continue
            text, answer = layout
            flat.rows.append((line, {"language": _language_code(told_language(row)) or named,
                                     "prompt": row.get("prompt"), "text": row[text],
                                     ATTRIBUTE: summary_score(row[answer])}))  # fmt: skip
        kept, rejected = check_rows(flat, "stored-scores")
        left_out.rejected += rejected
        for _, row in kept:
            score = _score_of(row[ATTRIBUTE])
            rows.append((row["language"], row["prompt"], row["text"] or "", score.value, score.reason))
    return pd.DataFrame(rows, columns=["language", "prompt", "text", "score", "reason"]), left_out


class StoredScorer(Scorer):
    """Looks texts up among stored scores; a text that is not there is missing.

    Args:
        source: a file, or a folder of files.
    """

    id = "stored"
    threshold = 0.5

    def __init__(self, source: str | Path):
        self._source = source
        stored_files(source)

    @cached_property
    def revision(self) -> str:  # type: ignore[override]
        hashes = "".join(file_sha256(path) for path in stored_files(self._source))
        return f"{ATTRIBUTE}-{hashlib.sha256(hashes.encode()).hexdigest()[:12]}"

    @cached_property
    def languages(self) -> frozenset[str]:  # type: ignore[override]
        found = {language for language, _ in self._scores}
        return frozenset(LANGUAGES) if "" in found else frozenset(found)

    @property
    def left_out(self) -> LeftOut:  # type: ignore[override]
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[pd.DataFrame, LeftOut]:
        return read_stored(self._source)

    @cached_property
    def _scores(self) -> dict[tuple[str, str], Score]:
        scores: dict[tuple[str, str], Score] = {}
        for row in self._read[0].itertuples():
            key = (row.language, row.text)
            # A text that was scored several times keeps its first score, unless that is missing.
            if key not in scores or scores[key].reason:
                scores[key] = Score(row.score, row.reason)
        return scores

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        absent = missing("not among the stored scores")
        yield [
            (index, self._scores.get((language, text)) or self._scores.get(("", text), absent))
            for index, text in enumerate(texts)
        ]


def _score_of(value: Any) -> Score:
    """The toxicity in a stored response, or why it is missing."""
    if value is None or value != value:  # NaN is how a table writes that there is none
        return missing("no score in the stored response")
    return Score(float(value))


def _language_code(told: str) -> str:
    code = str(told).lower()
    code = _ALIASES.get(code, code)
    return code if code in LANGUAGES else ""
