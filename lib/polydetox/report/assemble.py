"""The Quarto book of one profile, assembled from ``book/``, ``_quarto.yml`` and the executed notebooks.

The result, ``runs/<profile>/book/``, is a Quarto project of its own: figures and tables are embedded from the
summary notebooks, which are no chapters; the notebooks of every stage are appendices; numbers and sentences that depend
on the results come from the ``variables.json`` of the summary notebooks. Quarto only warns of a missing reference,
variable or output; here each is an error that names the file.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import yaml

from polydetox.core import paths
from polydetox.core.artifacts import atomic_folder, finished, read_json
from polydetox.core.errors import UserError, nearest
from polydetox.core.yaml_files import read_yaml
from polydetox.report.appendices import html_block, write_appendices
from polydetox.report.clean import cell_options, clean, labels, read_notebook
from polydetox.results.collect import Results
from polydetox.workflow import record_file

CONFIGURATION = "_quarto.yml"
VARIABLES = "_variables.yml"

EMBED = re.compile(r"^\{\{<\s*embed\s+(\S+?\.ipynb)#([\w-]+)\s*>\}\}[ \t]*$", re.MULTILINE)
VARIABLE = re.compile(r"\{\{<\s*var\s+([\w.-]+)\s*>\}\}")
CROSS_REFERENCE = re.compile(r"(?<![\w@/.])@((?:fig|tbl|sec|eq)-[\w-]+)")
CITATION = re.compile(r"(?<![\w@/.])-?@(?!(?:fig|tbl|sec|eq)-)([A-Za-z][\w:-]*\w)")
_IDENTIFIER = re.compile(r"\{[^{}]*#((?:fig|tbl|sec|eq)-[\w-]+)[^{}]*\}")
_BIBLIOGRAPHY_KEY = re.compile(r"^@\w+\{\s*([^,\s]+)\s*,", re.MULTILINE)
_CODE = re.compile(r"^(`{3,}).*?^\1`*[ \t]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def assemble(profile: str) -> Path:
    """Assemble the book of a profile from what has been run so far; returns its folder.

    Sections and appendices whose artefacts are not there say that they were not run.
    """
    results = Results(record_file(profile))
    with atomic_folder(paths.book(profile)) as folder:
        sources = paths.root() / "book"
        if not (sources / "index.qmd").is_file():
            raise UserError(f"{paths.relative(sources / 'index.qmd')}: no such file; restore book/ from the repository")
        shutil.copytree(sources, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("reference", "*.png", ".*"))
        summaries = _write_summaries(results, folder)
        appendices = write_appendices(results, folder)
        (folder / VARIABLES).write_text(_dump(read_variables(results, folder)), "utf-8")
        for page in sorted(folder.rglob("*.qmd")):
            page.write_text(resolve_missing(page.read_text("utf-8"), page, summaries), "utf-8")
        configuration = read_yaml(paths.root() / CONFIGURATION)
        configuration["book"] |= {"subtitle": results.profile.title, "appendices": appendices}
        (folder / CONFIGURATION).write_text(_dump(configuration), "utf-8")
        check(folder)
    return paths.book(profile)


def _dump(content: Any) -> str:
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=110)


# --- summary notebooks ------------------------------------------------------------------------------------------


def _write_summaries(results: Results, folder: Path) -> dict[str, nbformat.NotebookNode]:
    """Write the summary notebooks that were run, cleaned, and return them by their name in the book."""
    written = {}
    for section, place in results.record["sections"].items():
        source = paths.given(place)
        if finished(source):
            name = f"summary/{section}.ipynb"
            notebook = clean(read_notebook(source / "notebook.ipynb"), source / "notebook.ipynb")
            written[name] = html_as_markdown(notebook)
            _write(folder / name, written[name])
    return written


def read_variables(results: Results, folder: Path) -> dict[str, str]:
    """What the summary notebooks wrote for the pages in ``folder``, by the name of the variable.

    A variable of a notebook that was not run is ``Not run.``: its name stands in the notebook's source.
    """
    found: dict[str, str] = {}
    writers: dict[str, str] = {}
    sources = {}
    for notebook in sorted(paths.notebooks().rglob("summary_*.ipynb")):
        name, place = paths.relative(notebook), results.record["sections"].get(notebook.stem.removeprefix("summary_"))
        if place is None or not finished(summary := paths.given(place)):
            sources[name] = "\n".join(cell.source for cell in read_notebook(notebook).cells)
            continue
        file = summary / "variables.json"
        written = read_json(file) if file.is_file() else {}
        for variable in written:
            if variable in writers:
                raise UserError(f"{name}: variable {variable!r} is written by {writers[variable]} already; rename one")
            writers[variable] = name
        found |= written
    used = {name for page in folder.rglob("*.qmd") for name in VARIABLE.findall(page_prose(page))}
    for variable in sorted(used - set(found)):
        if any(f'"{variable}"' in source for source in sources.values()):
            found[variable] = "Not run."
    return found


def html_as_markdown(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook whose HTML outputs are raw blocks of Markdown.

    Where a notebook has outputs of HTML, Quarto lets the page load require.js and jQuery from a content network.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output.data["text/markdown"] = html_block(output.data.pop("text/html"))
    return notebook


def _write(file: Path, notebook: nbformat.NotebookNode) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, file)


def resolve_missing(text: str, page: Path, summaries: dict[str, nbformat.NotebookNode]) -> str:
    """The text of a page with the embeds of notebooks that were not run replaced by a note that says so.

    References to what such an embed would have held say the same. An embed that a notebook which was run cannot
    fill is a ``UserError``.
    """
    missing = set()

    def replace(match: re.Match[str]) -> str:
        notebook, label = match[1], match[2]
        if notebook in summaries:
            _check_embed(summaries[notebook], notebook, label, page)
            return match[0]
        missing.add(label)
        source = f"summary_{Path(notebook).stem}.ipynb"
        return f'::: {{.callout-note title="Not run"}}\nThis part comes from `{source}`, which was not run.\n:::'

    text = EMBED.sub(replace, text)
    return CROSS_REFERENCE.sub(lambda match: "(not run)" if match[1] in missing else match[0], text)


def _check_embed(notebook: nbformat.NotebookNode, name: str, label: str, page: Path) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell_options(cell.source)[0].get("label") == label:
            if not cell.outputs:
                raise UserError(f"book/{page.name}: embeds {name}#{label}, a cell without output; mend the notebook")
            return
    raise UserError(
        f"book/{page.name}: embeds {name}#{label}, but the notebook has no such label{nearest(label, labels(notebook))}"
    )


# --- checks that Quarto leaves to the reader --------------------------------------------------------------------


def check(folder: Path) -> None:
    """Refuse a book in which a label is defined twice, or a reference, citation or variable leads nowhere."""
    known = set(read_yaml(folder / VARIABLES))
    bibliography = folder / "references.bib"
    cited = set(_BIBLIOGRAPHY_KEY.findall(bibliography.read_text("utf-8"))) if bibliography.is_file() else set()
    targets: dict[str, str] = {}
    pages = {page.relative_to(folder).as_posix(): page_prose(page) for page in book_pages(folder)}
    for name, prose in pages.items():
        for label in page_labels(prose):
            if label in targets:
                raise UserError(f"{name}: label {label!r} is defined in {targets[label]} already; rename one")
            targets[label] = name
    for name, prose in pages.items():
        for pattern, valid, what in (
            (VARIABLE, known, "variable"),
            (CROSS_REFERENCE, set(targets), "reference"),
            (CITATION, cited, "citation"),
        ):
            for match in pattern.finditer(prose):
                if match[1] not in valid:
                    raise UserError(f"{name}: {what} {match[1]!r} leads nowhere{nearest(match[1], sorted(valid))}")


def book_pages(folder: Path) -> list[Path]:
    """The pages of an assembled book, in its order: chapters, then appendices."""
    book = read_yaml(folder / CONFIGURATION)["book"]

    def files(items: list[Any]) -> Iterator[str]:
        for item in items:
            if isinstance(item, str):
                yield item
            else:
                if str(item["part"]).endswith(".qmd"):
                    yield item["part"]
                yield from item.get("chapters", [])

    return [folder / name for name in files([*book["chapters"], *book.get("appendices", [])])]


def page_prose(page: Path) -> str:
    """The Markdown of a page without its code."""
    return _CODE.sub("", page.read_text("utf-8"))


def page_labels(prose: str) -> list[str]:
    """Everything on a page that a reference can lead to: identifiers in its prose, and embeds."""
    return [*_IDENTIFIER.findall(EMBED.sub("", prose)), *(label for _, label in EMBED.findall(prose))]
