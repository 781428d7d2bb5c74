"""Executed notebooks, cleaned for the report.

Papermill leaves times, paths and its own cells in what it executes, and Quarto would print them.
"""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import yaml

from polydetox.core import paths
from polydetox.core.errors import UserError

PARAMETER_TAGS = frozenset({"parameters", "injected-parameters"})
REMOVED = "remove-cell"

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SVG_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_SVG_PROLOGUE = re.compile(r"^\s*<\?xml.*?\?>\s*(?:<!DOCTYPE.*?>)?\s*", re.DOTALL)

# Where absolute paths of a machine begin; a URL or a fraction does not look like this.
_MACHINE_PATH = re.compile(
    r"(?<![\w/.:<])/(?:home|root|Users|tmp|var|opt|usr|mnt|media|private|scratch|srv|data|work|workspace|project|nfs)"
    r"(?:/[^\s/'\"<>,;:()\[\]]+)+/?"
)


def read_notebook(file: Path) -> nbformat.NotebookNode:
    """Read a notebook; a missing or broken one is a ``UserError``."""
    try:
        return nbformat.read(file, as_version=4)
    except FileNotFoundError:
        raise UserError(f"{paths.relative(file)}: no such notebook; run its stage again") from None
    except Exception as error:  # nbformat raises many kinds; all mean that the file is damaged
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise UserError(f"{paths.relative(file)}: not a notebook ({reason}); run its stage again") from None


def check_executed(notebook: nbformat.NotebookNode, file: Path) -> None:
    """Refuse a notebook that was not executed to its end: a renderer would show it without its results."""
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            raise UserError(f"{paths.relative(file)}: cell {number} was not executed; run its stage again")
        for output in cell.outputs:
            if output.output_type == "error":
                raise UserError(f"{paths.relative(file)}: cell {number} ended with {output.ename}; run its stage again")


def cell_options(source: str) -> tuple[dict[str, Any], str]:
    """The ``#|`` options at the top of a code cell, and the code without them."""
    lines = source.split("\n")
    count = 0
    while count < len(lines) and lines[count].startswith("#|"):
        count += 1
    options = yaml.safe_load("\n".join(line[2:].strip() for line in lines[:count])) or {}
    return (options if isinstance(options, dict) else {}), "\n".join(lines[count:]).strip("\n")


def labels(notebook: nbformat.NotebookNode) -> list[str]:
    """The labels of a notebook's code cells, in order."""
    found = (cell_options(cell.source)[0].get("label") for cell in notebook.cells if cell.cell_type == "code")
    return [str(label) for label in found if label]


def clean(notebook: nbformat.NotebookNode, file: Path) -> nbformat.NotebookNode:
    """A copy of an executed notebook that is fit for the report.

    Parameter cells get ``remove-cell``; metadata, progress bars, terminal colours and absolute paths go. ``file`` is
    named in errors.
    """
    check_executed(notebook, file)
    cleaned = copy.deepcopy(notebook)
    cleaned.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })  # fmt: skip
    for cell in cleaned.cells:
        tags = list(cell.metadata.get("tags", []))
        if PARAMETER_TAGS & set(tags) and REMOVED not in tags:
            tags.append(REMOVED)
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.source = without_machine_paths(cell.source)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_clean_output, cell.outputs) if output is not None]
    return cleaned


# --- outputs ----------------------------------------------------------------------------------------------------


def _clean_output(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """One output without what belongs to the machine; None where nothing is left to show."""
    if output.output_type == "stream":
        # What goes to stderr are warnings and progress bars, which the notebook in runs/ keeps.
        if output.name == "stderr":
            return None
        output.text = without_machine_paths(_ANSI.sub("", last_line_states(output.text)))
        return output if output.text.strip() else None
    if "data" not in output:
        return output
    if "<progress" in output.data.get("text/html", ""):
        return None  # a trainer's progress bar
    output.metadata = nbformat.from_dict({})
    data = {}
    for mime, value in output.data.items():
        if mime.startswith("application/"):
            continue  # widgets and the like, which need scripts from elsewhere
        if mime == "image/svg+xml":
            value = _SVG_METADATA.sub("", _SVG_PROLOGUE.sub("", value))
        elif mime.startswith("text/"):
            value = without_machine_paths(value)
        data[mime] = value
    output.data = nbformat.from_dict(data)
    return output if data else None


def last_line_states(text: str) -> str:
    """What a terminal shows in the end: of each line that was written over, its last state."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def without_machine_paths(text: str) -> str:
    """A text without absolute paths: those of the checkout become relative, others keep their last part only."""
    for prefix in _prefixes():
        inside = re.compile(rf"(?<![\w./-]){re.escape(prefix)}(/|(?![\w.-]))")
        text = inside.sub(lambda match: "" if match[1] else ".", text)
    return _MACHINE_PATH.sub(lambda match: match[0].rstrip("/").rsplit("/", 1)[-1], text)


def _prefixes() -> list[str]:
    """Folders whose names must not appear, the longest first; a bare ``/`` is no folder to hide."""
    folders = {str(paths.root()), str(paths.runs().parent), str(Path.cwd()), sys.prefix, str(Path.home())}
    return sorted((folder for folder in folders if len(folder) > 1), key=len, reverse=True)
