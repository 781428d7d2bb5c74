"""The preview renderer: the assembled book as a site where there is no Quarto.

A pass of our own resolves what Quarto would: variables, embedded cells, numbered figures, tables, equations and
sections, references across chapters, citations, and math as MathML. The result is plain Markdown, from which
``smalldocs`` makes the pages. Nothing is loaded from elsewhere, and the site works opened from a folder.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert as mathml

from polydetox.core.errors import UserError
from polydetox.core.yaml_files import read_yaml
from polydetox.report.appendices import FOLDER, output_text, raw
from polydetox.report.assemble import CONFIGURATION, CROSS_REFERENCE, VARIABLE, VARIABLES
from polydetox.report.preview_pages import (
    HEADING,
    REFS,
    Block,
    Book,
    Cell,
    Equation,
    Float,
    Page,
    Prose,
    Verbatim,
    read_blocks,
    read_book,
)

PREVIEW_NOTE = (
    "This is a preview. It was made without [Quarto](https://quarto.org), by the project's own preview renderer: the "
    "content is the same, the typography is simpler, and there is no PDF."
)

_INLINE_MATH = re.compile(r"(?<![\\$\w])\$(?=\S)([^$\n]*(?:\n[^$\n]+)*?)(?<=\S)\$(?![\w$])")
_INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_PLAIN_TEXT = re.compile(r"(?<=>)[^<>]+(?=<)")


def build(book_folder: Path, site: Path, note: str) -> None:
    """Render an assembled book into the empty folder ``site``; ``note``, on its first page, says why."""
    from smalldocs.config import BuildError, ConfigError, load
    from smalldocs.site import Site

    book = read_book(book_folder)
    book.note = note
    with tempfile.TemporaryDirectory(prefix="polydetox-preview-") as temporary:
        work = Path(temporary)
        configuration = read_yaml(book_folder / CONFIGURATION)
        for name in _stylesheets(configuration):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(book_folder / name, work / name)
        for page in _references_last(book):
            target = work / page.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(Writer(book, page, work).text(), "utf-8")
        if (pictures := book_folder / FOLDER / "figures").is_dir():
            shutil.copytree(pictures, work / FOLDER / "figures")
        adapted = yaml.safe_dump(
            site_configuration(configuration, book.pages[0].title, site), allow_unicode=True, sort_keys=False
        )
        (work / CONFIGURATION).write_text(adapted, "utf-8")
        try:
            built = Site(load(work), quiet=True)
            built.build()
        except (BuildError, ConfigError) as error:
            raise UserError(f"the preview could not be rendered: {error}") from None
        if built.broken:
            page_name, address = built.broken[0]
            raise UserError(f"{page_name}: the link {address!r} leads nowhere")
    _make_search_local(site)


def _references_last(book: Book) -> list[Page]:
    """The pages in an order in which every citation is seen before the bibliography is written."""
    return sorted(book.pages, key=lambda page: any(isinstance(b, Prose) and REFS.search(b.text) for b in page.blocks))


def _stylesheets(configuration: dict[str, Any]) -> list[str]:
    css = configuration.get("format", {}).get("html", {}).get("css", [])
    return [css] if isinstance(css, str) else list(css)


def site_configuration(configuration: dict[str, Any], first: str, site: Path) -> dict[str, Any]:
    """What smalldocs reads in place of the book's ``_quarto.yml``.

    It lays out a book as a website without its appendices, so chapters and appendices become one sidebar, in which
    the first page stands under its own heading, ``first``.
    """
    book = configuration["book"]
    contents = [*book["chapters"]]
    if book.get("appendices"):
        contents.append({"part": "Appendices", "chapters": book["appendices"]})
    options = configuration.get("format", {}).get("html", {})
    kept = {key: options[key] for key in ("theme", "css", "toc", "toc-depth", "code-copy") if key in options}
    return {
        "project": {"type": "book", "output-dir": str(site), "resources": ["figures/**", f"{FOLDER}/figures/**"]},
        "lang": configuration.get("lang", "en"),
        "book": {
            "title": book["title"],
            "description": book.get("description", ""),
            "page-navigation": True,
            "bread-crumbs": True,
            "sidebar": {
                **book.get("sidebar", {}),
                "contents": [{"text": first, "href": "index.qmd"}, *_as_qmd(contents)[1:]],
            },
        },
        "format": {"html": kept},
    }


def _as_qmd(items: list[Any]) -> list[Any]:
    adapted: list[Any] = []
    for item in items:
        if isinstance(item, str):
            adapted.append(posixpath.splitext(item)[0] + ".qmd")
        else:
            adapted.append({"part": item["part"], "chapters": _as_qmd(item.get("chapters", []))})
    return adapted


# --- writing a page ---------------------------------------------------------------------------------------------


class Writer:
    """One page as Markdown that smalldocs renders."""

    def __init__(self, book: Book, page: Page, work: Path):
        self.book, self.page, self.work = book, page, work
        self.figures = 0
        self.section = 0

    def text(self) -> str:
        """The whole page, with its front matter."""
        number = f"[{self.page.number}]{{.chapter-number}} " if self.page.number else ""
        title = f"{number}{self._inline(self.page.title)}"
        first = self.page is self.book.pages[0]
        front = {
            **self.page.front,
            **({"title": self.book.title, "subtitle": self.book.subtitle} if first else {"title": title}),
        }
        parts = ["---", yaml.safe_dump(front, allow_unicode=True, sort_keys=False, width=1000).strip(), "---"]
        if self.page.label:
            parts.append(raw(f'<span id="{self.page.label}"></span>'))
        if first:
            # As in Quarto, the first page bears the book's title, and its own heading stands below.
            parts += [
                f'::: {{.callout-note title="Preview"}}\n{PREVIEW_NOTE} {self.book.note}\n:::',
                f"## {title} {{.unnumbered}}",
            ]
        parts += [self._block(block) for block in self.page.blocks]
        return "\n\n".join(parts) + "\n"

    def _block(self, block: Block) -> str:
        if isinstance(block, Verbatim):
            return block.text
        if isinstance(block, Equation):
            return raw(self._equation(block))
        if isinstance(block, Float):
            return self._float(block)
        if isinstance(block, Cell):
            return self._cell(block)
        return self._prose(block.text)

    # --- prose

    def _prose(self, text: str) -> str:
        text = VARIABLE.sub(self._variable, text)
        if REFS.search(text):
            before, after = REFS.split(text, maxsplit=1)
            return "\n\n".join([self._prose(before), raw(self.book.bibliography.to_html()), self._prose(after)])
        return HEADING.sub(self._heading, self._inline(text))

    def _variable(self, match: re.Match[str]) -> str:
        try:
            return str(self.book.variables[match[1]])
        except KeyError:
            raise UserError(f"{self.page.source}: no variable {match[1]!r} in {VARIABLES}") from None

    def _inline(self, text: str) -> str:
        """Math, references and citations outside inline code."""

        def outside_code(piece: str) -> str:
            return _outside(_INLINE_MATH, piece, lambda match: _inline_math(match[1], self.page.source), self._words)

        return _outside(_INLINE_CODE, text, lambda match: match[0], outside_code)

    def _words(self, text: str) -> str:
        return self.book.bibliography.replace(CROSS_REFERENCE.sub(self._reference, text), self._citation)

    def _reference(self, match: re.Match[str]) -> str:
        target = self.book.targets.get(match[1])
        if target is None:
            raise UserError(f"{self.page.source}: reference @{match[1]} leads nowhere")
        # A no-break space keeps the number beside its word.
        said = target.text.replace(" ", "\N{NO-BREAK SPACE}", 1)
        return f"[{said}]({self.page.linked(target.page, match[1])}){{.quarto-xref}}"

    def _citation(self, said: str, key: str) -> str:
        home = next((page for page in self.book.pages if page.source == "references.qmd"), None)
        return f"[{said}]({self.page.linked(home, f'ref-{key}')}){{.citation}}" if home else said

    def _heading(self, match: re.Match[str]) -> str:
        marks, title, attributes = match[1], match[2], match[3]
        numbered = len(marks) == 2 and ".unnumbered" not in (attributes or "")
        number = ""
        if numbered:
            self.section += 1
            if self.page.number:
                number = f"[{self.page.number}.{self.section}]{{.header-section-number}} "
        return f"{marks} {number}{title}" + (f" {{{attributes}}}" if attributes else "")

    # --- equations, figures, tables

    def _equation(self, block: Equation) -> str:
        formula = _mathml(block.latex, "block", self.page.source)
        if block.label is None:
            return f'<div class="equation">{formula}</div>'
        number = self.book.targets[block.label].text.rsplit(" ", 1)[1]
        return (
            f'<div id="{block.label}" class="equation">{formula}<span class="equation-number">({number})</span></div>'
        )

    def _cell(self, block: Cell) -> str:
        options, kind = block.options, block.label.split("-")[0]
        caption = str(options.get(f"{kind}-cap", ""))
        alternative = str(options.get("fig-alt") or caption)
        texts = [output_text(output, self._picture, alternative) for output in block.outputs]
        blocks = read_blocks("\n\n".join(texts), self.work, self.work / self.page.file)
        inner = self._float(Float(block.label, caption, blocks)) if kind in ("fig", "tbl") else self._all(blocks)
        return f"::: {{.cell}}\n\n{inner}\n\n:::"

    def _all(self, blocks: list[Block]) -> str:
        return "\n\n".join(self._block(block) for block in blocks)

    def _float(self, block: Float) -> str:
        """A numbered figure or table: a table's caption stands above it, a figure's below."""
        kind = block.label.split("-")[0]
        number = self.book.targets[block.label].text.replace(" ", "\N{NO-BREAK SPACE}")
        caption = raw(
            f'<figcaption><span class="float-number">{number}:</span> {html.escape(block.caption)}</figcaption>'
        )
        inner = [caption, self._all(block.blocks)] if kind == "tbl" else [self._all(block.blocks), caption]
        opening = raw(f'<div id="{block.label}" class="quarto-float quarto-float-{kind}"><figure class="figure">')
        return "\n\n".join([opening, *inner, raw("</figure></div>")])

    def _picture(self, content: bytes, suffix: str) -> str:
        """Write a picture to a file of its own; returns its address from this page."""
        self.figures += 1
        stem = posixpath.splitext(self.page.source)[0].replace("/", "-")
        name = f"figures/{stem}-{self.figures}.{suffix}"
        (self.work / name).parent.mkdir(exist_ok=True)
        (self.work / name).write_bytes(content)
        return posixpath.relpath(name, posixpath.dirname(self.page.file) or ".")


def _outside(
    pattern: re.Pattern[str], text: str, inside: Callable[[re.Match[str]], str], outside: Callable[[str], str]
) -> str:
    """Map the matches of a pattern with one function and the text between them with another."""
    parts, position = [], 0
    for match in pattern.finditer(text):
        parts += [outside(text[position : match.start()]), inside(match)]
        position = match.end()
    return "".join([*parts, outside(text[position:])])


def _mathml(latex: str, display: str, source: str) -> str:
    try:
        converted = mathml(latex, display=display)
    except Exception as error:  # latex2mathml raises a dozen kinds; all mean that the formula cannot be read
        raise UserError(f"{source}: the formula {latex!r} cannot be read ({type(error).__name__})") from None
    unknown = re.search(r"<mi>(\\\w+)</mi>", converted)
    if unknown:
        raise UserError(f"{source}: the formula {latex!r} cannot be read (unknown command {unknown[1]})")
    return converted


def _inline_math(latex: str, source: str) -> str:
    """Inline math, its signs written as entities: Markdown would read an asterisk or a bracket as its own."""
    return _PLAIN_TEXT.sub(lambda match: _entities(html.unescape(match[0])), _mathml(latex, "inline", source))


def _entities(text: str) -> str:
    return "".join(character if character.isalnum() else f"&#{ord(character)};" for character in text)


# --- a site that opens from a folder ----------------------------------------------------------------------------


def _make_search_local(site: Path) -> None:
    """Give the pages the search index as a script: a page that is opened from a folder may not fetch a file."""
    index = json.loads((site / "search.json").read_text("utf-8"))
    (site / "search.json").unlink()
    answer = json.dumps(index, ensure_ascii=False).replace("</", "<\\/")
    script = (
        f"const searchIndex = {answer};\n"
        "window.fetch = ((fetch) => (address, options) => String(address).endsWith('search.json')\n"
        "  ? Promise.resolve(new Response(JSON.stringify(searchIndex))) : fetch(address, options))(window.fetch);\n"
    )
    (site / "site_libs" / "search-index.js").write_text(script, "utf-8")
    marker = re.compile(r'<script src="([^"]*)site_libs/smalldocs\.js"')
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        adapted, count = marker.subn(r'<script src="\1site_libs/search-index.js" defer></script>\g<0>', text)
        if count != 1:
            raise RuntimeError(f"{page.name}: smalldocs' script was not found once, but {count} times")
        page.write_text(adapted, "utf-8")
