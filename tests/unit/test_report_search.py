"""No search index of a site holds what its pages cover."""

from __future__ import annotations

import html
import json

from polydetox.report.masking import cover, passage, uncover_nothing

TEXTS = ["you <b>are</b> awful & worse", "so", "noch\u00a0schlimmer"]
COVERED = cover(["German"], [passage("continuation", text, "de") for text in TEXTS])
PAGE = (
    f"<html><body><main><p>We measure it, so to say.<br>Twice.</p>{COVERED}<script>so()</script></main></body></html>"
)


def indexed(text: str) -> dict:
    """An entry as Quarto writes it, its text escaped."""
    return {"objectID": "a.html#x", "href": "a.html#x", "title": "A", "section": "X", "text": html.escape(text)}


def after(tmp_path, text: str) -> str:
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "search.json").write_text(json.dumps([indexed(text)]))
    uncover_nothing(tmp_path)
    (entry,) = json.loads((tmp_path / "search.json").read_text())
    assert entry | {"text": ""} == indexed("")
    return html.unescape(entry["text"])


def test_covered_passages_leave_the_index_and_nothing_else_does(tmp_path):
    body = "".join(f"continuation {text}\n" for text in TEXTS).replace("\n", "")
    left = after(tmp_path, f"We measure it, so to say. Twice.\n\nGerman\n{body}  The end & more.")
    assert left == "We measure it, so to say. Twice. German The end & more."


def test_a_passage_that_the_index_writes_otherwise_takes_the_entry_with_it(tmp_path):
    assert after(tmp_path, f"We measure it. {TEXTS[0]}, as it said.") == ""
    assert after(tmp_path, "We say: noch schlimmer") == ""


def test_a_passage_that_the_page_shows_as_well_stays(tmp_path):
    assert after(tmp_path, "We measure it,\n so to say.") == "We measure it,\n so to say."


def test_a_site_without_a_search_is_left_alone(tmp_path):
    (tmp_path / "a.html").write_text(PAGE)
    uncover_nothing(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]
