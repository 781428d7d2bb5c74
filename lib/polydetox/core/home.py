"""Another place for what packages keep in the home folder, where that is ``/``, nothing, or read-only."""

from __future__ import annotations

import getpass
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from polydetox.core import paths
from polydetox.core.errors import UserError

# Variables that name a folder, with what they mean where they are not set (None: something below another of these).
_FOLDERS = {
    "XDG_CACHE_HOME": "~/.cache",
    "XDG_CONFIG_HOME": "~/.config",
    "XDG_DATA_HOME": "~/.local/share",
    "JUPYTER_CONFIG_DIR": "~/.jupyter",
    "IPYTHONDIR": "~/.ipython",
    "JUPYTER_DATA_DIR": None,
    "JUPYTER_RUNTIME_DIR": None,
    "MPLCONFIGDIR": None,
}


def provide() -> None:
    """Put each of these folders that cannot be written to below the runs; the Hub's downloads stay at home."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a number without a name, which Snakemake wants to know
        os.environ["LOGNAME"] = f"user-{os.getuid()}"
    unusable = [name for name, usual in _FOLDERS.items() if not usable(os.environ.get(name) or usual)]
    if not unusable:
        return
    downloads = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    if Path(os.path.expanduser(downloads)).is_dir():
        os.environ.setdefault("HF_HOME", os.path.expanduser(downloads))
    place = _place()
    if not os.path.isabs(os.path.expanduser("~")):  # no home at all
        os.environ["HOME"] = str(place)
    os.environ.update({name: str(place / name.lower()) for name in unusable})


def usable(folder: str | Path | None) -> bool:
    """Whether a folder can be written to, or made; one that is not named can."""
    if folder is None:
        return True
    path = Path(os.path.expanduser(folder))
    if not path.is_absolute():  # not in the home of anyone, since there is none
        return False
    while not os.path.lexists(path):
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _place() -> Path:
    """A folder below the runs, else a new one in the temporary folder."""
    with suppress(UserError):  # not in a checkout
        if usable(paths.runs()):
            return paths.runs() / "cache" / "home"
    try:
        if not usable(tempfile.gettempdir()):
            raise PermissionError(tempfile.gettempdir())
        return Path(tempfile.mkdtemp(prefix="polydetox-"))
    except OSError as error:
        raise UserError(f"neither the home folder nor another can be written to ({error}); set HOME to one") from None
