"""The data sources that ``params/data.yaml`` lists: what they are, and where they lie here."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from pydantic import Field

from polydetox.core import paths
from polydetox.core.errors import UserError, nearest
from polydetox.core.parameters import Strict
from polydetox.core.yaml_files import read_checked

RECORD = "fetched.json"  # what came, with its sha256: written last, so that its presence means that all is there


class SourceFile(Strict):
    """One file of a source, which must have ``sha256`` where it is given."""

    address: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.address).name


class HubDataset(Strict):
    """A dataset repository of the Hub; without ``revision`` its newest commit is taken, and recorded."""

    repository: str
    revision: str | None = None  # commit
    files: list[str]  # patterns


class Source(Strict):
    """One data source: where it is, what it may be used for, and how to get it."""

    title: str
    what: str
    address: str
    licence: str
    citation: str | None
    variable: str | None  # the environment variable that names a reader's own folder
    size: str | None
    how: str
    note: str | None = None  # what could not be confirmed, or should be known
    files: list[SourceFile] = Field(default=[])  # what can be fetched by its address
    hub: HubDataset | None = None

    @property
    def fetchable(self) -> bool:
        """Whether ``polydetox data fetch`` can download it; an account may be needed."""
        return bool(self.files or self.hub)


def sources() -> dict[str, Source]:
    """Every source of ``params/data.yaml``, by name."""
    return dict(read_checked(dict[str, Source], paths.root() / "params" / "data.yaml"))


def source(name: str) -> Source:
    """One source by its name; a ``UserError`` that names the nearest where there is none."""
    known = sources()
    if name not in known:
        raise UserError(f"no data source {name!r}{nearest(name, known)} (there are {', '.join(known)})")
    return known[name]


def table() -> str:
    """The sources as text for the terminal."""
    blocks = []
    for name, entry in sources().items():
        lines = {
            "what": entry.what, "address": entry.address, "licence": entry.licence, "size": entry.size,
            "how": f"polydetox data fetch {name}: {entry.how}" if entry.fetchable else entry.how,
            "cite": f"{entry.citation} in book/references.bib" if entry.citation else None,
            "note": entry.note, "own": f"export {entry.variable}=<your folder>" if entry.variable else None,
            "here": str(where(name) or "no") if entry.variable else "yes",
        }  # fmt: skip
        blocks.append("\n".join([f"{name}: {entry.title}", *(f"  {key + ':':<8} {text}" for key, text in lines.items()
                                                             if text)]))  # fmt: skip
    return "\n\n".join(blocks)


def make_environment_absolute() -> None:
    """Fill in the folders that environment variables name, since commands and their stages work in the checkout."""
    named = [entry.variable for entry in sources().values() if entry.variable]
    for name in ("POLYDETOX_ROOT", "POLYDETOX_RUNS", "POLYDETOX_DATA", *named):
        if given := os.environ.get(name):
            os.environ[name] = str(paths.expanded(given))


def place_of(name: str) -> Path:
    """Where ``fetch`` keeps a source: below ``$POLYDETOX_DATA``, or the user's cache folder."""
    return paths.expanded(os.environ.get("POLYDETOX_DATA") or "~/.cache/polydetox") / name


def fetched_folder(name: str) -> Path | None:
    """The folder of a source that was fetched, all of it; None where it was not."""
    return place_of(name) / "files" if (place_of(name) / RECORD).is_file() else None


def where(name: str) -> Path | None:
    """The folder of a source that is available: the reader's own, else the fetched one, else None."""
    own = os.environ.get(source(name).variable or "")
    return paths.expanded(own) if own else fetched_folder(name)


def visible_files(place: Path) -> list[Path]:
    """A file, or those in and below a folder; not hidden ones, the earlier versions that editors and Jupyter keep."""
    if place.is_file():
        return [place]
    return [file for file in sorted(place.rglob("*")) if file.is_file() and "/." not in f"/{file.relative_to(place)}"]


def local_path(given: str | Path) -> Path:
    """A folder or file as a parameter names it, with ``~`` and ``$VARIABLES`` filled in; see :func:`~paths.given`.

    For the variable of a data source that is not set, the source as ``polydetox data fetch`` left it stands in.
    """
    variable = re.match(r"\$\{?(\w+)\}?", str(given))
    if not variable:
        return paths.given(given)
    name = next((name for name, entry in sources().items() if entry.variable == variable[1]), None)
    own = os.environ.get(variable[1])  # it may name another variable, or be set to nothing
    folder = paths.expanded(own) if own else fetched_folder(name) if name else None
    if folder is None:
        advice = f"export {variable[1]}=<the folder that holds the data>"
        if name is None:
            advice += " (see `polydetox data`)"
        elif source(name).fetchable:
            advice = f"run `polydetox data fetch {name}`, or {advice}"
        else:
            advice = f"{source(name).how}; or {advice}"
        raise UserError(f"{str(given)!r}: the environment variable {variable[1]} is not set; {advice}")
    return paths.expanded(f"{folder}{str(given)[variable.end() :]}")


def is_available(folder: str | Path) -> bool:
    """Whether the variable that a parameter names is set, or its source fetched; the folder itself may be absent."""
    try:
        local_path(folder)
    except UserError:
        return False
    return True
