"""Quarto: which command is used, and getting it from PyPI where there is none.

``python -m polydetox.quarto`` tries the package ``quarto-cli`` once; what pip said is kept in the environment, so that
a machine without a way to the download is not asked again at every run. ``--again`` asks again.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from polydetox.core import paths
from polydetox.core.errors import UserError

VERSION = "1.9.38"
SECONDS = 300  # for about 130 MB
ERROR_FILE = "quarto-error.txt"  # beside the pages of a preview that stands in for Quarto's site
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def find_quarto() -> str | None:
    """The Quarto command to use: ``$QUARTO``, else ``quarto`` of this environment or on the path, else None.

    ``QUARTO=`` (empty) says that there is none; a ``UserError`` where it names a command that is not there.
    """
    named = os.environ.get("QUARTO")
    if named is None:
        return shutil.which("quarto", path=_beside()) or shutil.which("quarto")
    if named and shutil.which(named) is None:
        raise UserError(f"QUARTO={named}: no such command; correct it, or unset it for a preview")
    return named or None


def why_none() -> str:
    """Why there is no Quarto, and what gets one."""
    if os.environ.get("QUARTO") == "":
        return "QUARTO is set to nothing, which asks for none; unset it, or name a command with it"
    tried = f"quarto-cli {VERSION} could not be installed (see `{paths.relative(_record())}`)"
    return (f"{tried if _record().is_file() else 'it is not installed'}; `make quarto` gets it from PyPI, conda from "
            "conda-forge, and https://quarto.org has it for every system")  # fmt: skip


def failure_note(profile: str) -> str | None:
    """One line where the site of a profile is a preview because Quarto failed, else None."""
    file = paths.site(profile) / ERROR_FILE
    if not file.is_file():
        return None
    line = file.read_text("utf-8").splitlines()[0]
    return f"The report is a preview, since Quarto failed: {line} (see {paths.relative(file)})"


def run_quarto(quarto: str, book: Path, to: str, log: Path) -> Path:
    """Render a book to one format; returns the folder of what it made. What Quarto says goes to ``log``.

    A ``UserError`` with its first error where it does not start or fails.
    """
    try:
        with tempfile.TemporaryDirectory() as place, open(log, "w", encoding="utf-8") as stream:
            folder = book
            if re.search(r"[\[\]\\]", str(book)):  # which it takes for a pattern or, for a backslash, loses references
                folder = Path(place) / "book"
                folder.symlink_to(book.resolve())
            command = [quarto, "render", str(folder), "--to", to]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
    except OSError as error:
        raise UserError(f"{quarto} does not start: {error.strerror}") from None
    if done.returncode:
        text = COLOURS.sub("", log.read_text("utf-8", errors="replace"))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line.upper()] or lines[-1:] or ["no message"]
        raise UserError(f"status {done.returncode}: {errors[0]}")
    return book / "_site"


def version(quarto: str) -> str:
    """What a Quarto says of its version; empty where it does not start."""
    with suppress(OSError):
        return subprocess.run([quarto, "--version"], capture_output=True, text=True).stdout.strip()
    return ""


def install(again: bool = False) -> str | None:
    """Try ``quarto-cli`` unless there is a Quarto, none is wanted, or this version was tried; returns what to say."""
    if "QUARTO" in os.environ or find_quarto() or (_record().is_file() and not again):
        return None
    print(f"Trying to get Quarto from PyPI (quarto-cli {VERSION}, which downloads it) ...", end=" ", flush=True)
    with open(_record(), "w", encoding="utf-8") as log:
        process = subprocess.Popen(_command(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   start_new_session=True)  # fmt: skip
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # pip and the build that it started
            log.write(f"\nnot done after {SECONDS} s\n")
    if version(find_quarto() or ""):
        _record().unlink()
        return "done. A report that is there already is rendered again by `polydetox render`."
    return f"failed, see {_record()}. The report will be a preview; `make quarto` tries again."


def _beside() -> str:
    """Where this environment's commands are."""
    return str(Path(sys.executable).parent)


def _record() -> Path:
    return Path(sys.prefix) / f"quarto-cli-{VERSION}.log"


def _command() -> list[str]:
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1", "--no-build-isolation"]
    # What the package asks for is the kernel and clients of notebooks that Quarto executes; here it executes none.
    return [sys.executable, "-m", "pip", "install", *options, "--no-deps", f"quarto-cli=={VERSION}"]


if __name__ == "__main__":
    asked = "--again" in sys.argv[1:]
    if said := install(again=asked) or (f"Quarto: {find_quarto() or why_none()}" if asked else ""):
        print(said)
