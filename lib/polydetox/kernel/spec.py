"""The kernelspec: the file by which Jupyter finds the kernel ``polydetox``."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from polydetox.errors import UserError

NAME = "polydetox"


def location(prefix: str | Path = sys.prefix) -> Path:
    """The kernelspec's folder; by default where the Jupyter of this environment looks."""
    return Path(prefix) / "share" / "jupyter" / "kernels" / NAME


def why_not() -> str:
    """Why kernels are plain ones here, as far as that is known before one is started; empty where they are forked."""
    if not sys.platform.startswith("linux"):
        return f"kernels are forked on Linux only, and are plain ones on {sys.platform}"
    if os.environ.get("POLYDETOX_KERNEL_PLAIN"):
        return "POLYDETOX_KERNEL_PLAIN is set; unset it"
    if importlib.util.find_spec("ipykernel") is None:
        return "ipykernel is not installed"
    from polydetox.kernel import protocol

    try:
        protocol.folder()
    except OSError as error:
        return f"no private folder for its socket ({error}); name another in TMPDIR"
    return ""


def _command() -> list[str]:
    """What Jupyter starts.

    The history stays in memory, as nbclient has it for the kernel ``python3``: notebooks that run side by side would
    wait for each other at the history's file.
    """
    kernel = [sys.executable, "-m", "polydetox.kernel", "launch", "-f", "{connection_file}"]
    return [*kernel, "--HistoryManager.hist_file=:memory:"]


def _content() -> dict[str, Any]:
    """``kernel.json``: ipykernel's own but for the command, so that it claims what the installed ipykernel can do."""
    from ipykernel.kernelspec import get_kernel_dict

    own = get_kernel_dict()
    return own | {
        "argv": _command(),
        "display_name": "Python 3 (polydetox)",
        "metadata": own.get("metadata", {}) | {"ipykernel": metadata.version("ipykernel")},
    }


def ensure_installed(prefix: str | Path = sys.prefix) -> Path:
    """Write the kernelspec unless it is there already; returns its folder.

    Raises ``UserError`` where it cannot be written.
    """
    folder = location(prefix)
    try:
        present = json.loads((folder / "kernel.json").read_text("utf-8"))
        current = present["argv"], present["metadata"]["ipykernel"]
    except (OSError, ValueError, KeyError, TypeError):
        current = None
    return folder if current == (_command(), metadata.version("ipykernel")) else install(prefix)


def install(prefix: str | Path = sys.prefix) -> Path:
    """Write the kernelspec; returns its folder. Raises ``UserError`` where it cannot be written."""
    folder = location(prefix)
    temporary = folder / f".kernel.json.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(_content(), indent=1) + "\n", "utf-8")
        os.replace(temporary, folder / "kernel.json")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the kernelspec ({error.strerror}); "
            "give another folder with --prefix and name its share/jupyter in JUPYTER_PATH"
        ) from None
    return folder


def uninstall(prefix: str | Path = sys.prefix) -> bool:
    """Remove the kernelspec; returns whether there was one."""
    folder = location(prefix)
    present = folder.is_dir()
    shutil.rmtree(folder, ignore_errors=True)
    return present
