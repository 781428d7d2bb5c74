"""Downloads that are verified and resume where they stopped: files, Hub repositories, Google Drive, Kaggle."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polydetox.core.artifacts import read_json, write_json
from polydetox.core.errors import UserError

# Seconds to wait for a server to answer, and between two of its bytes; tries before giving up.
TIMEOUT = 30.0
TRIES = 3
PAUSE = 2.0  # seconds before the second try, twice as many before the third

_CHUNK = 1 << 16


def download(address: str, target: Path, sha256: str | None) -> None:
    """Download one file with pooch, under its final name only once its hash is right.

    What a broken connection left is kept beside it and continued, by the next try or the next call.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(TRIES):
        try:
            pooch.retrieve(address, f"sha256:{sha256}" if sha256 else None, target.name, target.parent,
                           downloader=_Resumed(target, sha256 is not None))  # fmt: skip
            return
        except requests.HTTPError as error:
            assert error.response is not None
            status = error.response.status_code
            reason = f"the server says {status}"
            if status < 500 and status not in (408, 416, 429):  # 416: what was kept is another file's, and gone now
                raise UserError(f"{address}: {reason}; the file may have moved: see `polydetox data`") from None
        except (requests.RequestException, OSError) as error:
            reason = _why(error)
        except ValueError as error:
            if "hash" not in str(error):
                raise
            raise UserError(
                f"{address}: what came has another sha256 than {sha256}; the file has changed, or was changed on the "
                "way: nothing of it is kept"
            ) from None
        if attempt + 1 < TRIES:
            time.sleep(PAUSE * 2**attempt)
    raise UserError(f"{address}: cannot be downloaded ({reason}); the same command resumes from here")


def _why(error: Exception) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT:g} seconds"
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return "the connection broke off, or there is none"
    return str(error)[:150]


class _Resumed:
    """A downloader for pooch that keeps what has come and asks the server for the rest alone.

    The rest is only added to the same version of the file, as the server's ETag or date tells, or where the hash of
    the whole is known.
    """

    def __init__(self, target: Path, hash_is_known: bool):
        self._part = target.with_name(f".{target.name}.part")
        self._version = target.with_name(f".{target.name}.part.json")
        self._hash_is_known = hash_is_known

    def __call__(self, address: str, output: str, pooch: Any) -> None:
        import requests
        from tqdm import tqdm

        began = read_json(self._version).get("version") if self._version.is_file() and self._part.is_file() else None
        have = self._part.stat().st_size if self._part.is_file() and (began or self._hash_is_known) else 0
        headers = {"Accept-Encoding": "identity"}  # lengths and places count the file's own bytes
        if have:
            headers |= {"Range": f"bytes={have}-"} | ({"If-Range": began} if began else {})
        with requests.get(address, stream=True, timeout=TIMEOUT, headers=headers) as response:
            if response.status_code == 416:  # all of it had come already, or it is another file now
                self._forget() if not self._is_whole(response, have) else None
                if have and self._part.is_file():
                    return self._deliver(output)
                response.raise_for_status()
            response.raise_for_status()
            goes_on = response.status_code == 206
            write_json(
                self._version, {"version": response.headers.get("ETag") or response.headers.get("Last-Modified")}
            )
            total = int(response.headers.get("Content-Length", 0)) + (have if goes_on else 0)
            with (
                self._part.open("ab" if goes_on else "wb") as stream,
                tqdm(total=total or None, initial=have if goes_on else 0, unit="B", unit_scale=True,
                     desc=Path(address).name[:40]) as progress,
            ):  # fmt: skip
                for chunk in response.iter_content(_CHUNK):
                    stream.write(chunk)
                    progress.update(len(chunk))
        self._deliver(output)

    def _is_whole(self, response: Any, have: int) -> bool:
        return response.headers.get("Content-Range", "").endswith(f"/{have}")

    def _deliver(self, output: str) -> None:
        os.replace(self._part, output)  # pooch checks its hash now
        self._version.unlink(missing_ok=True)

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)


