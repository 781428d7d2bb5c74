"""axe-core finds no serious violation on a page of the report or a notebook's, on a desktop, on a phone and in dark."""

from __future__ import annotations

from importlib.resources import files

import pytest

WINDOWS = {1400: 1000, 390: 844}
COLOURS = ["color-contrast", "link-in-text-block"]  # the rules that a dark page may break where a light one does not
DARK = "!!document.querySelector('html[data-scheme=alternate], body.quarto-dark')"
IMPACTS = ("serious", "critical")
# The pages of notebooks have one template: one with a choice of runs and a figure, one with covered texts, one of a
# section, with tables and figures between its code.
NOTEBOOKS = ["notebooks/evaluate.html", "notebooks/generate.html", "notebooks/summary-detox.html"]


@pytest.fixture(scope="module")
def axe(browser):
    """Violations of the page that is open, each with its rule and the elements; ``rules`` are all unless given."""
    source = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")

    def run(rules=None) -> list:
        browser.evaluate(f"{source};0")
        options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
        found = browser.evaluate(
            f"axe.run({options!r}).then(said => said.violations.map(one => "
            "[one.impact, one.id, one.nodes.map(node => node.html.slice(0, 200))]))"
        )
        return [one for one in found if one[0] in IMPACTS]

    return run


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_violation(served, browser, axe, scheme):
    browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    try:
        for page in [*sorted(page.name for page in served.folder.glob("*.html")), *NOTEBOOKS]:
            browser.open(f"{served.address}/{page}")
            assert browser.evaluate(DARK) == (scheme == "dark")
            for width, height in WINDOWS.items() if scheme == "light" else [(1400, 1000)]:
                browser.resize(width, height, phone=width < 600)
                assert axe(COLOURS if scheme == "dark" else None) == [], (page, width)
    finally:
        browser.command("Emulation.setEmulatedMedia", features=[])
        browser.resize(1400, 1000)


@pytest.mark.parametrize(
    ("change", "rule"),
    [("document.querySelector('main p').style.color = '#aaa'", "color-contrast"),
     ("document.querySelector('main img').removeAttribute('alt')", "image-alt"),
     ("document.querySelector('a.quarto-xref').style.textDecoration = 'none'", "link-in-text-block"),
     ("document.documentElement.removeAttribute('lang')", "html-has-lang")],
)  # fmt: skip
def test_a_violation_is_found(served, browser, axe, change, rule):
    browser.open(f"{served.address}/results-detox.html")
    browser.evaluate(change)
    assert [found for _, found, _ in axe()] == [rule]


def test_tables_have_captions_and_headings(served, browser):
    browser.open(f"{served.address}/results-detox.html")
    tables = browser.evaluate(
        "[...document.querySelectorAll('[id^=tbl-] table')].map(table => [table.closest('[id^=tbl-]').id,"
        " table.caption?.innerText ?? '', [...table.querySelectorAll('th')].map(th => th.scope),"
        " [...table.tBodies].flatMap(body => [...body.rows]).map(row => row.cells[0].tagName)])"
    )
    assert len(tables) >= 5
    for label, caption, scopes, firsts in tables:
        assert caption.startswith("Table") and all(scopes), label
        assert set(firsts) == {"TH"}, label
    main = next(scopes for label, _, scopes, _ in tables if label == "tbl-transfer")
    assert {"col", "colgroup", "row", "rowgroup"} == set(main)


def test_the_first_stop_of_the_keyboard_skips_the_navigation(served, browser):
    browser.open(f"{served.address}/results-detox.html")
    browser.command("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.evaluate("document.activeElement.className") == "skip-link"
    target = browser.evaluate("document.querySelector(document.activeElement.hash).tagName")
    assert target == "MAIN" and browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
