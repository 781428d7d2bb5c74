"""Executed notebooks: their cells without what papermill and the machine left, and as Markdown for both renderers."""

from __future__ import annotations

import base64
import html
import re
import sys
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import nbformat
import yaml

from polydetox.core import paths
from polydetox.core.errors import UserError

HIDDEN = frozenset({"parameters", "injected-parameters", "remove-cell"})  # tags of cells that no page shows

Picture = Callable[[bytes, str], str]  # keeps an image, given its bytes and suffix, and returns its address

_PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}
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


def read_cells(file: Path) -> list[nbformat.NotebookNode]:
    """The cells of an executed notebook without progress bars, colours and absolute paths."""
    cells = read_notebook(file).cells
    for number, cell in enumerate(cells, 1):
        if cell.cell_type == "code" and cell.source.strip():
            failed = next((output.ename for output in cell.outputs if output.output_type == "error"), None)
            if failed or cell.execution_count is None:
                what = f"ended with {failed}" if failed else "was not executed"
                raise UserError(f"{paths.relative(file)}: cell {number} {what}; run its stage again")
    for cell in cells:
        cell.source = without_machine_paths(cell.source)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_clean_output, cell.outputs) if output is not None]
    return list(cells)


def shown(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Those of some cells that a page may show."""
    return [cell for cell in cells if not HIDDEN & set(cell.metadata.get("tags", []))]


def _clean_output(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """One output without what belongs to the machine; None where nothing is left to show."""
    if output.output_type == "stream":
        # What goes to stderr are warnings and progress bars, which the notebook in runs/ keeps. Of a line that was
        # written over, the last state counts.
        text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in output.text.split("\n"))
        output.text = without_machine_paths(_ANSI.sub("", text))
        return output if output.name != "stderr" and output.text.strip() else None
    if "<progress" in output.data.get("text/html", ""):
        return None  # a trainer's progress bar
    data = {}
    for mime, value in output.data.items():
        if mime == "image/svg+xml":
            data[mime] = _SVG_METADATA.sub("", _SVG_PROLOGUE.sub("", value))
        elif not mime.startswith("application/"):  # widgets and the like, which need scripts from elsewhere
            data[mime] = without_machine_paths(value) if mime.startswith("text/") else value
    output.data = nbformat.from_dict(data)
    return output if data else None


def without_machine_paths(text: str) -> str:
    """A text without absolute paths: those of the checkout become relative, others keep their last part only."""
    folders = {str(paths.root()), str(paths.runs().parent), str(Path.cwd()), sys.prefix, str(Path.home())}
    for prefix in sorted(folders - {"/"}, key=len, reverse=True):
        inside = re.compile(rf"(?<![\w./-]){re.escape(prefix)}(/|(?![\w.-]))")
        text = inside.sub(lambda match: "" if match[1] else ".", text)
    return _MACHINE_PATH.sub(lambda match: match[0].rstrip("/").rsplit("/", 1)[-1], text)


def cell_options(source: str) -> tuple[dict[str, Any], str]:
    """The ``#|`` options at the top of a code cell, and the code without them."""
    lines = source.split("\n")
    count = next((number for number, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    options = yaml.safe_load("\n".join(line[2:].strip() for line in lines[:count]))
    return (options if isinstance(options, dict) else {}), "\n".join(lines[count:]).strip("\n")


def labelled(cells: Iterable[nbformat.NotebookNode]) -> dict[str, nbformat.NotebookNode]:
    """The code cells that have a label, by it."""
    found = {cell_options(cell.source)[0].get("label"): cell for cell in cells if cell.cell_type == "code"}
    return {str(label): cell for label, cell in found.items() if label}


def cell_text(options: dict[str, Any], label: str, outputs: str, code: str = "") -> str:
    """A cell: its code, and its outputs, which are a numbered figure or table where the label is one's."""
    kind = label.split("-")[0]
    if outputs and kind in ("fig", "tbl"):
        outputs = f":::::: {{#{label}}}\n\n{outputs}\n\n{options.get(f'{kind}-cap', '')}\n\n::::::"
    parts = [fenced(code, "{.python .cell-code}") if code else "", outputs]
    return "\n\n".join([":::::::: {.cell}", *filter(None, parts), "::::::::"]) if any(parts) else ""


def pictures(folder: Path, stem: str) -> Picture:
    """Keeps images in numbered files below ``folder``, from which their addresses start."""
    numbers = count(1)

    def keep(content: bytes, suffix: str) -> str:
        file = folder / "figures" / f"{stem}-{next(numbers)}.{suffix}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        return f"figures/{file.name}"

    return keep


def outputs_text(cell: nbformat.NotebookNode, picture: Picture) -> str:
    """All outputs of a cell."""
    options, _ = cell_options(cell.source)
    alternative = str(options.get("fig-alt") or options.get("fig-cap") or "")
    return "\n\n".join(_output_text(output, picture, alternative) for output in cell.outputs)


def _output_text(output: nbformat.NotebookNode, picture: Picture, alternative: str) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        shown = raw(f'<div class="cell-output cell-output-display">{data["text/html"]}</div>')
        if "text/markdown" in data:  # what a format without HTML shows instead
            shown += f'\n\n::: {{.content-hidden when-format="html"}}\n{data["text/markdown"]}\n:::'
        return shown
    for mime, suffix in _PICTURES.items():
        if mime in data:
            content = data[mime].encode() if suffix == "svg" else base64.b64decode(data[mime])
            return f'![]({picture(content, suffix)}){{.figure-img fig-alt="{attribute(alternative)}"}}'
    if "text/markdown" in data:
        return str(data["text/markdown"])
    plain = output.text if output.output_type == "stream" else data.get("text/plain", "")
    return fenced(plain.rstrip(), "{.cell-output}")


def attribute(text: str) -> str:
    """A text that can stand between the quotes of an attribute, in HTML and in Markdown."""
    return html.escape(text.replace("\\", "").replace('"', "'"), quote=False)


def raw(content: str) -> str:
    """HTML that Markdown leaves alone."""
    return fenced(content, "{=html}")


def fenced(content: str, attributes: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", content)), default=0))
    return f"{fence}{attributes}\n{content}\n{fence}"
