"""Scores kept on disk by (text, language, scorer, revision), so that no text is scored twice.

One SQLite file in write-ahead-log mode serves all processes of a run. Each batch is committed as it arrives: a
killed run loses at most the batch in flight.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from polydetox import paths
from polydetox.rows import LeftOut
from polydetox.scoring.base import Score, Scorer, chunks

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

# How long a process waits for others that are writing.
BUSY_SECONDS = 60.0

# SQLite's limit on bound variables was 999 before 3.32.
_LOOKUP = 500

_CREATE = """
CREATE TABLE IF NOT EXISTS score (
    scorer TEXT NOT NULL,
    revision TEXT NOT NULL,
    language TEXT NOT NULL,
    text_sha256 BLOB NOT NULL,
    value REAL,              -- NULL: missing
    reason TEXT NOT NULL,    -- why it is missing
    PRIMARY KEY (scorer, revision, language, text_sha256)
) WITHOUT ROWID
"""


def text_sha256(text: str) -> bytes:
    """The key of a text. Lone surrogates, which models can emit, are hashed as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class CachedScorer(Scorer):
    """A scorer whose results are kept on disk.

    Args:
        scorer: the scorer that is asked for what the cache does not hold.
        path: the SQLite file; by default the project's.

    Missing scores are kept only where asking again could not help (``Score.final``). A damaged file is set aside
    with a warning and begun anew; where the file cannot be written, scoring goes on without it.
    """

    def __init__(self, scorer: Scorer, path: Path | None = None):
        self.scorer = scorer
        self.id = scorer.id
        self.languages = scorer.languages
        self.threshold = scorer.threshold
        self.path = Path(path) if path else paths.score_cache()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    @property
    def revision(self) -> str:  # type: ignore[override]
        """That of the scorer; finding it out can mean loading something, so it is asked for when needed."""
        return self.scorer.revision

    @property
    def left_out(self) -> LeftOut:  # type: ignore[override]
        """That of the scorer."""
        return self.scorer.left_out

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

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None

    # --- SQLite -------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        # A connection must not be carried over a fork.
        if self._connection is None or self._owner != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                # In this mode NORMAL can lose the last commits to a power cut, but never to a killed process.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(_CREATE)
            except sqlite3.Error:
                connection.close()
                raise
            self._connection, self._owner = connection, os.getpid()
        return self._connection

    def _attempt(self, action):
        """Run ``action(connection)``; once more on a new file if this one is damaged; None if that fails too."""
        for _ in range(2):
            try:
                return action(self._open())
            except (sqlite3.Error, OSError) as error:
                self.close()
                if not _is_damage(error):
                    warnings.warn(f"score cache {self.path}: {error}; scoring goes on without it", stacklevel=2)
                    return None
                self._set_aside()
        return None

    def _read(self, keys: list[bytes], language: str) -> dict[bytes, Score]:
        def action(connection: sqlite3.Connection) -> dict[bytes, Score]:
            found = {}
            for part in chunks(keys, _LOOKUP):
                rows = connection.execute(
                    "SELECT text_sha256, value, reason FROM score WHERE scorer = ? AND revision = ? AND language = ?"
                    f" AND text_sha256 IN ({','.join('?' * len(part))})",
                    (self.id, self.revision, language, *part),
                )
                for key, value, reason in rows:
                    found[key] = Score(math.nan if value is None else value, reason)
            return found

        return self._attempt(action) or {}

    def _write(self, results: list[tuple[bytes, Score]], language: str) -> None:
        rows = [
            (self.id, self.revision, language, key, None if math.isnan(result.value) else result.value, result.reason)
            for key, result in results
        ]

        def action(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                connection.executemany("INSERT OR REPLACE INTO score VALUES (?, ?, ?, ?, ?, ?)", rows)

        if rows:
            self._attempt(action)

    def _set_aside(self) -> None:
        """Rename a damaged file, unless another process has just done so."""
        with _lock(self.path.with_name(self.path.name + ".lock")):
            if not _file_is_damaged(self.path):
                return
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
            os.replace(self.path, aside)
            # The log of the damaged file must not be replayed into its successor.
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            warnings.warn(
                f"score cache {self.path} is damaged; it was renamed to {aside.name} and begun anew", stacklevel=2
            )


def _is_damage(error: Exception) -> bool:
    # The low byte is the primary result code; the rest tells variants of it apart.
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _file_is_damaged(path: Path) -> bool:
    if not path.exists():
        return False
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
    try:
        return connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
    except sqlite3.Error as error:
        return _is_damage(error)
    finally:
        connection.close()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE takes the write lock at once: a transaction that is upgraded later fails without waiting.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as stream:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
