"""Downloads that are verified: files and Hub repositories."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
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


@contextlib.contextmanager
def hub_errors(repository: str, kind: str, instead: str, *, upload: bool = False) -> Iterator[None]:
    """What can go wrong with the Hub as one line that says what to do: "check the network, ``instead``"."""
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
    """Download files of a dataset repository into ``folder``, verified; returns the commit that they are of."""
    from huggingface_hub import HfApi, snapshot_download

    elsewhere = "or download it elsewhere and give its folder, by the variable that `polydetox data` names"
    with hub_errors(repository, "dataset", elsewhere):
        commit = revision or str(HfApi().dataset_info(repository).sha)
        snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=patterns, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the Hub client's own notes
    return commit


def dataset_files(repository: str, commit: str, pattern: str) -> list[Path]:
    """The files of a dataset repository that match a pattern, in the Hub's cache, where those of a commit stay."""
    from huggingface_hub import snapshot_download

    with hub_errors(repository, "dataset", "or download it elsewhere and name the file"):
        folder = Path(snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=pattern))
    files = [file for file in sorted(folder.rglob("*")) if fnmatch.fnmatch(str(file.relative_to(folder)), pattern)]
    if not files:
        raise UserError(f"{repository}: no file {pattern} in this data set; see "
                        f"https://huggingface.co/datasets/{repository}/tree/{commit}")  # fmt: skip
    return files
