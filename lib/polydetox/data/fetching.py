"""Fetching a data source: downloaded, verified, unpacked, and its content recorded."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from polydetox.core.artifacts import atomic_folder, file_sha256, link_or_copy, read_json, write_json
from polydetox.core.errors import UserError
from polydetox.core.home import usable
from polydetox.data.catalogue import RECORD, Source, place_of, source
from polydetox.data.download import download, download_dataset


def fetch(name: str, given: Path | None = None) -> Path:
    """Download a source, verify it, unpack its archives, and return its folder.

    Files that are there already, whole and unchanged, are not downloaded again. Nothing stands under its final name
    until it is verified. ``given`` is a file or folder that a person has downloaded, which is taken in their stead.
    """
    entry, place = source(name), place_of(name)
    own = f"export {entry.variable}=<folder>, or polydetox data fetch {name} --from <file or folder>"
    if not (entry.fetchable or (given and entry.variable)):
        raise UserError(f"{name}: cannot be downloaded: {entry.how}" + (f"; then {own}" if entry.variable else ""))
    if not usable(place):
        raise UserError(f"{place}: cannot be written to; name another folder in POLYDETOX_DATA")
    downloads, files, record = place / "downloads", place / "files", place / RECORD
    known = read_json(record) if record.is_file() else {"sha256": {}}
    try:
        revision = _take(entry, given, downloads) if given else _download(entry, downloads, known)
    except UserError as error:
        raise UserError(f"{error}. What you have already: {own}") from None
    hashes = _hashes(downloads)
    if record.is_file() and hashes == known["sha256"] and _hashes(files) == known["files"]:
        return files
    record.unlink(missing_ok=True)
    readmes = [file for file in hashes if file.lower().startswith("readme")]
    with atomic_folder(files) as folder:
        for file in hashes:
            if file.endswith(".zip"):
                said = " ".join((downloads / readme).read_text("utf-8", "replace") for readme in readmes)
                unzip(downloads / file, folder, passwords(entry.address, said))
            elif file not in readmes:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(downloads / file, folder / file)
    write_json(record, {"source": name, "address": entry.address, "revision": revision, "sha256": hashes,
                        "files": _hashes(files)})  # fmt: skip
    return files


def _download(entry: Source, folder: Path, known: dict[str, Any]) -> str | None:
    """Bring what is missing or changed of a source's downloads into ``folder``; returns the Hub's commit."""
    hashes: dict[str, str] = known["sha256"]
    for file in entry.files:
        download(file.address, folder / file.name, file.sha256 or hashes.get(file.name))
    if not entry.hub:
        return None
    revision = entry.hub.revision or known.get("revision")
    if revision and hashes and all(_is_there(folder / name, sha256) for name, sha256 in hashes.items()):
        return str(revision)
    return download_dataset(entry.hub.repository, revision, entry.hub.files, folder)


def _take(entry: Source, given: Path, folder: Path) -> None:
    """Copy a file, or a folder's files, to where downloads lie; one whose hash is known must have it."""
    if not given.exists():
        raise UserError(f"{given}: no such file or folder")
    with atomic_folder(folder) as temporary:
        if given.is_file():
            shutil.copy(given, temporary)
        else:
            shutil.copytree(given, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        for file in entry.files:
            if file.sha256 and (temporary / file.name).is_file() and not _is_there(temporary / file.name, file.sha256):
                raise UserError(f"{given}: {file.name} has another sha256 than params/data.yaml says")


def _is_there(file: Path, expected: str | None) -> bool:
    return file.is_file() and expected is not None and file_sha256(file) == expected


def _hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a folder and below it, by its path from there, without hidden ones."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(name): file_sha256(folder / name) for name in names if not re.search(r"(^|/)\.", str(name))}


def passwords(address: str, readme: str) -> list[str]:
    """The passwords that an archive may have: ``$POLYDETOX_ZIP_PASSWORD``, and the one that its README explains.

    RTP-LX's is the name of the repository in lower case, ``-entries-``, and a date that changes with the version.
    """
    given = os.environ.get("POLYDETOX_ZIP_PASSWORD")
    repository = address.rstrip("/").rsplit("/", 1)[-1].lower()
    dates = dict.fromkeys(re.findall(r"-(\d{1,2}/\d{1,2}/\d{2,4})\b", readme))
    return [*([given] if given else []), *(f"{repository}-entries-{date}" for date in dates)]


def unzip(archive: Path, folder: Path, tried: list[str]) -> None:
    """Unpack the files of an archive, plain or encrypted, flat into ``folder``."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            encrypted = [member for member in members if member.flag_bits & 1]
            if encrypted:
                content.setpassword(_password(content, min(encrypted, key=lambda one: one.file_size), tried))
            for member in members:
                name = PurePosixPath(member.filename).name
                if not name.startswith("."):  # what a Mac leaves in an archive
                    with content.open(member) as stream, (folder / name).open("wb") as out:
                        shutil.copyfileobj(stream, out)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: not a whole zip archive ({error}); delete it and fetch again") from None
    except NotImplementedError:
        raise UserError(
            f"{archive}: encrypted in a way that Python cannot read; unpack it with 7-Zip by hand"
        ) from None


def _password(content: zipfile.ZipFile, member: zipfile.ZipInfo, tried: list[str]) -> bytes:
    for password in tried:
        try:
            content.read(member, pwd=password.encode())  # checks the content's CRC too
        except (RuntimeError, zipfile.BadZipFile, zlib.error):
            continue
        return password.encode()
    raise UserError(
        f"{content.filename}: encrypted, and no password that its README explains opens it; "
        "export POLYDETOX_ZIP_PASSWORD=<password> and fetch again"
    )
