"""How the rendered pages look in both renderers, in light, dark and on a phone, and the PDF that Quarto makes."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

import synthetic
from browser import Served

PAGES = ["index.html", "methods.html", "results-detox.html", "why.html", "examples.html", "reproducibility.html",
         "fidelity.html", "references.html", "notebooks.html", "notebooks/evaluate.html"]  # fmt: skip
CHAPTER_OF = {"fig-scorers": "Figure 3.2", "tbl-main": "Table 3.1", "tbl-probe": "Table 7.1"}


@pytest.fixture
def phone(browser):
    browser.resize(390, 844, phone=True)
    yield
    browser.resize(1400, 1000)


def text_of(browser, expression: str) -> str:
    return browser.evaluate(f"({expression}).innerText").replace("\u00a0", " ")


def test_nothing_is_loaded_from_elsewhere(served: Served, browser):
    for page in PAGES:
        browser.open(f"{served.address}/{page}")
        browser.evaluate("document.fonts.ready.then(() => 1)")
        away = [address for address in browser.requests() if not address.startswith((served.address, "data:"))]
        assert away == [], page
        assert [said for said in browser.complaints() if "favicon.ico" not in said] == [], page


# The captions of tables that are wider than the box in which their table scrolls.
CUT = """[...document.querySelectorAll('main .cell-output-display caption')].filter(caption =>
  caption.offsetWidth > caption.closest('.cell-output-display').clientWidth).map(caption => caption.innerText)"""


def test_every_page_fits_a_phone(served: Served, browser, phone):
    for page in PAGES:
        browser.open(f"{served.address}/{page}")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390, page
        assert browser.evaluate(CUT) == [], page
    browser.open(f"{served.address}/methods.html")
    boxes = "[...document.querySelectorAll('math[display=block]')].map(math => math.parentElement)"
    assert browser.evaluate(f"{boxes}.every(box => box.clientWidth <= 390)")
    assert browser.evaluate(f"{boxes}.some(box => box.scrollWidth > box.clientWidth)"), "a wide one scrolls"


# The words of a page's tables that stand on more than one line; code and covered texts may break anywhere.
BROKEN = """(() => {
  const found = [];
  for (const cell of document.querySelectorAll('main table :is(td, th)')) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const node = texts.currentNode;
      if (node.parentElement.closest('code, .masked-body')) continue;
      for (const word of node.data.matchAll(/\\p{L}+/gu)) {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map(box => box.top)).size > 1) found.push(word[0]);
      }
    }
  }
  return found;
})()"""


def test_no_word_of_a_table_is_broken_on_a_phone(served: Served, browser, phone):
    for page in [*PAGES, "training.html", "fluency.html", "capability.html", "ablations.html", "control.html"]:
        browser.open(f"{served.address}/{page}")
        assert browser.evaluate(BROKEN) == [], page


def test_dark_is_dark_everywhere(served: Served, browser):
    """The page, its side column, its contents and its code: a dark ground, and words that stand out from it."""
    browser.open(f"{served.address}/results-detox.html")
    browser.evaluate("document.querySelector('.quarto-color-scheme-toggle').click()")
    try:
        browser.wait_for("getComputedStyle(document.body).backgroundColor === 'rgb(23, 25, 28)'")
        for words in ("#quarto-sidebar .sidebar-title a", "#quarto-sidebar .sidebar-link .menu-text", "main p",
                      "main table td", "main :is(figcaption, caption)", "#quarto-margin-sidebar a"):  # fmt: skip
            # A colour may take a moment to change.
            browser.wait_for(f"({CONTRAST})(document.querySelector({words!r})) > 4.5")
        browser.open(f"{served.address}/notebooks/evaluate.html")
        browser.wait_for(f"({CONTRAST})(document.querySelector('main pre code span, main pre code')) > 4.5")
    finally:
        browser.evaluate("localStorage.clear()")


# The contrast of an element's words with the nearest ground behind them, as WCAG 2 defines it.
CONTRAST = """element => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => { const [r, g, b] = numbers(colour).map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let behind = element;
  const clear = colour => numbers(colour)[3] === 0;
  while (behind.parentElement && clear(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(luminance);
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}"""


def test_tables_are_set_as_in_a_paper(served: Served, browser):
    browser.open(f"{served.address}/results-detox.html")
    style = "[...document.querySelectorAll({!r})].map(e => getComputedStyle(e)[{!r}])"
    rows = "#tbl-main tbody tr:not(.group)"
    first, other = f"{rows} th:first-child", f"{rows} td:not(:first-child)"
    assert set(browser.evaluate(style.format(first, "textAlign"))) in ({"left"}, {"start"})
    assert set(browser.evaluate(style.format(other, "textAlign"))) == {"right"}
    assert set(browser.evaluate(style.format("#tbl-main caption", "textAlign"))) == {"left"}
    assert set(browser.evaluate(style.format("#tbl-main td", "boxShadow"))) == {"none"}, "no stripes"
    assert set(browser.evaluate(style.format("#tbl-main td", "backgroundColor"))) == {"rgba(0, 0, 0, 0)"}


def test_references_are_the_same_in_both(served: Served, browser):
    """Chapters by their titles on the first page, numbers elsewhere; no letter or sign in a notebook's figure."""
    browser.open(f"{served.address}/index.html")
    links = browser.evaluate("[...document.querySelectorAll('main li a')].map(a => [a.innerText, a.href])")
    chapters = {href.removeprefix(f"{served.address}/").split("#")[0]: said for said, href in links}
    assert chapters["why.html"] == "Why it transfers" and chapters["methods.html"] == "Methods"
    for label, number in CHAPTER_OF.items():
        browser.open(f"{served.address}/{'why' if label == 'tbl-probe' else 'results-detox'}.html")
        assert text_of(browser, f"document.querySelector('#{label} :is(figcaption, caption)')").startswith(f"{number}:")
    browser.open(f"{served.address}/notebooks/evaluate.html")
    figure = "document.querySelector('#fig-toxicity-evaluate figcaption')"
    assert text_of(browser, figure).startswith("Figure 1:")
    assert browser.evaluate("document.querySelector('h1.title').innerText") == "Evaluation"
    browser.open(f"{served.address}/methods.html")
    assert "de Wynter et al." in text_of(browser, "document.querySelector('main')")
    browser.open(f"{served.address}/references.html")
    assert re.search(r"^von Werra, Leandro", text_of(browser, "document.querySelector('#refs')"), re.MULTILINE)


def test_the_pdf_has_the_chapters_and_none_of_the_covered_texts(served: Served, browser):
    if served.renderer != "quarto":
        pytest.skip("the preview renderer makes no PDF")
    browser.open(f"{served.address}/index.html")
    assert browser.evaluate("!!document.querySelector('#quarto-sidebar a[href$=\"report.pdf\"]')")
    file = served.folder / "report.pdf"
    assert file.read_bytes().startswith(b"%PDF-")
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext to read the PDF with: install Debian's poppler-utils")
    text = subprocess.run(["pdftotext", "-layout", file, "-"], capture_output=True, text=True, check=True).stdout
    words = " ".join(text.replace("\u00a0", " ").split())
    assert synthetic.MARKER not in words
    assert "Content warning" in words and "texts withheld, which may be offensive" in words
    assert all(f"{number}:" in words for number in CHAPTER_OF.values()), "the numbers are those of the site"
    assert "0.67 to 0.76" in words and "de Wynter" in words and "?" + "?" not in words
    configuration = yaml.safe_load((synthetic.CHECKOUT / "_quarto.yml").read_text())
    assert configuration["book"]["title"].split(":")[0] in words