# --- the Hugging Face Hub ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub_errors(repository: str, kind: str, instead: str, *, upload: bool = False) -> Iterator[None]:
    """Turn what can go wrong with the Hub into one line that says what to do.

    ``instead`` follows "check the network, ".
    """
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    place = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{repository} is gated: accept its licence at {place}, then set HF_TOKEN in the environment"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repository}: the Hub does not have this revision; see {place}/commits") from None
    except RepositoryNotFoundError:
        hidden = "HF_TOKEN may not write there" if upload else "it is private and HF_TOKEN is not set"
        raise UserError(f"{repository}: no such repository on the Hub, or {hidden}") from None
    except (HTTPError, OSError) as error:  # of the network, of the Hub, or of its cache
        refused = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if isinstance(error, OSError) and refused and error.filename:
            raise UserError(
                f"{repository}: {error.filename} cannot be written to ({error.strerror}); set HF_HOME to another folder"
            ) from None
        what = f"cannot {'upload' if upload else 'download'} ({type(error).__name__})"
        raise UserError(f"{repository}: {what}; check the network, {instead}") from None


def download_dataset(repository: str, revision: str | None, patterns: list[str], folder: Path) -> str:
    """Download files of a dataset repository into ``folder``; returns the commit that they are of.

    huggingface_hub verifies each file and continues one that stopped.
    """
    from huggingface_hub import HfApi, snapshot_download

    elsewhere = "or download it elsewhere and give its folder, by the variable that `polydetox data` names"
    with hub_errors(repository, "dataset", elsewhere):
        commit = revision or str(HfApi().dataset_info(repository).sha)
        snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=patterns, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the Hub client's own notes
    return commit


# --- Google Drive and Kaggle, through their own clients ---------------------------------------------------------


def download_drive(folder_id: str, name: str, target: Path) -> None:
    """Download one file of a public Google Drive folder with gdown, which is optional."""
    try:
        import gdown
    except ImportError:
        raise UserError(
            "Google Drive needs gdown: pip install 'polydetox[data]'; or download "
            f"{name} from https://drive.google.com/drive/folders/{folder_id} in a browser"
        ) from None
    by_hand = f"download {name} from https://drive.google.com/drive/folders/{folder_id} in a browser"
    try:
        found = [file for file in gdown.download_folder(id=folder_id, skip_download=True, use_cookies=False, quiet=True)
                 if Path(file.path).name == name]  # fmt: skip
        if not found:
            raise UserError(f"Google Drive: the folder has no {name} any more; see `polydetox data`")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{name}.part")
        done = gdown.download(id=found[0].id, output=str(part), use_cookies=False, resume=True, timeout=TIMEOUT)
    except UserError:
        raise
    except Exception as error:  # gdown raises many kinds, for a changed page of Google's as well
        raise UserError(f"Google Drive: {type(error).__name__}: {str(error)[:120]}; {by_hand}") from None
    if not done or not part.is_file():
        raise UserError(f"Google Drive gave nothing; {by_hand}")
    os.replace(part, target)


def download_kaggle(competition: str, name: str, target: Path) -> None:
    """Download one file of a Kaggle competition with Kaggle's client, which is optional and needs an account."""
    page = f"https://www.kaggle.com/c/{competition}"
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi
    except ImportError:
        raise UserError(
            f"Kaggle needs its client: pip install 'polydetox[data]'; or download {name} from {page}"
        ) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        client = KaggleApi()
        client.authenticate()
        client.competition_download_file(competition, name, path=str(target.parent), quiet=True)
    except (Exception, SystemExit) as error:  # the client exits where it finds no key
        raise UserError(
            f"Kaggle: {type(error).__name__}: set KAGGLE_API_TOKEN (or KAGGLE_USERNAME and KAGGLE_KEY) in the "
            f"environment, and accept the rules of the competition at {page}"
        ) from None
    # The client may wrap the file into an archive of its own.
    found = [path for path in (target, target.with_name(f"{name}.zip")) if path.is_file()]
    if not found:
        raise UserError(f"Kaggle gave no {name}; download it from {page}")
    if found[0] != target:
        os.replace(found[0], target)
