"""The data sources that ``params/data.yaml`` lists: what they are, how they are fetched, and where they then lie."""

from __future__ import annotations

import getpass
import itertools
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from polydetox import paths
from polydetox.artifacts import atomic_folder, file_sha256, read_json, write_json
from polydetox.download import download, download_dataset, download_drive, download_kaggle
from polydetox.errors import UserError, nearest
from polydetox.home import usable
from polydetox.params import Strict, explain, read_yaml

RECORD = "fetched.json"  # what came, with its sha256: written last, so that its presence means that all is there


class SourceFile(Strict):
    """One file of a source; without ``sha256`` the hash of the first download is recorded and held to."""

    address: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.address).name


class HubDataset(Strict):
    """A dataset repository of the Hub; without ``revision`` the commit of the first download is held to."""

    repository: str
    revision: str | None = None  # commit
    files: list[str]  # patterns


class DriveFile(Strict):
    """A file of a public Google Drive folder."""

    folder: str  # the folder's id
    file: str


class KaggleFile(Strict):
    """A file of a Kaggle competition."""

    competition: str
    file: str


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
    drive: DriveFile | None = None
    kaggle: KaggleFile | None = None

    @property
    def fetchable(self) -> bool:
        """Whether ``polydetox data fetch`` can get it; an account may be needed."""
        return bool(self.files or self.hub or self.drive or self.kaggle)


def sources() -> dict[str, Source]:
    """Every source of ``params/data.yaml``, by name."""
    file = paths.root() / "params" / "data.yaml"
    try:
        return TypeAdapter(dict[str, Source]).validate_python(read_yaml(file))
    except ValidationError as error:
        raise explain(error, paths.relative(file)) from None


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
            "note": entry.note, "own": f"export {entry.variable}=<your folder>" if entry.variable else None,
            "here": str(where(name) or "no") if entry.variable else "yes",
        }  # fmt: skip
        blocks.append("\n".join([f"{name}: {entry.title}", *(f"  {key + ':':<8} {text}" for key, text in lines.items()
                                                             if text)]))  # fmt: skip
    return "\n\n".join(blocks)


def make_environment_absolute() -> None:
    """Fill in the folders that environment variables name as they are seen from here.

    Commands and their stages then work in the checkout, where a relative one would mean another folder.
    """
    named = [entry.variable for entry in sources().values() if entry.variable]
    for name in ("POLYDETOX_ROOT", "POLYDETOX_RUNS", "POLYDETOX_DATA", *named):
        if given := os.environ.get(name):
            os.environ[name] = str(paths.expanded(given))


def _place(name: str) -> Path:
    """Where ``fetch`` keeps a source: below ``$POLYDETOX_DATA``, or the user's cache folder."""
    given = os.environ.get("POLYDETOX_DATA")
    return paths.expanded(given or "~/.cache/polydetox") / name


def fetched_folder(name: str) -> Path | None:
    """The folder of a source that was fetched, all of it; None where it was not."""
    return _place(name) / "files" if (_place(name) / RECORD).is_file() else None


def where(name: str) -> Path | None:
    """The folder of a source that is at hand: the reader's own, else the fetched one, else None."""
    entry = source(name)
    own = os.environ.get(entry.variable) if entry.variable else None
    return paths.expanded(own) if own else fetched_folder(name)


def folder_of_variable(variable: str) -> Path | None:
    """The fetched folder that stands in for an environment variable which is not set; None where there is none."""
    named = [name for name, entry in sources().items() if entry.variable == variable]
    return fetched_folder(named[0]) if named else None


def advice(variable: str) -> str:
    """What to do where an environment variable that names a folder of data is not set."""
    export = f"export {variable}=<the folder that holds the data>"
    for name, entry in sources().items():
        if entry.variable == variable:
            return (
                f"run `polydetox data fetch {name}`, or {export}" if entry.fetchable else f"{entry.how}; then {export}"
            )
    return f"{export} (see `polydetox data`)"


# --- fetching ---------------------------------------------------------------------------------------------------


def fetch(name: str, given: Path | None = None) -> Path:
    """Download a source, verify it, unpack its archives, and return its folder.

    Files that are there already, whole and unchanged, are not downloaded again. Nothing stands under its final name
    until it is verified. ``given`` is a file or folder that a person has downloaded, which is taken in their stead.
    """
    entry = source(name)
    if not entry.fetchable:
        raise UserError(f"{name}: cannot be fetched: {entry.how}" + (
            f"; then export {entry.variable}=<the folder>" if entry.variable else ""))  # fmt: skip
    place, record = _place(name), _place(name) / RECORD
    if not usable(place):
        raise UserError(f"{place}: cannot be written to; name another folder in POLYDETOX_DATA")
    known = read_json(record) if record.is_file() else {"sha256": {}}
    try:
        revision = _take(entry, given, place / "downloads") if given else _download(entry, place / "downloads", known)
    except UserError as error:
        own = f"export {entry.variable}=<folder>, or polydetox data fetch {name} --from <file or folder>"
        raise UserError(f"{error}. What you have already: {own}") from None
    downloads = _files_below(place / "downloads")
    hashes = {file: file_sha256(place / "downloads" / file) for file in downloads}
    if record.is_file() and not changed(name) and hashes == known["sha256"]:
        return place / "files"
    record.unlink(missing_ok=True)
    readmes = [file for file in downloads if file.lower().startswith("readme")]
    with atomic_folder(place / "files") as folder:
        for file in downloads:
            if file.endswith(".zip"):
                said = " ".join((place / "downloads" / readme).read_text("utf-8", "replace") for readme in readmes)
                unzip(place / "downloads" / file, folder, passwords(entry.address, said))
            elif file not in readmes:
                _link(place / "downloads" / file, folder / file)
    contents = {file: file_sha256(place / "files" / file) for file in _files_below(place / "files")}
    write_json(record, {"source": name, "address": entry.address, "revision": revision, "sha256": hashes,
                        "files": contents})  # fmt: skip
    return place / "files"


