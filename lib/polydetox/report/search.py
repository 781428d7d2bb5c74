"""The search index of a rendered site, without the text that its pages cover.

Renderers index whole pages, and a search result shows its surroundings: a word of a covered passage would uncover it.
"""

from __future__ import annotations

import html
import json
from pathlib import Path

from lxml import etree
from lxml import html as lxml_html

from polydetox.report.masking import BODY, WORDS

INDEX = "search.json"


def uncover_nothing(site: Path) -> None:
    """Take what the pages of a site cover out of its search index.

    Where a text is still in an entry afterwards, the entry loses its text: it is then found by its title alone.
    """
    file = site / INDEX
    if not file.is_file():
        return
    entries = json.loads(file.read_text("utf-8"))
    pages: dict[str, tuple[list[str], list[str]]] = {}
    for entry in entries:
        name = entry["href"].split("#")[0]
        if name not in pages:
            pages[name] = _covered(site / name)
        bodies, passages = pages[name]
        text = given = _plain(html.unescape(entry["text"]))
        for body in bodies:
            text = text.replace(body, " ")
        if any(passage in text for passage in passages):
            text = ""
        if text != given:
            entry["text"] = html.escape(_plain(text))
    file.write_text(json.dumps(entries, ensure_ascii=False), "utf-8")


def _covered(page: Path) -> tuple[list[str], list[str]]:
    """Of a page all that is under each cover, and the single texts there that it does not show elsewhere as well."""
    document = lxml_html.document_fromstring(page.read_text("utf-8"))
    etree.strip_elements(document, "script", "style", with_tail=False)
    bodies, passages = (
        [text for element in document.find_class(kind) if (text := _plain(element.text_content()))]
        for kind in (BODY, WORDS)
    )
    for element in document.find_class(BODY):
        element.drop_tree()
    shown = _plain(document.text_content())
    return bodies, [passage for passage in passages if passage not in shown]


def _plain(text: str) -> str:
    return " ".join(text.split())
