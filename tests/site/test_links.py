"""What leads from each figure and table to its notebook, data and code, and the picture of the first page."""

from __future__ import annotations

import json
import struct

import nbformat
import pandas as pd
import picture
import pytest
import yaml
from recorded import write_record

import synthetic
from polydetox.core import paths
from polydetox.core.errors import UserError

CHAPTERS = ["training", "results-detox", "fluency", "capability", "ablations", "why", "control", "reproducibility"]


def test_every_figure_and_table_leads_to_its_notebook_its_data_and_its_code(site, browser):
    wanted, lines = set(), {}
    for chapter in CHAPTERS:
        browser.open(site / f"{chapter}.html")
        floats = browser.evaluate(
            "[...document.querySelectorAll(':is([id^=fig-], [id^=tbl-]):has(figcaption)')].map(e => e.id)"
        )
        found = browser.evaluate(
            "[...document.querySelectorAll('p.sources')].map(line => [line.innerText, "
            "[...line.querySelectorAll('a')]"
            ".map(a => [a.innerText, a.getAttribute('href'), a.hasAttribute('download')])])"
        )
        wanted |= set(floats)
        lines |= {links[0][1].rpartition("#")[2]: (text, links) for text, links in found}
    shown = {label.partition("-summary-")[0] for label in lines}
    assert wanted - shown == {"fig-rulegraph"}, "which is no result of the run"
    pages: dict[str, set[str]] = {}
    without = set()
    for label, (text, links) in lines.items():
        assert [said for said, *_ in links] in (["Notebook", "Data (CSV)"], ["Notebook"])
        assert "Code: notebooks/" in text and " at 0123456789" not in text, "the summaries ran in no repository"
        pages.setdefault(links[0][1].partition("#")[0], set()).add(label)
        if len(links) == 1:
            without.add(label.partition("-summary-")[0])
        else:
            assert links[1][2] and len(pd.read_csv(site / links[1][1])), label
    assert without <= {"fig-control-schedules", "fig-perplexity-distribution"} | {
        label for label in shown if label.endswith("-examples") or label == "tbl-neutral"
    }
    for page, labels in pages.items():
        browser.open(site / page)
        assert labels <= set(browser.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")), page


def test_data_are_those_of_the_artefact(site, run):
    written = pd.read_parquet(paths.profile_run(synthetic.PROFILE) / "summary/detox/by_language.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(site / "files/fig-toxprob.csv"), written, check_dtype=False)
    vectors = pd.read_csv(site / "files/tbl-vectors.csv")
    assert len(vectors) == synthetic.NEURONS and {"cosine", "model"} <= set(vectors) and "tokens" not in vectors


def test_layers_to_download_count_from_one_as_on_the_page(site, run):
    """Those of the stages' own files, which other stages read, count from 0."""
    for name in ("fig-sources", "tbl-vectors", "fig-shift", "fig-lens"):
        assert set(pd.read_csv(site / f"files/{name}.csv")["layer"]) == {1, 2}, name
    models = paths.profile_run(synthetic.PROFILE) / synthetic.MODEL
    for name in ("value_vectors/sources", "dpo/residual/shift", "dpo/residual/lens"):
        assert set(pd.read_parquet(models / f"{name}.parquet")["layer"]) == {0, 1}, name


def test_no_file_to_download_holds_a_covered_text_or_a_path(site, run_folder):
    files = list((site / "files").iterdir())
    assert {file.suffix for file in files} == {".csv", ".ipynb"}
    for file in files:
        text = file.read_text("utf-8")
        assert synthetic.MARKER not in text and str(run_folder) not in text and "/tmp/" not in text, file


def test_each_run_offers_its_own_notebook_and_the_command_that_opens_it(site, browser):
    browser.open(site / "notebooks/evaluate.html")
    browser.evaluate("location.hash = '#run-tiny-dpo-de'")
    browser.wait_for("document.querySelector('.run-choice select').value === 'tiny-dpo-de'")
    (line,) = browser.evaluate(
        "[...document.querySelectorAll('p.sources')].filter(line => line.offsetParent)"
        ".map(line => [line.innerText, line.querySelector('a').getAttribute('href')])"
    )
    assert "polydetox open runs/synthetic/tiny/dpo/evaluate/de" in line[0]
    assert "Code: notebooks/evaluation/evaluate.ipynb at 0123456789" in line[0]
    notebook = nbformat.read(site / "notebooks" / line[1], as_version=4)
    assert any(
        "image/svg+xml" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    )


def test_the_first_page_says_who_when_and_how_to_cite(site, browser):
    browser.open(site / "index.html")
    head = browser.evaluate("document.querySelector('#title-block-header').innerText")
    assert "The polydetox authors" in head and "2026" in head
    bibtex = browser.evaluate("document.querySelector('main pre code').innerText")
    assert bibtex.startswith("@software{polydetox,") and 'license = "MIT"' in bibtex


def test_the_sidebar_has_two_levels(site, browser):
    browser.open(site / "notebooks/evaluate.html")
    assert browser.evaluate("document.querySelectorAll('#quarto-sidebar ul ul ul').length") == 0
    assert browser.evaluate("document.querySelectorAll('#quarto-sidebar ul ul').length") > 0


def test_readme_gets_its_picture_and_numbers_from_a_finished_run(run, site, browser):
    readme, template = run / "checkout/README.md", "![x](book/picture.png) {{< var total_time >}}"
    readme.write_text(f"# x\n<!-- run synthetic: {template} --><!-- end -->\n")
    with pytest.raises(UserError, match=r"synthetic: [0-9]+ jobs are not done"):
        picture.main(synthetic.PROFILE)
    file, taken, take = write_record(synthetic.PROFILE), run / "picture.png", picture.take
    record = json.loads(file.read_text())
    done = [job for job in record["jobs"] if (paths.given(job["folder"]) / "manifest.json").is_file()]
    try:
        file.write_text(json.dumps(record | {"jobs": done}))
        with pytest.MonkeyPatch.context() as patch:  # the checkout's book is the one of this repository
            patch.setattr(picture, "take", lambda site, _: take(site, taken))
            picture.main(synthetic.PROFILE)
    finally:
        write_record(synthetic.PROFILE)
    width, height = struct.unpack(">II", taken.read_bytes()[16:24])
    assert taken.read_bytes().startswith(b"\x89PNG") and (width, height) == (1400, 1100)
    variables = yaml.safe_load((paths.profile_run(synthetic.PROFILE) / "book/_variables.yml").read_text())
    assert readme.read_text().splitlines()[2] == f"![x](book/picture.png) {variables['total_time']}"