def _download(entry: Source, folder: Path, known: dict[str, Any]) -> str | None:
    """Bring what is missing or changed of a source's downloads into ``folder``; returns the Hub's commit."""
    for file in entry.files:
        expected = file.sha256 or known["sha256"].get(file.name)
        if not _is_there(folder / file.name, expected):
            download(file.address, folder / file.name, expected)
    if entry.drive and not _is_there(folder / entry.drive.file, known["sha256"].get(entry.drive.file)):
        download_drive(entry.drive.folder, entry.drive.file, folder / entry.drive.file)
    if entry.kaggle and not _is_there(folder / entry.kaggle.file, known["sha256"].get(entry.kaggle.file)):
        download_kaggle(entry.kaggle.competition, entry.kaggle.file, folder / entry.kaggle.file)
    if not entry.hub:
        return None
    revision = entry.hub.revision or known.get("revision")
    expected = known["sha256"]
    if revision and expected and all(_is_there(folder / name, sha256) for name, sha256 in expected.items()):
        return str(revision)
    return download_dataset(entry.hub.repository, revision, entry.hub.files, folder)


def _take(entry: Source, given: Path, folder: Path) -> None:
    """Copy a file, or a folder's files, to where downloads lie; one whose hash is known must have it."""
    if not given.exists():
        raise UserError(f"{given}: no such file or folder")
    with atomic_folder(folder) as temporary:
        for file in [given.name] if given.is_file() else _files_below(given):
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given if given.is_file() else given / file, temporary / file)
        for file in entry.files:
            if file.sha256 and (temporary / file.name).is_file() and file_sha256(temporary / file.name) != file.sha256:
                raise UserError(f"{given}: {file.name} has another sha256 than params/data.yaml says")


def _is_there(file: Path, expected: str | None) -> bool:
    return file.is_file() and expected is not None and file_sha256(file) == expected


def _files_below(folder: Path) -> list[str]:
    """The files in a folder and below it, as paths from there, without hidden ones."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]


def _link(source_file: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system knows no such thing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source_file, target)
    except OSError:
        shutil.copyfile(source_file, target)


def passwords(address: str, readme: str) -> list[bytes]:
    """The passwords that an archive may have: ``$POLYDETOX_ZIP_PASSWORD``, and the one that its README explains.

    RTP-LX's is the name of the repository in lower case, ``-entries-``, and a date that changes with the version.
    """
    given = os.environ.get("POLYDETOX_ZIP_PASSWORD")
    repository = address.rstrip("/").rsplit("/", 1)[-1].lower()
    dates = dict.fromkeys(re.findall(r"-(\d{1,2}/\d{1,2}/\d{2,4})\b", readme))
    return [*([given.encode()] if given else []), *(f"{repository}-entries-{date}".encode() for date in dates)]


def unzip(archive: Path, folder: Path, tried: list[bytes]) -> None:
    """Unpack the files of an archive, plain or encrypted, flat into ``folder``."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            encrypted = any(member.flag_bits & 1 for member in members)
            password = _password(content, members, tried, archive) if encrypted else None
            for member in members:
                name = PurePosixPath(member.filename).name
                if name.startswith("."):
                    continue  # what a Mac leaves in an archive
                with content.open(member, pwd=password) as stream, (folder / name).open("wb") as out:
                    shutil.copyfileobj(stream, out)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: not a whole zip archive ({error}); delete it and fetch again") from None
    except NotImplementedError:
        raise UserError(
            f"{archive}: encrypted in a way that Python cannot read; unpack it with 7-Zip by hand"
        ) from None


def _password(content: zipfile.ZipFile, members: list[zipfile.ZipInfo], tried: list[bytes], archive: Path) -> bytes:
    smallest = min((member for member in members if member.flag_bits & 1), key=lambda member: member.file_size)
    for password in itertools.chain(tried, _asked(archive)):
        try:
            content.read(smallest, pwd=password)  # checks the content's CRC too
        except (RuntimeError, zipfile.BadZipFile, zlib.error):
            continue
        return password
    raise UserError(
        f"{archive}: encrypted, and no password that its README explains opens it; "
        "export POLYDETOX_ZIP_PASSWORD=<password> and fetch again"
    )


def _asked(archive: Path) -> Iterator[bytes]:
    """Passwords that a person at a terminal types, three at most; an empty one gives up."""
    for _ in range(3 if sys.stdin is not None and sys.stdin.isatty() else 0):
        typed = getpass.getpass(f"Password of {archive.name} (its README explains it; Enter to give up): ")
        if not typed:
            return
        yield typed.encode()


# --- checking ---------------------------------------------------------------------------------------------------


def changed(name: str) -> list[str]:
    """The files of a fetched source that are no longer what was recorded."""
    place = _place(name)
    recorded = read_json(place / RECORD)["files"]
    files = {file: place / "files" / file for file in recorded}
    return [file for file, path in files.items() if not path.is_file() or file_sha256(path) != recorded[file]]
