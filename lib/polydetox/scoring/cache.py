"""Scores kept on disk by (text, language, scorer, revision), so that no text is scored twice.

Each process appends to a file of its own, JSON Lines below ``runs/cache/scores/<scorer and revision>/<language>/``, and
reads those of all others. No two processes write one file, so jobs on any number of hosts need no lock. (A database
does: SQLite's write-ahead log needs memory that all writers share, which two hosts do not have, and its other journal
needs locks that network file systems often lack.) Each batch is written as it arrives: a killed job loses at most the
batch in flight, and a line that it left unfinished is passed over.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sqlite3
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from polydetox.core import paths
from polydetox.data.rows import Skipped
from polydetox.scoring.base import Score, Scorer


def text_sha256(text: str) -> bytes:
    """The key of a text. Lone surrogates, which models can emit, are hashed as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class CachedScorer(Scorer):
    """A scorer whose results are kept on disk.

    Args:
        scorer: the scorer that is asked for what the cache does not hold.
        folder: where the files are; by default the project's.

    Missing scores are kept only where asking again could not help (``Score.final``). Damaged lines are passed over
    with a warning; where nothing can be written, scoring goes on without the cache.
    """

    def __init__(self, scorer: Scorer, folder: Path | None = None):
        self.scorer = scorer
        self.id = scorer.id
        self.languages = scorer.languages
        self.threshold = scorer.threshold
        self.scores_blank = scorer.scores_blank
        self.folder = Path(folder) if folder else paths.score_cache()
        self._name = uuid.uuid4().hex
        self._known: dict[Path, dict[bytes, Score]] = {}  # by folder of a revision and language
        self._read_up_to: dict[Path, int] = {}  # bytes of each file

    @property
    def revision(self) -> str:  # type: ignore[override]
        """That of the scorer; finding it out can mean loading something, so it is asked for when needed."""
        return self.scorer.revision

    @property
    def skipped(self) -> Skipped:  # type: ignore[override]
        """That of the scorer."""
        return self.scorer.skipped

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        positions: dict[bytes, list[int]] = {}
        for position, text in enumerate(texts):
            positions.setdefault(text_sha256(text), []).append(position)
        known = self._read(list(positions), language)
        yield [(position, result) for key, result in known.items() for position in positions[key]]
        unknown = [key for key in positions if key not in known]
        if not unknown:
            return
        for batch in self.scorer.batches([texts[positions[key][0]] for key in unknown], language):
            self._write([(unknown[index], result) for index, result in batch if result.final], language)
            yield [(position, result) for index, result in batch for position in positions[unknown[index]]]

    # --- files --------------------------------------------------------------------------------------------------

    def _folder(self, language: str) -> Path:
        pinned = hashlib.sha256(f"{self.id}\0{self.revision}".encode()).hexdigest()[:16]
        return self.folder / f"{re.sub(r'[^a-zA-Z0-9.-]+', '-', self.id)[:60]}-{pinned}" / language

    def _read(self, keys: list[bytes], language: str) -> dict[bytes, Score]:
        folder = self._folder(language)
        if folder not in self._known:
            self._known[folder] = self._of_earlier_releases(language)
        known = self._known[folder]
        if not all(key in known for key in keys):
            for file in sorted(folder.glob("*.jsonl")):
                self._take_up(file, known)
        return {key: known[key] for key in keys if key in known}

    def _take_up(self, file: Path, known: dict[bytes, Score]) -> None:
        """Add the whole lines that a file has got since it was last read."""
        damaged, start = 0, self._read_up_to.get(file, 0)
        try:
            with open(file, "rb") as stream:
                stream.seek(start)
                content = stream.read()
        except OSError as error:
            warnings.warn(f"score cache {file}: {error.strerror}; scoring goes on without it", stacklevel=2)
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read_up_to[file] = start + len(whole)
        for line in whole.splitlines():
            try:
                key, value, reason = json.loads(line)
                known[bytes.fromhex(key)] = Score(_checked(value), str(reason))
            except (ValueError, TypeError):
                damaged += 1
        if damaged:
            warnings.warn(f"score cache {file}: {damaged} damaged lines, whose texts are scored again", stacklevel=2)

    def _write(self, results: list[tuple[bytes, Score]], language: str) -> None:
        if not results:
            return
        folder = self._folder(language)
        lines = [json.dumps([key.hex(), None if math.isnan(result.value) else result.value, result.reason]) + "\n"
                 for key, result in results]  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A fork of this process has a file of its own.
            with open(folder / f"{self._name}-{os.getpid()}.jsonl", "a", encoding="utf-8") as stream:
                stream.write("".join(lines))
        except OSError as error:
            warnings.warn(f"score cache {folder}: {error.strerror}; scoring goes on without it", stacklevel=2)

    def _of_earlier_releases(self, language: str) -> dict[bytes, Score]:
        """What the database holds that earlier releases kept their scores in; it is never written."""
        database = self.folder.with_name("scores.sqlite")
        if not database.is_file():
            return {}
        try:
            with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                rows = connection.execute(
                    "SELECT text_sha256, value, reason FROM score WHERE scorer = ? AND revision = ? AND language = ?",
                    (self.id, self.revision, language),
                )
                return {key: Score(_checked(value), reason) for key, value, reason in rows}
        except (sqlite3.Error, ValueError, TypeError) as error:
            warnings.warn(f"{database}: scores of an earlier release, not readable ({error}); remove it", stacklevel=2)
            return {}


def _checked(value: float | None) -> float:
    """A score as it is stored, where null is a missing one; raises ``ValueError`` where it is none."""
    if value is None:
        return math.nan
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{value} is no score")
    return float(value)
