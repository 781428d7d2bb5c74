"""What the PDF is made of: no covered text, aligned tables, and chapters that are called by their names."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_output

from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.report import rendering
from polydetox.report.masking import masked_table, masked_vectors
from polydetox.report.notebooks import outputs_text
from polydetox.report.rendering import for_paper
from polydetox.results.tables import Cell, Group, PaperTable, number


def page(one) -> str:
    """What an object that a notebook shows is on a page."""
    data = one._repr_mimebundle_() if hasattr(one, "_repr_mimebundle_") else {"text/html": one._repr_html_()}
    cell = new_code_cell("show()", execution_count=1, outputs=[new_output("display_data", data=data)])
    return outputs_text(cell, lambda content, suffix: "")


@pytest.mark.parametrize("vectors", [False, True])
def test_a_covered_text_is_not_in_the_pdf(vectors):
    table = pd.DataFrame({"prompt": ["secret words"], "continuation": ["more of them"], "toxicity": [0.5]})
    sources = pd.DataFrame({"layer": [1], "neuron": [1], "cosine": [0.5], "activation": [0.1], "tokens": [["secret"]],
                            "scripts": ["Latin 100%"]})  # fmt: skip
    text = page(masked_vectors(sources) if vectors else masked_table(table, "de"))
    assert "secret" in text
    said = "*1 text withheld, which may be offensive; the HTML report shows them on request*"
    assert for_paper(f"Before.\n\n{text}\n\nAfter.").split("\n\n") == [
        "Before.", "", f'::: {{.content-hidden when-format="html"}}\n{said}\n:::', "After."
    ]  # fmt: skip


def test_numbers_stand_on_the_right_and_intervals_stay_on_one_line():
    table = PaperTable(
        ["", "EMT"],
        [Group("This run", [["from here to there", number(0.5, 2, 0.4, 0.6)], ["paper", Cell("0.50 → 0.16")]])],
        spans=[("Of both", 2)],
    )
    shown = for_paper(page(table))
    assert '<td class="number" style="text-align: right">0.50<br><span class="interval">0.40\xa0to\xa00.60<' in shown
    assert ">0.50\xa0→\xa00.16</td>" in shown
    assert '<td style="text-align: left">from here to there</td>' in shown
    assert '<th class="number" style="text-align: right"><strong>EMT</strong></th>' in shown
    assert '<th class="span" colspan="2" style="text-align: center"><strong>Of both</strong></th>' in shown
    assert '<th scope="rowgroup" colspan="2" style="text-align: left"><strong>This run</strong></th>' in shown


def test_without_quarto_there_is_no_pdf(monkeypatch):
    monkeypatch.setattr(rendering, "assemble", lambda profile: paths.profile_run(profile) / "book")
    monkeypatch.setenv("QUARTO", "")
    with pytest.raises(UserError, match="a PDF needs Quarto, and there is none: QUARTO is set to nothing"):
        rendering.render("offline", pdf=True)


def test_the_first_page_calls_each_chapter_by_its_name():
    """Quarto would print a chapter's number and name for a reference from a page without a number."""
    book = paths.root() / "book"
    index = (book / "index.qmd").read_text()
    links = re.findall(r"\[([^\]]+)\]\(([\w-]+\.qmd)#(sec-[\w-]+)\)", index)
    assert len(links) >= 11 and "@sec-" not in index
    for said, file, label in links:
        heading = re.search(rf"^# (.+) \{{(?:\.unnumbered )?#{label}\}}$", (book / file).read_text(), re.MULTILINE)
        assert said == "The appendices" or heading[1] == " ".join(said.split())


def test_nothing_refers_to_a_heading_without_a_number():
    """Quarto has no number to print for such a reference, and leaves a question mark: a link with words does."""
    pages = [page.read_text() for page in (paths.root() / "book").glob("*.qmd")]
    unnumbered = {label for text in pages for label in re.findall(r"^#+ .*\{\.unnumbered #(sec-[\w-]+)\}", text, re.M)}
    assert unnumbered == {"sec-notebooks"}
    assert not [label for label in unnumbered for text in pages if f"@{label}" in text]
