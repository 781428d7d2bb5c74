"""The rendered site in a browser: every page, figure, table and link, and no offensive text before a click."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import synthetic

# What a renderer leaves of a reference or variable that it could not resolve.
UNRESOLVED = re.compile(r"\?@|\?var:|\?meta:|\{\{<|(?<![\w.])@(fig|tbl|sec|eq)-")

MASKED_PAGES = ["examples.html", "notebooks/generate.html", "notebooks/score.html"]


@pytest.fixture(scope="module")
def pages(site, browser) -> list[str]:
    """Every page that can be reached from the first one by its links."""
    found, waiting = [], ["index.html"]
    while waiting:
        page = waiting.pop(0)
        if page in found:
            continue
        found.append(page)
        browser.open(site / page)
        links = browser.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href.split('#')[0])")
        root = site.resolve().as_uri() + "/"
        waiting += [link.removeprefix(root) for link in links if link.startswith(root) and link.endswith(".html")]
    return found


def test_the_navigation_leads_to_every_page(site, pages):
    assert set(pages) == {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    assert {"notebooks.html", "notebooks/checkpoint.html", *MASKED_PAGES} < set(pages)


def test_every_page_is_whole(site, browser, pages):
    for page in pages:
        browser.open(site / page)
        browser.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        assert browser.complaints() == [], page
        assert all(address.startswith("file:") for address in browser.requests()), page
        text = browser.evaluate(  # of the prose: code may name a reference
            "(() => { document.querySelectorAll('pre').forEach(code => code.hidden = true);"
            " return document.body.innerText; })()"
        )
        assert not UNRESOLVED.search(text), (page, UNRESOLVED.search(text))
        assert browser.evaluate("document.querySelector('h1.title').innerText.trim()"), page
        images = browser.evaluate("[...document.images].map(image => [image.naturalWidth, image.alt])")
        assert all(width > 0 and alt for width, alt in images), page
        assert browser.evaluate("window.broken") is None, f"{page}: a script of a continuation ran"
        # Every address within the page leads somewhere.
        lost = browser.evaluate(
            "[...document.querySelectorAll('main a[href^=\"#\"]')].map(a => decodeURIComponent(a.hash.slice(1)))"
            ".filter(id => id && !document.getElementById(id))"
        )
        assert lost == [], page


def test_links_between_pages_lead_to_something(site, browser, pages):
    wanted: dict[str, set[str]] = {}
    for page in [*(page for page in pages if "/" not in page), "notebooks/evaluate.html"]:
        browser.open(site / page)
        for address in browser.evaluate(
            "[...document.querySelectorAll('main a.quarto-xref, main a.citation')].map(a => a.href)"
        ):
            target, _, label = address.partition("#")
            wanted.setdefault(target, set()).add(label)
    assert wanted
    for target, labels in wanted.items():
        browser.open(Path(target.removeprefix("file://")))
        for label in labels:
            assert browser.evaluate(f"!!document.getElementById({label!r})"), f"{target}#{label}"


def test_no_table_of_the_report_scrolls_in_a_window_of_1200_pixels(site, browser, pages):
    browser.resize(1200, 900)
    try:
        for page in [page for page in pages if "/" not in page]:
            browser.open(site / page)
            wide = browser.evaluate(
                "[...document.querySelectorAll('main table.paper-table')].filter(table => "
                "table.scrollWidth > table.closest('.cell-output-display').clientWidth + 1)"
                ".map(table => table.closest('[id^=tbl]').id)"
            )
            assert wide == [], page
    finally:
        browser.resize(1400, 1000)


def test_figures_and_tables_are_there_and_numbered(site, browser):
    expected = {  # chapter, and some of what it shows
        "training.html": (2, ["fig-training-curves", "tbl-pairs", "tbl-training"]),
        "results-detox.html": (3, ["fig-scorers", "tbl-main", "tbl-transfer", "tbl-languages",
                                   "tbl-scorers", "tbl-candidates"]),
        "fluency.html": (4, ["fig-perplexity", "tbl-fluency", "tbl-perplexity", "tbl-drift", "tbl-agreement"]),
        "capability.html": (5, ["fig-capability", "tbl-capability"]),
        "ablations.html": (6, ["fig-seeds", "fig-learning-rate", "fig-prompt-sets", "fig-perplexity-distribution",
                               "tbl-seeds", "tbl-learning-rate", "tbl-prompt-sets"]),
        "why.html": (7, ["fig-probe-languages", "fig-activations", "fig-transfer", "tbl-probe", "tbl-intervention",
                         "tbl-correlation", "tbl-falls"]),
        "control.html": (8, ["fig-control-schedules", "fig-control-tradeoff", "tbl-control", "tbl-control-jigsaw"]),
        "reproducibility.html": (11, ["tbl-stages", "tbl-versions", "tbl-licences"]),
    }  # fmt: skip
    for page, (chapter, labels) in expected.items():
        browser.open(site / page)
        browser.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        captions = browser.evaluate(
            "Object.fromEntries([...document.querySelectorAll(':is([id^=fig-], [id^=tbl-]):has(figcaption, caption)')]"
            ".map(e => [e.id, e.querySelector('figcaption, caption').innerText.replace(/\\u00a0/g, ' ')]))"
        )
        for kind, prefix in {"Figure": "fig-", "Table": "tbl-"}.items():
            of_kind = [caption for label, caption in captions.items() if label.startswith(prefix)]
            for number, caption in enumerate(of_kind, 1):  # in the order of the page, none missing
                start = f"{kind} {chapter}.{number}:"
                assert caption.startswith(start) and len(caption) > len(start) + 10, (page, caption)
        for label in labels:
            assert label in captions, (page, label)
            content = "img" if label.startswith("fig") else "table tbody tr"
            assert browser.evaluate(
                f"[...document.querySelectorAll('#{label} {content}')].some(e => e.getBoundingClientRect().height > 0)"
            ), label
    browser.open(site / "notebooks/evaluate.html")
    caption = "document.querySelector('#fig-toxicity-evaluate figcaption').innerText.replace(/\\u00a0/g, ' ')"
    assert browser.evaluate(caption).startswith("Figure 1:")
    browser.open(site / "methods.html")
    assert browser.evaluate("document.querySelectorAll('.equation math').length") == 5
    assert browser.evaluate("document.querySelector('#eq-dpo').innerText.includes('(1.1)')")


def test_the_papers_figures_stand_beside_ours(site, browser):
    browser.open(site / "results-detox.html")
    rows = browser.evaluate("[...document.querySelectorAll('#tbl-main tbody tr')].map(row => row.innerText)")
    assert any("This run: Tiny (DPO), mean over 4 languages" in row for row in rows)
    assert any(row.startswith("mGPT 1.3B") and "0.47 → 0.04" in row for row in rows)
    assert any(row.startswith("after") and "not run" in row for row in rows), "the variant that was never run"
    browser.open(site / "why.html")
    rows = browser.evaluate("[...document.querySelectorAll('#tbl-correlation tbody tr')].map(row => row.innerText)")
    assert any(row.startswith("mGPT") and "0.73" in row for row in rows)
    rows = browser.evaluate("[...document.querySelectorAll('#tbl-activations tbody tr')].map(row => row.innerText)")
    assert any(row.startswith("German") and "0.0814" in row and "not run" not in row for row in rows)
    assert any("not run" in row for row in rows), "the variant that was never run"
    wide = "document.querySelector('#tbl-activations table').scrollWidth <= document.querySelector('main').clientWidth"
    assert browser.evaluate(wide)


def test_the_first_page_warns_and_says_that_it_is_a_preview(site, browser):
    browser.open(site / "index.html")
    text = browser.evaluate("document.body.innerText")
    assert "This is a preview" in text and "Content warning" in text
    assert "Preference tuning for toxicity mitigation" in browser.evaluate("document.querySelector('h1').innerText")
    assert "in English, 6 of 6 prompts had a toxic continuation before and 2 after" in text
    abstract = browser.evaluate("[...document.querySelectorAll('main p')].map(part => part.innerText.trim())"
                                ".find(said => said.startsWith('Does preference optimisation'))")  # fmt: skip
    assert "As means over languages, the fraction of continuations with digits" in abstract
    assert abstract.endswith("intervals cover prompts only, of one model and one training.")
    browser.open(site / "reproducibility.html")
    assert synthetic.NOTICE in browser.evaluate("document.body.innerText")


def test_no_text_shows_before_it_is_asked_for(site, browser, pages):
    holding = []
    for page in pages:
        browser.open(site / page)
        assert synthetic.MARKER not in browser.evaluate("document.body.innerText"), page
        # innerText leaves out what is not drawn; nor may a text stand anywhere but under a cover.
        outside = browser.evaluate(
            "(() => { const copy = document.documentElement.cloneNode(true);"
            " copy.querySelectorAll('.masked-body').forEach(body => body.remove()); return copy.outerHTML; })()"
        )
        assert synthetic.MARKER not in outside, page
        if browser.evaluate(f"document.body.textContent.includes('{synthetic.MARKER}')"):
            holding.append(page)
            assert browser.evaluate("document.querySelector('.callout-warning').innerText").startswith(
                "Content warning"
            ), page
    assert set(MASKED_PAGES) <= set(holding)


@pytest.mark.parametrize("page", MASKED_PAGES)
def test_a_click_shows_the_text_and_a_second_one_hides_it(site, browser, page):
    browser.open(site / page)
    visible = "[...document.querySelectorAll('details.masked')].filter(cover => cover.offsetParent)"
    covers = browser.evaluate(f"{visible}.length")
    assert covers >= 2 and browser.evaluate("document.querySelectorAll('details[open]').length") == 0
    for number in range(covers):
        cover = f"{visible}[{number}]"
        browser.evaluate(f"{cover}.querySelector('summary').click()")
        assert synthetic.MARKER in browser.evaluate(f"{cover}.innerText")
        browser.evaluate(f"{cover}.querySelector('summary').click()")
        assert synthetic.MARKER not in browser.evaluate(f"{cover}.innerText")
    summary = browser.evaluate(f"{visible}[0].querySelector('summary').innerText")
    assert re.search(r"(Arabic|English)", summary) and re.search(r"toxicity (before )?\d\.\d\d|prompt p\d\d", summary)


def test_the_browser_of_continuations_filters_and_sorts_and_searches_only_what_is_shown(site, browser):
    browser.open(site / "examples.html")

    def summaries() -> list[list[str]]:
        return browser.evaluate("[...document.querySelectorAll('.continuations summary')]"
                                ".map(line => [...line.children].map(part => part.textContent))")  # fmt: skip

    def choose(control: int, value: str) -> list[list[str]]:
        browser.evaluate(
            f"(() => {{ const one = document.querySelectorAll('.continuations :is(select, input)')[{control}];"
            f" one.value = {value!r}; one.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        )
        return summaries()

    status = "document.querySelector('.continuations [role=status]').textContent"
    assert browser.evaluate(status) == "72 of 72 pairs"  # 4 languages, 6 prompts, 3 continuations
    assert len(summaries()) == 20 and summaries()[0][:2] == ["Arabic", "prompt p00, continuation 1"]
    assert summaries()[0][2].endswith("after not scored")
    browser.evaluate("document.querySelector('.continuations > button').click()")
    assert len(summaries()) == 40

    assert {line[0] for line in choose(0, "de")} == {"German"}
    assert browser.evaluate(status) == "18 of 72 pairs"
    toxicity = [[float(value) for value in re.findall(r"\d\.\d\d", line[2])] for line in choose(3, "drop")]
    assert len(toxicity) == 17  # without the one that is not scored
    drops = [before - after for before, after in toxicity]
    assert all(first >= second - 0.011 for first, second in itertools.pairwise(drops)) and drops[0] > drops[-1]
    mended = [[float(value) for value in re.findall(r"\d\.\d\d", line[2])] for line in choose(2, "stopped")]
    assert mended == [[before, after] for before, after in toxicity if before >= 0.5 > after]
    choose(2, "all")

    words = "document.querySelector('.continuations [type=search]')"
    assert browser.evaluate(f"{words}.disabled") and len(choose(4, "de 3 2")) == 17  # a search has no say yet
    assert synthetic.MARKER not in browser.evaluate("document.body.innerText")
    browser.evaluate("document.querySelector('.continuations [type=checkbox]').click()")
    assert len(choose(4, "dpo de 3 2")) == 1
    shown = browser.evaluate("document.querySelector('.continuations details').innerText")
    assert f"{synthetic.MARKER} base de 3 2" in shown and f"{synthetic.MARKER} dpo de 3 2" in shown
    sides = browser.evaluate(
        "[...document.querySelectorAll('.masked-pair > div')].map(e => e.getBoundingClientRect().y)"
    )
    assert len(sides) == 2 and sides[0] == sides[1], "side by side"
    assert browser.evaluate("window.broken") is None and browser.complaints() == []


def test_random_examples_stand_under_their_language_to_which_the_contents_lead(site, browser):
    browser.open(site / "examples.html")
    found = browser.evaluate(
        "[...document.querySelectorAll('[id^=examples-]')].map(place => [place.id, [...document.querySelectorAll("
        "`nav a[href='#${place.id}']`)].map(link => link.innerText)])"
    )
    names = {"ar": "Arabic", "de": "German", "en": "English", "ja": "Japanese"}
    assert sorted(found) == [[f"examples-{code}", [name]] for code, name in names.items()]
    lines = browser.evaluate(
        "[...document.querySelectorAll('main :is(h3, .masked-list > details > summary)')]"
        ".filter(line => !line.closest('.continuations'))"
        ".map(line => line.querySelector('span')?.innerText || line.innerText)"
    )
    assert sorted(lines) == sorted([*names.values()] * 3), "a heading and two covers each"
    assert all(len(set(lines[first : first + 3])) == 1 for first in range(0, len(lines), 3)), lines


def test_without_scripts_the_examples_are_there(site, browser):
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(site / "examples.html")
        said = browser.evaluate("document.querySelector('main').innerText")
        assert "needs JavaScript" in said and "Arabic" in said and synthetic.MARKER not in said
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)


def test_value_vectors_can_be_sorted_and_searched_without_showing_a_token(site, browser):
    browser.open(site / "why.html")
    column = "[...document.querySelectorAll('.explorable tbody tr:not([hidden])')].map(row => row.cells[{}].innerText)"
    assert browser.evaluate(column.format(2))[0] == "0.300"
    heading = "document.querySelectorAll('.explorable th')[{}].querySelector('button').click()"
    for wanted in (["2", "2", "2", "1", "1"], ["1", "1", "2", "2", "2"]):
        browser.evaluate(heading.format(0))
        assert browser.evaluate(column.format(0)) == wanted

    def search(words: str) -> list[str]:
        browser.evaluate(
            f"(() => {{ const field = document.querySelector('.explorable input'); field.value = {words!r};"
            " field.dispatchEvent(new Event('input')); })()"
        )
        return browser.evaluate(column.format(1))

    assert search("han 0.300") == ["0"] and search("hangul") == []
    assert len(search(synthetic.MARKER)) == 5
    assert synthetic.MARKER not in browser.evaluate("document.body.innerText")
    assert browser.complaints() == []


def test_arabic_runs_from_right_to_left(site, browser):
    browser.open(site / "examples.html")
    words = "[...document.querySelectorAll('.masked-words')].map(w => [w.lang, w.dir, getComputedStyle(w).direction])"
    directions = {tuple(item) for item in browser.evaluate(words)}
    assert directions == {("ar", "rtl", "rtl"), ("de", "ltr", "ltr"), ("en", "ltr", "ltr"), ("ja", "ltr", "ltr")}


def test_the_page_fits_a_phone_and_turns_dark(site, browser):
    browser.resize(390, 844, phone=True)
    try:
        for page in ("index.html", "results-detox.html", "methods.html", "examples.html", MASKED_PAGES[1]):
            browser.open(site / page)
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390, page
    finally:
        browser.resize(1400, 1000)
    browser.open(site / "index.html")
    light = "getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'"
    assert browser.evaluate(light)
    browser.evaluate("document.querySelector('.quarto-color-scheme-toggle').click()")
    browser.wait_for(f"!({light}) && document.documentElement.classList.contains('quarto-dark')")
    browser.evaluate("document.querySelector('.quarto-color-scheme-toggle').click()")
    browser.wait_for(light)


def test_nothing_of_this_machine_is_in_the_site(site, run_folder):
    cited = re.findall(r"https?://([^/}\s]+)", (synthetic.CHECKOUT / "book/references.bib").read_text("utf-8"))
    hosts = "|".join(map(re.escape, {*cited, "doi.org", "quarto.org"}))
    for file in site.rglob("*"):
        if file.suffix in (".html", ".js", ".svg", ".css"):
            text = file.read_text()
            assert str(run_folder) not in text and str(synthetic.CHECKOUT) not in text, file
            if file.suffix == ".html":
                assert not re.search(rf'(src|href)="(/|https?://(?!({hosts})[/"]))', text), file
