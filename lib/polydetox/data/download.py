"""Downloads that are verified: files, Hub repositories, Google Drive, Kaggle."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from polydetox.core.errors import UserError

TIMEOUT = 30.0  # seconds to wait for a server to answer, and between two of its bytes
TRIES = 3


def download(address: str, target: Path, sha256: str | None) -> None:
    """Download one file, unless it is there with the right hash; nothing stands at ``target`` before it is verified."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    files = pooch.create(target.parent, "", registry={target.name: sha256}, urls={target.name: address},
                         retry_if_failed=TRIES - 1)  # fmt: skip
    try:
        files.fetch(target.name, downloader=pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT))
    except requests.HTTPError as error:
        status = error.response.status_code  # type: ignore[union-attr]
        raise UserError(f"{address}: the server says {status}; try again later, or see `polydetox data`") from None
    except OSError as error:  # of the network, which are requests' own, or of the disk
        reason = error.strerror or type(error).__name__
        raise UserError(f"{address}: cannot be downloaded ({reason}); check the network and try again") from None
    except ValueError:
        raise UserError(
            f"{address}: what came has another sha256 than {sha256}; the file has changed, or was changed on the way: "
            "nothing of it is kept"
        ) from None


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
        return
    except GatedRepoError:
        reason = f"is gated: accept its licence at {place}, then set HF_TOKEN in the environment"
    except RevisionNotFoundError:
        reason = f"the Hub does not have this revision; see {place}/commits"
    except RepositoryNotFoundError:
        hidden = "HF_TOKEN may not write there" if upload else "it is private and HF_TOKEN is not set"
        reason = f"no such repository on the Hub, or {hidden}"
    except (HTTPError, OSError) as error:  # of the network, of the Hub, or of its cache
        refused = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if isinstance(error, OSError) and refused and error.filename:
            reason = f"{error.filename} cannot be written to ({error.strerror}); set HF_HOME to another folder"
        else:
            what = f"cannot {'upload' if upload else 'download'} ({type(error).__name__})"
            reason = f"{what}; check the network, {instead}"
    raise UserError(f"{repository}: {reason}")


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


# --- Google Drive and Kaggle, through their own clients, which are optional -------------------------------------


def download_drive(folder_id: str, name: str, target: Path) -> None:
    """Download one file of a public Google Drive folder with gdown."""
    by_hand = f"download {name} from https://drive.google.com/drive/folders/{folder_id} in a browser"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{name}.part")
    try:
        import gdown

        found = [file for file in gdown.download_folder(id=folder_id, skip_download=True, use_cookies=False, quiet=True)
                 if Path(file.path).name == name]  # fmt: skip
        if found:
            gdown.download(id=found[0].id, output=str(part), use_cookies=False, resume=True, timeout=TIMEOUT)
    except ImportError:
        raise UserError(f"Google Drive needs gdown: pip install 'polydetox[data]'; or {by_hand}") from None
    except Exception as error:  # gdown raises many kinds, for a changed page of Google's as well
        raise UserError(f"Google Drive: {type(error).__name__}: {str(error)[:120]}; {by_hand}") from None
    if not found:
        raise UserError(f"Google Drive: the folder has no {name} any more; see `polydetox data`")
    if not part.is_file():
        raise UserError(f"Google Drive gave nothing; {by_hand}")
    os.replace(part, target)


def download_kaggle(competition: str, name: str, target: Path) -> None:
    """Download one file of a Kaggle competition with Kaggle's client, which needs an account."""
    page = f"https://www.kaggle.com/c/{competition}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        from kaggle.api.kaggle_api_extended import KaggleApi

        client = KaggleApi()
        client.authenticate()
        client.competition_download_file(competition, name, path=str(target.parent), quiet=True)
    except ImportError:
        raise UserError(
            f"Kaggle needs its client: pip install 'polydetox[data]'; or download {name} from {page}"
        ) from None
    except (Exception, SystemExit) as error:  # the client exits where it finds no key
        raise UserError(
            f"Kaggle: {type(error).__name__}: set KAGGLE_API_TOKEN (or KAGGLE_USERNAME and KAGGLE_KEY) in the "
            f"environment, and accept the rules of the competition at {page}"
        ) from None
    wrapped = target.with_name(f"{name}.zip")  # the client may wrap the file into an archive of its own
    if not target.is_file() and not wrapped.is_file():
        raise UserError(f"Kaggle gave no {name}; download it from {page}")
    if not target.is_file():
        os.replace(wrapped, target)
