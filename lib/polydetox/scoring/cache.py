"""Scores kept on disk by (text, language, scorer, revision), so that no text is scored twice.

Each process appends to a file of its own below ``runs/cache/scores/`` and reads those of all others: jobs on any number
of hosts need no lock. A killed job loses at most the batch in flight.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from polydetox.core import paths
from polydetox.scoring.base import Score, Scorer, missing


class CachedScorer(Scorer):
    """A scorer whose final results are kept below ``folder``, by default the project's; it warns of what is damaged."""

    def __init__(self, scorer: Scorer, folder: Path | None = None):
        self.scorer = scorer
        self.id, self.languages, self.threshold = scorer.id, scorer.languages, scorer.threshold
        self.scores_blank = scorer.scores_blank
        self.folder = Path(folder) if folder else paths.score_cache()
        self._name = uuid.uuid4().hex
        self._known: dict[Path, dict[str, Score]] = {}  # by folder of a revision and language, then SHA-256 of the text
        self._read_up_to: dict[Path, int] = {}  # bytes of each file

    # Both may mean loading something, so the scorer is asked when they are needed.
    revision = property(lambda self: self.scorer.revision)
    skipped = property(lambda self: self.scorer.skipped)

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        pinned = hashlib.sha256(f"{self.id}\0{self.revision}".encode()).hexdigest()[:16]
        folder = self.folder / f"{re.sub(r'[^a-zA-Z0-9.-]+', '-', self.id)[:60]}-{pinned}" / language
        positions: dict[str, list[int]] = {}
        for position, text in enumerate(texts):  # lone surrogates, which models can emit, are hashed as they are
            key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            positions.setdefault(key, []).append(position)
        known = self._known.setdefault(folder, {})
        if not positions.keys() <= known.keys():
            for file in sorted(folder.glob("*.jsonl")):
                self._take_up(file, known)
        yield [(position, known[key]) for key in positions if key in known for position in positions[key]]
        unknown = [key for key in positions if key not in known]
        if not unknown:
            return
        for batch in self.scorer.batches([texts[positions[key][0]] for key in unknown], language):
            self._write(folder, [(unknown[index], result) for index, result in batch if result.final])
            yield [(position, result) for index, result in batch for position in positions[unknown[index]]]

    def _take_up(self, file: Path, known: dict[str, Score]) -> None:
        """Add the whole lines that a file has got since it was last read."""
        damaged, start = 0, self._read_up_to.get(file, 0)
        try:
            with open(file, "rb") as stream:
                stream.seek(start)
                content = stream.read()
        except OSError as error:
            return self._warn(file, f"{error.strerror}; scoring goes on without it")
        whole = content[: content.rfind(b"\n") + 1]
        self._read_up_to[file] = start + len(whole)
        for line in whole.splitlines():
            try:
                key, value, reason = json.loads(line)
                if not (value is None or 0.0 <= value <= 1.0):
                    raise ValueError
                known[bytes.fromhex(key).hex()] = missing(str(reason)) if value is None else Score(float(value))
            except (ValueError, TypeError):
                damaged += 1
        if damaged:
            self._warn(file, f"{damaged} damaged lines, whose texts are scored again")

    def _write(self, folder: Path, results: list[tuple[str, Score]]) -> None:
        lines = [json.dumps([key, None if math.isnan(result.value) else result.value, result.reason]) + "\n"
                 for key, result in results]  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A fork of this process has a file of its own.
            with open(folder / f"{self._name}-{os.getpid()}.jsonl", "a", encoding="utf-8") as stream:
                stream.write("".join(lines))
        except OSError as error:
            self._warn(folder, f"{error.strerror}; scoring goes on without it")

    @staticmethod
    def _warn(place: Path, problem: str) -> None:
        warnings.warn(f"score cache {place}: {problem}", stacklevel=3)
