"""What holds in both renderers: every notebook is reached and chosen, and no search uncovers a text.

Quarto's part runs where ``QUARTO`` names one.
"""

from __future__ import annotations

import json
import re

from recorded import recorded

import synthetic

CHOICE = "document.querySelector('.run-choice select')"
VISIBLE = (
    "[...new Set([...document.querySelectorAll('.run')].filter(run => run.offsetParent).map(run => run.dataset.run))]"
)


def test_no_index_holds_a_covered_text_and_chapters_are_in_it(served):
    if served.renderer == "preview":
        assert not (served.folder / "search.json").exists()
        return
    text = (served.folder / "search.json").read_text()
    assert synthetic.MARKER not in text
    for page in ("methods.html", "why.html", "control.html", "examples.html", "notebooks/evaluate.html"):
        assert f'"href": "{page}' in text, page


def test_typing_a_covered_word_uncovers_nothing(served, browser):
    if served.renderer == "preview":
        return
    field, results = (f"document.querySelector({selector!r})" for selector in ("#quarto-search input", ".aa-Panel"))
    found = {}
    for words in ("perplexity", synthetic.MARKER):
        browser.open(f"{served.address}/why.html")
        browser.wait_for(f"!!{field}")
        browser.evaluate(f"{field}.focus()")
        browser.command("Input.insertText", text=words)
        browser.wait_for(f"!!{results} && {results}.innerText.trim() !== ''")
        found[words] = browser.evaluate(f"{results}.innerText")
    assert "Methods" in found["perplexity"]
    assert synthetic.MARKER.lower() not in found[synthetic.MARKER].lower()
    assert synthetic.MARKER not in browser.evaluate("document.body.innerText")


def test_every_executed_notebook_is_reached_from_the_list(served, browser):
    browser.open(f"{served.address}/notebooks.html")
    links = browser.evaluate("[...document.querySelectorAll('.runs td a')].map(link => link.href)")
    with synthetic.inside(served.folder.parents[2]):
        results = recorded(synthetic.PROFILE)
        wanted = sum(run.done for run in results.stages) + len(results.record["sections"])
        assert len(set(links)) == len(links) == wanted
    names: dict[str, set[str]] = {}
    for link in links:
        page, _, name = link.partition("#")
        names.setdefault(page, set()).add(name)
    for page, wanted in names.items():
        browser.open(page)
        assert browser.evaluate("document.querySelector('h1.title').innerText.trim()")
        assert wanted == set(browser.evaluate("[...document.querySelectorAll('[id^=run-]')].map(e => e.id)") or [""])


def test_the_run_that_is_chosen_shows_alone(served, browser):
    address = f"{served.address}/notebooks/evaluate.html"
    browser.open(address)
    assert browser.evaluate(f"{CHOICE}.value") == "tiny-base-en" and browser.evaluate(VISIBLE) == ["tiny-base-en"]
    shown = "[...document.querySelectorAll('.run:not([data-run=tiny-dpo-de])')].every(run => !run.offsetParent)"
    browser.evaluate("location.hash = '#run-tiny-dpo-de'")
    browser.wait_for(f"{CHOICE}.value === 'tiny-dpo-de'")
    assert browser.evaluate(VISIBLE) == ["tiny-dpo-de"] and browser.evaluate(shown)
    # By keyboard: the menu has the focus, and an arrow key goes to the next run.
    browser.evaluate(f"{CHOICE}.focus()")
    for kind in ("rawKeyDown", "keyUp"):
        browser.command(
            "Input.dispatchKeyEvent", type=kind, key="ArrowDown", code="ArrowDown", windowsVirtualKeyCode=40
        )
    browser.wait_for("location.hash === '#run-tiny-dpo-seed-1-de'")
    assert browser.evaluate(VISIBLE) == ["tiny-dpo-seed-1-de"]
    assert browser.evaluate(f"{CHOICE}.labels[0].innerText").startswith("Outputs of")
    # Printed, it stays alone.
    browser.command("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.evaluate(VISIBLE) == ["tiny-dpo-seed-1-de"]
    finally:
        browser.command("Emulation.setEmulatedMedia", media="")


def test_without_scripts_all_runs_show_under_their_names(served, browser):
    text = (served.folder / "notebooks/evaluate.html").read_text()
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(f"{served.address}/notebooks/evaluate.html")
        assert set(browser.evaluate(VISIBLE)) == set(re.findall(r'<option value="([^"]+)"', text))
        assert not browser.evaluate(f"{CHOICE}.offsetParent")
        said = "getComputedStyle(document.querySelector('.run'), '::before').content"
        assert json.loads(browser.evaluate(said)) == "Tiny, Arabic, base model"
        assert synthetic.MARKER not in browser.evaluate("document.body.innerText")
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)


def test_notebooks_fit_a_phone(served, browser):
    browser.resize(390, 844, phone=True)
    try:
        for page in ("notebooks.html", "notebooks/evaluate.html", "notebooks/constrained-decode.html"):
            browser.open(f"{served.address}/{page}")
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390, page
    finally:
        browser.resize(1400, 1000)
