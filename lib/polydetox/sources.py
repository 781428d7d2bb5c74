"""The data sources that ``params/data.yaml`` lists: what they are, how they are fetched, and where they then lie."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from polydetox import paths
from polydetox.artifacts import atomic_folder, file_sha256, read_json, write_json
from polydetox.errors import UserError, nearest
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
    files: list[SourceFile]  # what can be fetched; none: it needs a person


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
        blocks.append(
            f"{name}: {entry.title}\n  what:    {entry.what}\n  address: {entry.address}\n"
            f"  licence: {entry.licence}\n  how:     {entry.how}\n  here:    {where(name) or 'no'}"
        )
    return "\n\n".join(blocks)


def _place(name: str) -> Path:
    """Where ``fetch`` keeps a source: below ``$POLYDETOX_DATA``, or the user's cache folder."""
    given = os.environ.get("POLYDETOX_DATA")
    return (Path(given).expanduser() if given else Path.home() / ".cache" / "polydetox") / name


def fetched_folder(name: str) -> Path | None:
    """The folder of a source that was fetched, all of it; None where it was not."""
    return _place(name) / "files" if (_place(name) / RECORD).is_file() else None


def where(name: str) -> Path | None:
    """The folder of a source that is at hand: the reader's own, else the fetched one, else None."""
    entry = source(name)
    own = os.environ.get(entry.variable) if entry.variable else None
    return Path(own).expanduser() if own else fetched_folder(name)


def folder_of_variable(variable: str) -> Path | None:
    """The fetched folder that stands in for an environment variable which is not set; None where there is none."""
    named = [name for name, entry in sources().items() if entry.variable == variable]
    return fetched_folder(named[0]) if named else None


def advice(variable: str) -> str:
    """What to do where an environment variable that names a folder of data is not set."""
    export = f"export {variable}=<the folder that holds the data>"
    for name, entry in sources().items():
        if entry.variable == variable:
            return f"run `polydetox data fetch {name}`, or {export}" if entry.files else f"{entry.how}; then {export}"
    return f"{export} (see `polydetox data`)"


# --- fetching ---------------------------------------------------------------------------------------------------


def fetch(name: str) -> Path:
    """Download a source, verify it, unpack its archives, and return its folder.

    Files that are there already, whole and unchanged, are not downloaded again. Nothing stands under its final name
    until it is verified.
    """
    entry = source(name)
    if not entry.files:
        raise UserError(f"{name}: cannot be fetched: {entry.how}" + (
            f"; then export {entry.variable}=<the folder>" if entry.variable else ""))  # fmt: skip
    place, record = _place(name), _place(name) / RECORD
    known = read_json(record)["sha256"] if record.is_file() else {}
    hashes = {}
    for file in entry.files:
        target = place / "downloads" / file.name
        expected = file.sha256 or known.get(file.name)
        if not (target.is_file() and expected == file_sha256(target)):
            _download(file.address, target, expected)
        hashes[file.name] = file_sha256(target)
    if record.is_file() and not changed(name) and hashes == known:
        return place / "files"
    record.unlink(missing_ok=True)
    downloads = [place / "downloads" / file.name for file in entry.files]
    readmes = [file for file in downloads if file.name.lower().startswith("readme")]
    with atomic_folder(place / "files") as folder:
        for file in downloads:
            if file.suffix == ".zip":
                said = " ".join(readme.read_text("utf-8", "replace") for readme in readmes)
                unzip(file, folder, passwords(entry.address, said))
            elif file not in readmes:
                shutil.copyfile(file, folder / file.name)
    contents = {path.name: file_sha256(path) for path in sorted((place / "files").iterdir())}
    write_json(record, {"source": name, "address": entry.address, "sha256": hashes, "files": contents})
    return place / "files"


def _download(address: str, target: Path, sha256: str | None) -> None:
    """Download one file with pooch, under its final name only once its hash is right."""
    import pooch
    import requests

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        pooch.retrieve(address, f"sha256:{sha256}" if sha256 else None, target.name, target.parent, progressbar=True)
    except requests.RequestException as error:
        raise UserError(f"{address}: cannot be downloaded ({str(error)[:150]}); the same command goes on") from None
    except ValueError as error:
        if "hash" not in str(error):
            raise
        raise UserError(
            f"{address}: what came has another sha256 than {sha256}; the file has changed, or was changed on the way"
        ) from None


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
                if name.startswith((".", "._")):
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
    for password in tried:
        try:
            content.read(smallest, pwd=password)  # checks the content's CRC too
        except (RuntimeError, zipfile.BadZipFile, zlib.error):
            continue
        return password
    raise UserError(
        f"{archive}: encrypted, and no password that its README explains opens it; "
        "export POLYDETOX_ZIP_PASSWORD=<password> and fetch again"
    )


# --- checking ---------------------------------------------------------------------------------------------------


def changed(name: str) -> list[str]:
    """The files of a fetched source that are no longer what was recorded."""
    place = _place(name)
    recorded = read_json(place / RECORD)["files"]
    files = {file: place / "files" / file for file in recorded}
    return [file for file, path in files.items() if not path.is_file() or file_sha256(path) != recorded[file]]
