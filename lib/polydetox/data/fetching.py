"""Fetching a data source: downloaded, verified, unpacked, and its content recorded."""

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

from polydetox.core.artifacts import atomic_folder, file_sha256, read_json, write_json
from polydetox.core.errors import UserError
from polydetox.core.home import usable
from polydetox.data.catalogue import RECORD, Source, place_of, source
from polydetox.data.download import download, download_dataset, download_drive, download_kaggle


def fetch(name: str, given: Path | None = None) -> Path:
    """Download a source, verify it, unpack its archives, and return its folder.

    Files that are there already, whole and unchanged, are not downloaded again. Nothing stands under its final name
    until it is verified. ``given`` is a file or folder that a person has downloaded, which is taken in their stead.
    """
    entry = source(name)
    if not entry.fetchable:
        raise UserError(f"{name}: cannot be fetched: {entry.how}" + (
            f"; then export {entry.variable}=<the folder>" if entry.variable else ""))  # fmt: skip
    place, record = place_of(name), place_of(name) / RECORD
    if not usable(place):
        raise UserError(f"{place}: cannot be written to; name another folder in POLYDETOX_DATA")
    known = read_json(record) if record.is_file() else {"sha256": {}}
    try:
        if given:
            _take(entry, given, place / "downloads")
        revision = None if given else _download(entry, place / "downloads", known)
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
        for name in [given.name] if given.is_file() else _files_below(given):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given if given.is_file() else given / name, temporary / name)
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


def changed(name: str) -> list[str]:
    """The files of a fetched source that are no longer what was recorded."""
    place = place_of(name)
    recorded = read_json(place / RECORD)["files"]
    files = {file: place / "files" / file for file in recorded}
    return [file for file, path in files.items() if not path.is_file() or file_sha256(path) != recorded[file]]
