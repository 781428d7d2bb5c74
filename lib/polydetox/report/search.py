"""The search index of a rendered site, without the text that its pages cover.

Renderers index whole pages, and a search result shows its surroundings: a word of a covered passage would uncover it.
"""

from __future__ import annotations

import html
import json
from html.parser import HTMLParser
from pathlib import Path

from polydetox.report.masking import BODY, WORDS

INDEX = "search.json"

_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)


class _Page(HTMLParser):
    """What a page covers, and the rest of its text."""

    def __init__(self, text: str):
        super().__init__()
        self.bodies: list[str] = []  # everything under one cover
        self.passages: list[str] = []  # each text under it
        self.shown = ""
        self._open: list[tuple[str, str]] = []  # tags, and the class among BODY and WORDS that each has
        self.feed(text)
        self.close()
        self.bodies, self.passages = ([_plain(text) for text in texts] for texts in (self.bodies, self.passages))
        self.shown = _plain(self.shown)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            return
        classes = (dict(attributes).get("class") or "").split()
        kind = next((kind for kind in (BODY, WORDS) if kind in classes), "")
        self._open.append((tag, kind))
        if kind:
            (self.bodies if kind == BODY else self.passages).append("")

    def handle_endtag(self, tag: str) -> None:
        while any(tag == opened for opened, _ in self._open) and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        kinds = {kind for _, kind in self._open}
        if BODY in kinds:
            self.bodies[-1] += data
        elif not any(tag in ("script", "style") for tag, _ in self._open):
            self.shown += data
        if WORDS in kinds:
            self.passages[-1] += data


def _plain(text: str) -> str:
    return " ".join(text.split())


def uncover_nothing(site: Path) -> None:
    """Take what the pages of a site cover out of its search index.

    Where a text is still in an entry afterwards, the entry loses its text: it is then found by its title alone.
    """
    file = site / INDEX
    if not file.is_file():
        return
    entries = json.loads(file.read_text("utf-8"))
    pages: dict[str, _Page] = {}
    for entry in entries:
        name = entry["href"].split("#")[0]
        if name not in pages:
            pages[name] = _Page((site / name).read_text("utf-8"))
        page, given = pages[name], _plain(html.unescape(entry["text"]))
        text = given
        for body in filter(None, page.bodies):
            text = text.replace(body, " ")
        if _uncovers(text, page):
            text = ""
        if text != given:
            entry["text"] = html.escape(_plain(text))
    file.write_text(json.dumps(entries, ensure_ascii=False), "utf-8")


def _uncovers(text: str, page: _Page) -> bool:
    """Whether a text holds a covered passage that the page does not show as well."""
    return any(passage in text and passage not in page.shown for passage in filter(None, page.passages))
