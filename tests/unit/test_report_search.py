"""No search index of a site holds what its pages cover."""

from __future__ import annotations

import json

from polydetox.report.masking import cover, passage, uncover_nothing

COVERED = cover(["German"], [passage("continuation", "you <b>are</b> awful & worse", "de")])


def test_pages_that_cover_something_are_found_by_their_headings_alone(tmp_path):
    (tmp_path / "a.html").write_text(f"<p>We measure it.</p>{COVERED}")
    (tmp_path / "b.html").write_text("<p>Nothing is covered.</p>")
    names = ["a.html", "a.html#x", "b.html"]
    entries = [{"objectID": name, "href": name, "title": "T", "section": "X", "text": "words"} for name in names]
    (tmp_path / "search.json").write_text(json.dumps(entries))
    uncover_nothing(tmp_path)
    left = json.loads((tmp_path / "search.json").read_text())
    assert [entry.pop("text") for entry in left] == ["", "", "words"]
    assert left == [{key: value for key, value in entry.items() if key != "text"} for entry in entries]


def test_a_site_without_a_search_is_left_alone(tmp_path):
    (tmp_path / "a.html").write_text(COVERED)
    uncover_nothing(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]
