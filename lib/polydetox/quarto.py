"""Quarto: which command is used, and getting it from PyPI where there is none.

``python -m polydetox.quarto`` tries the package ``quarto-cli`` once; what became of that is remembered in the
environment, so that a machine without a way to the download is not asked again at every run. ``--again`` asks again.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    ways = "`make quarto` gets it from PyPI, conda from conda-forge, and https://quarto.org has it for every system"
    try:
        return f"{_record().read_text('utf-8').splitlines()[0]}; {ways}"
    except (OSError, IndexError):
        return f"it is not installed; {ways}"


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
        with _plainly_named(book) as folder, open(log, "w", encoding="utf-8") as stream:
            status = subprocess.run(
                [quarto, "render", str(folder), "--to", to],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip
    except OSError as error:
        raise UserError(f"{quarto} does not start: {error.strerror}") from None
    if status:
        text = COLOURS.sub("", log.read_text("utf-8", errors="replace"))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line.upper()] or lines[-1:] or ["no message"]
        raise UserError(f"status {status}: {errors[0]}")
    return book / "_site"


@contextmanager
def _plainly_named(book: Path) -> Iterator[Path]:
    """The folder, or a link to it where Quarto takes its name for a pattern or, for a backslash, loses references."""
    if not re.search(r"[\[\]\\]", str(book)):
        yield book
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "book"
        link.symlink_to(book.resolve())
        yield link


def install(again: bool = False) -> str | None:
    """Try ``quarto-cli`` unless there is a Quarto, none is wanted, or this version was tried; returns what to say."""
    record = _record()
    if "QUARTO" in os.environ or find_quarto():
        return None
    if not again and record.is_file() and f"quarto-cli {VERSION} " in record.read_text("utf-8"):
        return None
    print(f"Trying to get Quarto from PyPI (quarto-cli {VERSION}, which downloads it) ...", end=" ", flush=True)
    reason, output = _pip()
    if not reason:
        record.unlink(missing_ok=True)
        return "done. A report that is there already is rendered again by `polydetox render`."
    said = f"quarto-cli {VERSION} could not be installed on {time.strftime('%Y-%m-%d')} ({reason})\n\n{output}"
    try:
        record.write_text(said, "utf-8")
    except OSError as error:
        reason += f"; this cannot be noted: {error.strerror}"
    return f"failed: {reason}. The report will be a preview; `make quarto` tries again."


def _beside() -> str:
    """Where this environment's commands are."""
    return str(Path(sys.executable).parent)


def _record() -> Path:
    return Path(sys.prefix) / "quarto-tried.txt"


def _command() -> list[str]:
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1"]
    # What the package asks for is the kernel and clients of notebooks that Quarto executes; here it executes none.
    alone = ["--no-deps", "--no-build-isolation", f"quarto-cli=={VERSION}"]
    return [sys.executable, "-m", "pip", "install", *quiet, *alone]


def _pip() -> tuple[str, str]:
    """Why pip could not install it, or nothing, and what it printed."""
    process = subprocess.Popen(_command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # pip and the build that it started
        return f"not done after {SECONDS} s", process.communicate()[0]
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()] or ["pip said nothing"]
        named = [line for word in ("Error downloading", "ERROR") for line in lines if word in line]
        return (named or lines)[0], output
    found = find_quarto()
    starts = found and not subprocess.run([found, "--version"], capture_output=True).returncode
    return "" if starts else "it was installed, but does not start", output


if __name__ == "__main__":
    asked = "--again" in sys.argv[1:]
    said = install(again=asked) or (f"Quarto: {find_quarto() or why_none()}" if asked else "")
    print(said, end="\n" if said else "")
