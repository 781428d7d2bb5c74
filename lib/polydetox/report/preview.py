"""The preview renderer: the assembled book as a site that opens from a folder, where there is no Quarto.

A pass of our own resolves what Quarto would: variables, numbers, references across chapters, citations, and math as
MathML. From the plain Markdown that results, ``smalldocs`` makes the pages.
"""

from __future__ import annotations

import html
import posixpath
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert as mathml

from polydetox.core.errors import UserError
from polydetox.core.yaml_files import read_yaml
from polydetox.report.assemble import CITATION, CONFIGURATION, VARIABLES, book_pages, write_yaml
from polydetox.report.citations import Bibliography
from polydetox.report.extensions import CROSS_REFERENCE, VARIABLE
from polydetox.report.masking import SEARCH_INDEX
from polydetox.report.notebooks import raw

PREVIEW_NOTE = (
    "This is a preview. It was made without [Quarto](https://quarto.org), by the project's own preview renderer: the "
    "content is the same, the typography is simpler, and there is no PDF."
)
_NO_BREAK = "\N{NO-BREAK SPACE}"
KINDS = {"fig": "Figure", "tbl": "Table", "eq": "Equation"}

_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---[ \t]*\n", re.MULTILINE | re.DOTALL)
# What this pass reads in a page, from left to right; the name of each is the method that writes it.
_TOKEN = re.compile(
    rf"""
    (?P<verbatim>^(?P<ticks>`{{3,}})[^\n]*\n.*?^(?P=ticks)`*[ \t]*$)
    |(?P<equation>^\$\$(?P<formula>.+?)\$\$[ \t]*(?:\{{\#(?P<eq>eq-[\w-]+)\}})?[ \t]*$)
    |(?P<float>^(?P<colons>:{{3,}})[ ]\{{\#(?P<label>(?:fig|tbl)-[\w-]+)\}}\n\n
        (?P<content>.*?)\n\n(?P<caption>[^\n]+)\n\n(?P=colons)[ \t]*$)
    |(?P<refs>^:::\s*\{{\#refs\}}\s*^:::[ \t]*$)
    |(?P<heading>^(?P<marks>\#{{1,6}})[ \t]+(?P<title>[^\n]+?)[ \t]*(?:\{{(?P<attributes>[^{{}}\n]*)\}})?[ \t]*$)
    |(?P<code>(?P<tick>`+)(?!`)(?:(?!\n\n).)+?(?<!`)(?P=tick)(?!`))
    |(?P<math>(?<![\\$\w])\$(?=\S)(?P<inline>[^$\n]*(?:\n[^$\n]+)*?)(?<=\S)\$(?![\w$]))
    |(?P<variable>{VARIABLE.pattern})
    |(?P<reference>{CROSS_REFERENCE.pattern})
    |(?P<citations>\[(?P<cited>[^\[\]]*?{CITATION.pattern}[^\[\]]*)\](?!\())
    |(?P<narrative>{CITATION.pattern})
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)


def build(book_folder: Path, site: Path, note: str) -> None:
    """Render an assembled book into the empty folder ``site``; ``note``, on its first page, says why."""
    from smalldocs.config import BuildError, ConfigError, load
    from smalldocs.site import Site

    book = Book(book_folder, note)
    with tempfile.TemporaryDirectory(prefix="polydetox-preview-") as temporary:
        work = Path(temporary) / "book"
        shutil.copytree(book_folder, work, ignore=shutil.ignore_patterns("_*", "*.log"))
        # Every citation is seen before the bibliography is written.
        for page in sorted(book.pages, key=lambda page: "{#refs}" in page.text):
            (work / page.source).write_text(Writer(book, page).text(), "utf-8")
        configuration = read_yaml(book_folder / CONFIGURATION)
        write_yaml(work / CONFIGURATION, site_configuration(configuration, book.pages[0].title, site))
        try:
            built = Site(load(work), quiet=True)
            built.build()
        except (BuildError, ConfigError) as error:
            raise UserError(f"the preview could not be rendered: {error}") from None
        if built.broken:
            page_name, address = built.broken[0]
            raise UserError(f"{page_name}: the link {address!r} leads nowhere")
    (site / SEARCH_INDEX).unlink()  # which a page that is opened from a folder may not fetch


def site_configuration(configuration: dict[str, Any], first: str, site: Path) -> dict[str, Any]:
    """What smalldocs, which lays out no appendices, reads in place of the book's ``_quarto.yml``."""
    book, options = configuration["book"], configuration.get("format", {}).get("html", {})
    contents = [{"text": first, "href": "index.qmd"}, *book["chapters"][1:]]
    if book.get("appendices"):
        contents.append({"part": "Appendices", "chapters": book["appendices"]})
    sidebar = book.get("sidebar", {}) | {"contents": contents, "search": False}
    shown = {"page-navigation": True, "bread-crumbs": True, "search": False, "sidebar": sidebar}
    kept = ("theme", "css", "toc", "toc-depth", "code-copy", "include-after-body")
    return {
        "project": {"type": "book", "output-dir": str(site), "resources": ["*.svg", "**/figures/**"]},
        "lang": configuration.get("lang", "en"),
        "book": {"title": book["title"], "description": book.get("description", ""), **shown},
        "format": {"html": {key: options[key] for key in kept if key in options}},
    }


class Page:
    """One page: its front matter, its title and label, and its number where it has one."""

    def __init__(self, folder: Path, file: Path):
        self.source = file.relative_to(folder).as_posix()
        self.text = file.read_text("utf-8")
        self.front: dict[str, Any] = {}
        if front := _FRONT_MATTER.match(self.text):
            self.front, self.text = yaml.safe_load(front[1]) or {}, self.text[front.end() :]
        heading = next((token for token in _TOKEN.finditer(self.text) if token["marks"] == "#"), None)
        if heading is None:
            raise UserError(f"{self.source}: no heading of level one, which is a page's title")
        self.title, self.label = heading["title"], _label(heading)
        self.numbered = ".unnumbered" not in (heading["attributes"] or "")
        self.number = ""
        self.text = self.text[: heading.start()] + self.text[heading.end() :]


def _label(heading: re.Match[str]) -> str | None:
    found = re.search(r"#([\w-]+)", heading["attributes"] or "")
    return found[1] if found else None


class Book:
    """The pages in order, numbered, and what a reference can lead to: a page, and what it is called."""

    def __init__(self, folder: Path, note: str = ""):
        described = read_yaml(folder / CONFIGURATION)["book"]
        self.title, self.note = described["title"], note
        self.described = {key: described[key] for key in ("subtitle", "author", "date") if key in described}
        self.variables = read_yaml(folder / VARIABLES)
        self.bibliography = Bibliography(folder / "references.bib")
        self.pages = [Page(folder, file) for file in book_pages(folder)]
        self.targets: dict[str | None, tuple[Page, str]] = {}
        for number, page in enumerate((page for page in self.pages if page.numbered), start=1):
            page.number = str(number)
        for page in self.pages:
            self._number(page)

    def _number(self, page: Page) -> None:
        """Number the figures, tables, equations and sections of a page."""
        prefix = f"{page.number}." if page.number else ""
        counts = dict.fromkeys([*KINDS, "sec"], 0)
        self.targets[page.label] = page, f"Chapter {page.number}" if page.number else page.title
        for token in _TOKEN.finditer(page.text):
            if label := token["label"] or token["eq"]:
                kind = label.split("-")[0]
                counts[kind] += 1
                self.targets[label] = page, f"{KINDS[kind]} {prefix}{counts[kind]}"
            elif token.lastgroup == "heading":
                counts["sec"] += _is_numbered(token)
                self.targets[_label(token)] = page, f"Section {prefix}{counts['sec']}" if prefix else token["title"]


def _is_numbered(heading: re.Match[str]) -> bool:
    return heading["marks"] == "##" and ".unnumbered" not in (heading["attributes"] or "")


class Writer:
    """One page as Markdown that smalldocs renders."""

    def __init__(self, book: Book, page: Page):
        self.book, self.page, self.section = book, page, 0

    def text(self) -> str:
        """The whole page, with its front matter."""
        page, book = self.page, self.book
        title = self._resolved(f"[{page.number}]{{.chapter-number}} {page.title}" if page.number else page.title)
        parts = [raw(f'<span id="{page.label}"></span>')] if page.label else []
        front = page.front | {"title": title}
        if page is book.pages[0]:
            # As in Quarto, the first page bears the book's title, and its own heading stands below.
            front |= {"title": book.title, **book.described}
            parts.append(f'::: {{.callout-note title="Preview"}}\n{PREVIEW_NOTE} {book.note}\n:::')
            parts.append(f"## {title} {{.unnumbered}}")
        head = yaml.safe_dump(front, allow_unicode=True, sort_keys=False, width=1000)
        return "\n\n".join([f"---\n{head}---", *parts, self._resolved(page.text)]) + "\n"

    def _resolved(self, text: str) -> str:
        return _TOKEN.sub(lambda token: str(getattr(self, f"_{token.lastgroup}")(token)), text)

    def _verbatim(self, token: re.Match[str]) -> str:
        return token[0]

    _code = _verbatim

    def _heading(self, token: re.Match[str]) -> str:
        number = ""
        if _is_numbered(token) and self.page.number:
            self.section += 1
            number = f"[{self.page.number}.{self.section}]{{.header-section-number}} "
        attributes = f" {{{token['attributes']}}}" if token["attributes"] else ""
        return f"{token['marks']} {number}{self._resolved(token['title'])}{attributes}"

    def _float(self, token: re.Match[str]) -> str:
        """A numbered figure or table: a table's caption stands above it, a figure's below."""
        label = token["label"]
        number, said = self._called(label), html.escape(token["caption"])
        caption = raw(f'<figcaption><span class="float-number">{number}:</span> {said}</figcaption>')
        kind, content = label.split("-")[0], self._resolved(token["content"])
        opening = raw(f'<div id="{label}" class="quarto-float quarto-float-{kind}"><figure class="figure">')
        inner = [caption, content] if kind == "tbl" else [content, caption]
        return "\n\n".join([opening, *inner, raw("</figure></div>")])

    def _equation(self, token: re.Match[str]) -> str:
        formula, label = self._mathml(token["formula"].strip(), "block"), token["eq"]
        if label is None:
            return raw(f'<div class="equation">{formula}</div>')
        number = f'<span class="equation-number">({self._called(label).rpartition(_NO_BREAK)[2]})</span>'
        return raw(f'<div id="{label}" class="equation">{formula}{number}</div>')

    def _math(self, token: re.Match[str]) -> str:
        # Its signs are written as entities: Markdown would read an asterisk or a bracket as its own.
        words = re.compile(r"(?<=>)[^<>]+(?=<)")
        return words.sub(lambda said: _entities(html.unescape(said[0])), self._mathml(token["inline"], "inline"))

    def _mathml(self, latex: str, display: str) -> str:
        try:
            converted = mathml(latex, display=display)
            unknown = re.search(r"<mi>(\\\w+)</mi>", converted)
            reason = f"unknown command {unknown[1]}" if unknown else ""
        except Exception as error:  # latex2mathml raises a dozen kinds; all mean that the formula cannot be read
            reason = type(error).__name__
        if reason:
            raise UserError(f"{self.page.source}: the formula {latex!r} cannot be read ({reason})")
        return converted

    def _variable(self, token: re.Match[str]) -> str:
        return self._resolved(str(self.book.variables[VARIABLE.sub(r"\1", token[0])]))

    def _reference(self, token: re.Match[str]) -> str:
        label = token[0][1:]
        return self._link(self._called(label), self.book.targets[label][0], label, "quarto-xref")

    def _called(self, label: str) -> str:
        """What a label leads to, such as ``Figure 3.1``; a no-break space keeps the number beside its word."""
        return self.book.targets[label][1].replace(" ", _NO_BREAK, 1)

    def _link(self, said: str, page: Page, label: str, kind: str) -> str:
        here = posixpath.dirname(self.page.source) or "."
        address = "" if page is self.page else posixpath.relpath(page.source, here)
        return f"[{said}]({address}#{label}){{.{kind}}}"

    def _citations(self, token: re.Match[str]) -> str:
        """``[@a; @b, p. 3]`` becomes (A 2020; B 2021, p. 3), ``[-@a]`` becomes (2020)."""

        def cited(match: re.Match[str]) -> str:
            names, year = self.book.bibliography.cite(match[1])
            return self._cited(year if match[0].startswith("-") else f"{names} {year}", match[1])

        return f"({CROSS_REFERENCE.sub(self._reference, CITATION.sub(cited, token['cited']))})"

    def _narrative(self, token: re.Match[str]) -> str:
        """``@a`` becomes A (2020)."""
        key = token[0].lstrip("-@")
        names, year = self.book.bibliography.cite(key)
        return f"{names} ({self._cited(year, key)})"

    def _cited(self, said: str, key: str) -> str:
        home = next(page for page in self.book.pages if "{#refs}" in page.text)
        return self._link(said, home, f"ref-{key}", "citation")

    def _refs(self, token: re.Match[str]) -> str:
        return raw(self.book.bibliography.to_html())


def _entities(text: str) -> str:
    return re.sub(r"[^\w\s]|_", lambda sign: f"&#{ord(sign[0])};", text)
