"""The assembled book as pages of blocks, numbered, with what references can lead to: what the preview renders."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import yaml

from polydetox.core.errors import UserError
from polydetox.core.yaml_files import read_yaml
from polydetox.report.assemble import CONFIGURATION, EMBED, VARIABLES, book_pages
from polydetox.report.citations import Bibliography
from polydetox.report.clean import cell_options, read_notebook

KINDS = {"fig": "Figure", "tbl": "Table", "eq": "Equation", "sec": "Section"}

_FENCE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1`*[ \t]*$", re.MULTILINE | re.DOTALL)
_FLOAT = re.compile(
    r"^(:{3,}) \{#((?:fig|tbl)-[\w-]+)\}[ \t]*\n\n(.*?)\n\n([^\n]+)\n\n\1[ \t]*$", re.MULTILINE | re.DOTALL
)
_EQUATION = re.compile(r"^\$\$(.+?)\$\$[ \t]*(?:\{#(eq-[\w-]+)\})?[ \t]*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*(?:\{([^{}]*)\})?[ \t]*$", re.MULTILINE)
REFS = re.compile(r"^:::\s*\{#refs\}\s*^:::[ \t]*$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---[ \t]*\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Prose:
    """Markdown."""

    text: str


@dataclass(frozen=True)
class Verbatim:
    """A code block, which nothing is replaced in."""

    text: str


@dataclass(frozen=True)
class Equation:
    """A displayed equation; it has a number where it has a label."""

    latex: str
    label: str | None


@dataclass(frozen=True)
class Float:
    """A figure or table that has a number and a caption."""

    label: str
    caption: str
    blocks: list[Block]


@dataclass(frozen=True)
class Cell:
    """The outputs of a notebook's cell, embedded."""

    label: str
    options: dict[str, Any]
    outputs: list[nbformat.NotebookNode]


Block = Prose | Verbatim | Equation | Float | Cell


@dataclass
class Page:
    """One page of the book while it is being resolved."""

    source: str  # path in the book, such as `methods.qmd`
    front: dict[str, Any]
    title: str
    label: str | None  # of the page as a section
    numbered: bool
    blocks: list[Block]
    number: int | None = None

    @property
    def file(self) -> str:
        """The Markdown file that smalldocs reads; every page is a .qmd for it."""
        return posixpath.splitext(self.source)[0] + ".qmd"

    def linked(self, page: Page, label: str) -> str:
        """The address of a label on ``page``, from this one."""
        if page is self:
            return f"#{label}"
        return f"{posixpath.relpath(page.file, posixpath.dirname(self.file) or '.')}#{label}"


@dataclass
class Target:
    """What a reference leads to."""

    page: Page
    text: str  # such as `Figure 3.1`


@dataclass
class Book:
    """The pages in order, and what can be referred to."""

    title: str
    subtitle: str
    pages: list[Page]
    variables: dict[str, Any]
    bibliography: Bibliography
    note: str = ""  # why this is a preview
    targets: dict[str, Target] = field(default_factory=dict)


def read_book(folder: Path) -> Book:
    """Read an assembled book, number its pages, and note what references can lead to."""
    pages = [_read_page(folder, page) for page in book_pages(folder)]
    described = read_yaml(folder / CONFIGURATION)["book"]
    book = Book(
        described["title"],
        described.get("subtitle", ""),
        pages,
        read_yaml(folder / VARIABLES),
        Bibliography(folder / "references.bib"),
    )
    number = 0
    for page in pages:
        if page.numbered:
            number += 1
            page.number = number
        _note_targets(book, page)
    return book


def _read_page(folder: Path, file: Path) -> Page:
    source = file.relative_to(folder).as_posix()
    front, text = _front_matter(file.read_text("utf-8"))
    blocks = read_blocks(text, folder, file)
    return _with_title(source, front, blocks)


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    match = _FRONT_MATTER.match(text)
    return (yaml.safe_load(match[1]) or {}, text[match.end() :]) if match else ({}, text)


def _with_title(source: str, front: dict[str, Any], blocks: list[Block]) -> Page:
    """The page with its level-one heading taken out of the text."""
    for position, block in enumerate(blocks):
        if not isinstance(block, Prose):
            continue
        for match in HEADING.finditer(block.text):
            if match[1] == "#":
                attributes = match[3] or ""
                label = re.search(r"#([\w-]+)", attributes)
                rest = Prose(block.text[: match.start()] + block.text[match.end() :])
                remaining = [*blocks[:position], rest, *blocks[position + 1 :]]
                numbered = ".unnumbered" not in attributes
                return Page(source, front, match[2], label[1] if label else None, numbered, remaining)
    raise UserError(f"{source}: no heading of level one, which is a page's title")


def read_blocks(text: str, folder: Path, file: Path) -> list[Block]:
    """Markdown split into prose, code blocks, equations, figures and tables, and embedded cells."""
    blocks: list[Block] = []
    position = 0
    while position < len(text):
        found = [match for pattern in (_FENCE, _EQUATION, _FLOAT, EMBED) if (match := pattern.search(text, position))]
        first = min(found, key=lambda match: match.start(), default=None)
        if first is None:
            break
        blocks.append(Prose(text[position : first.start()]))
        if first.re is _FENCE:
            blocks.append(Verbatim(first[0]))
        elif first.re is _EQUATION:
            blocks.append(Equation(first[1].strip(), first[2]))
        elif first.re is _FLOAT:
            blocks.append(Float(first[2], first[4], read_blocks(first[3], folder, file)))
        else:
            blocks.append(_embedded(folder, file, first[1], first[2]))
        position = first.end()
    blocks.append(Prose(text[position:]))
    return [block for block in blocks if not isinstance(block, Prose) or block.text.strip()]


def _embedded(folder: Path, file: Path, name: str, label: str) -> Cell:
    for cell in read_notebook(folder / name).cells:
        if cell.cell_type == "code":
            options, _ = cell_options(cell.source)
            if options.get("label") == label:
                return Cell(label, options, cell.outputs)
    raise UserError(f"{file.name}: embeds {name}#{label}, but the notebook has no such label")


def _note_targets(book: Book, page: Page) -> None:
    """Number the figures, tables, equations and sections of a page."""
    prefix = f"{page.number}." if page.number else ""
    counts = dict.fromkeys(KINDS, 0)
    if page.label:
        said = f"Chapter {page.number}" if page.number else page.title
        book.targets[page.label] = Target(page, said)
    for block in page.blocks:
        if isinstance(block, Prose):
            for number, title, label in _sections(block.text, counts):
                if label:
                    named = f"Section {prefix}{number}" if page.number else title
                    book.targets[label] = Target(page, named)
            continue
        label = block.label if isinstance(block, Cell | Float | Equation) else None
        kind = label.split("-")[0] if label else None
        if label and kind in ("fig", "tbl", "eq"):
            counts[kind] += 1
            book.targets[label] = Target(page, f"{KINDS[kind]} {prefix}{counts[kind]}")


def _sections(prose: str, counts: dict[str, int]) -> Iterator[tuple[str, str, str | None]]:
    """The number, title and label of each heading of level two; lower ones have no number."""
    for match in HEADING.finditer(prose):
        attributes = match[3] or ""
        label = re.search(r"#([\w-]+)", attributes)
        if len(match[1]) == 2 and ".unnumbered" not in attributes:
            counts["sec"] += 1
            yield str(counts["sec"]), match[2], label[1] if label else None
        elif label:
            yield str(counts["sec"]), match[2], label[1]
