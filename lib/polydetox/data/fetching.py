"""Fetching a data source: downloaded, verified, unpacked, and its content recorded."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from polydetox.core.artifacts import atomic_folder, file_sha256, link_or_copy, write_json
from polydetox.core.errors import UserError
from polydetox.core.home import usable
from polydetox.data.catalogue import RECORD, Source, fetched_folder, place_of, source, visible_files
from polydetox.data.download import download, download_dataset


def fetch(name: str, given: Path | None = None) -> Path:
    """Download a source, or take what a person has ``given``, verify and unpack it, and return its folder.

    One that was fetched is taken as it is. Nothing stands under its final name until it is verified.
    """
    entry, place = source(name), place_of(name)
    own = f"export {entry.variable}=<folder>, or polydetox data fetch {name} --from <file or folder>"
    if not (entry.fetchable or (given and entry.variable)):
        raise UserError(f"{name}: cannot be downloaded: {entry.how}" + (f"; or {own}" if entry.variable else ""))
    if not usable(place):
        raise UserError(f"{place}: cannot be written to; name another folder in POLYDETOX_DATA")
    if (known := fetched_folder(name)) and not given:
        return known
    with ExitStack() as stack:
        if given:
            stack.callback(shutil.rmtree, place / "given", ignore_errors=True)
        _fetch(name, entry, given, place / ("given" if given else "downloads"), own)
    return place / "files"


def _fetch(name: str, entry: Source, given: Path | None, downloads: Path, own: str) -> None:
    """Fill ``downloads``, and from it ``files`` beside it; their record is written once they are whole."""
    place, revision = downloads.parent, entry.hub.revision if entry.hub else None
    try:
        if given:
            _take(entry, given, downloads)
        else:
            for one in entry.files:
                download(one.address, downloads / one.name, one.sha256)
            if entry.hub:
                revision = download_dataset(entry.hub.repository, revision, entry.hub.files, downloads)
    except UserError as error:
        raise UserError(f"{error}. What you have already: {own}") from None
    with atomic_folder(place / "files") as folder:
        came = visible_files(downloads)
        readmes = [file for file in came if file.name.lower().startswith("readme")]
        said = " ".join(file.read_text("utf-8", "replace") for file in readmes)
        for file in came:
            target = folder / file.relative_to(downloads)
            if file.suffix == ".zip":
                unzip(file, folder, passwords(entry.address, said))
            elif file not in readmes:
                target.parent.mkdir(parents=True, exist_ok=True)
                _refuse_another(target, file)
                link_or_copy(file, target)
        hashes = {file.relative_to(folder).as_posix(): file_sha256(file) for file in visible_files(folder)}
        if not hashes:
            raise UserError(f"{given or downloads}: no files there; {own}")
        (place / RECORD).unlink(missing_ok=True)  # until it speaks of these files
    write_json(place / RECORD, {"source": name, "address": entry.address, "revision": revision, "files": hashes})


def _refuse_another(there: Path, new: Path) -> None:
    """Refuse a file whose name another one has already, unless both are the same."""
    if there.exists() and file_sha256(there) != file_sha256(new):
        raise UserError(f"{there.name}: two files of that name differ; name a folder that has one of them")


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
            came = temporary / file.name
            if file.sha256 and came.is_file() and file_sha256(came) != file.sha256:
                raise UserError(f"{given}: {file.name} has another sha256 than params/data.yaml says")


def passwords(address: str, readme: str) -> list[str]:
    """The passwords that an archive may have: ``$POLYDETOX_ZIP_PASSWORD``, and RTP-LX's, which its README explains."""
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
                if name.startswith(".") or name.lower().startswith("readme"):  # what a Mac leaves, what is not read
                    continue
                with content.open(member) as stream, (folder / f".{name}").open("wb") as out:
                    shutil.copyfileobj(stream, out)
                _refuse_another(folder / name, folder / f".{name}")
                os.replace(folder / f".{name}", folder / name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
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
