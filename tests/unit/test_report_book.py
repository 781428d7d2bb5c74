"""Cleaning of executed notebooks, and the preview renderer's own pass: numbers, references, citations, math."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from recorded import SECTIONS, recorded

from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.report import assemble, extensions, notebooks, preview, rendering
from polydetox.report.citations import Bibliography


def cells_of(folder: Path, *cells: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """What a page shows of an executed notebook."""
    metadata = {"papermill": {"start_time": "2026-01-01T10:00:00"}}
    nbformat.write(new_notebook(metadata=metadata, cells=list(cells)), folder / "notebook.ipynb")
    return notebooks.read_cells(folder / "notebook.ipynb")


# --- cleaning ---------------------------------------------------------------------------------------------------


def test_cleaning_removes_what_papermill_and_the_machine_left(tmp_path):
    folder = paths.root() / "runs" / "x"
    cell = new_code_cell(
        f'show("{folder}/out.parquet")',
        execution_count=1,
        metadata={
            "papermill": {"duration": 1},
            "execution": {"iopub.status.idle": "2026"},
        },
        outputs=[
            new_output("stream", name="stderr", text="warning"),
            new_output(
                "stream", name="stdout", text=f"\x1b[31mread\x1b[0m {folder}/in.csv\n10%\r100%\n/tmp/abc/def.log\n"
            ),
            new_output("display_data", data={"text/plain": f"at {paths.root()}", "application/vnd.widget": "x"}),
            new_output("display_data", data={"application/vnd.widget": "x"}),
            new_output("display_data", data={"text/html": "<progress value='48'></progress>", "text/plain": "x"}),
        ],
    )
    (result,) = cells_of(tmp_path, cell)
    assert result.source == 'show("runs/x/out.parquet")'
    assert [output.output_type for output in result.outputs] == ["stream", "display_data"]
    assert result.outputs[0].text == "read runs/x/in.csv\n100%\ndef.log\n"
    assert result.outputs[1].data == {"text/plain": "at ."}


@pytest.mark.parametrize("tag", ["parameters", "injected-parameters", "remove-cell"])
def test_parameter_cells_and_cells_to_remove_are_not_shown(tmp_path, tag):
    cells = [new_code_cell("lang = 'xx'", execution_count=1, metadata={"tags": [tag]}), new_markdown_cell("# x")]
    assert [cell.source for cell in notebooks.shown(cells_of(tmp_path, *cells))] == ["# x"]


@pytest.mark.parametrize("text", ["https://a.org/home/x/y", "a/b/c", "1/2", "</div></div>", "and/or", "/x"])
def test_what_is_no_path_of_this_machine_stays(text):
    assert notebooks.without_machine_paths(text) == text


def test_figures_lose_their_date(tmp_path):
    prologue = '<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "x" "y">\n'
    figure = f"{prologue}<svg><metadata><dc:date>2026</dc:date></metadata><g/></svg>"
    cell = new_code_cell(
        "plot()", execution_count=1, outputs=[new_output("display_data", data={"image/svg+xml": figure})]
    )
    assert cells_of(tmp_path, cell)[0].outputs[0].data["image/svg+xml"] == "<svg><g/></svg>"


def test_an_unexecuted_or_failed_notebook_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"notebook.ipynb: cell 2 was not executed"):
        cells_of(tmp_path, new_markdown_cell("# x"), new_code_cell("1 + 1"))
    failed = new_output("error", ename="ValueError", evalue="no", traceback=[])
    with pytest.raises(UserError, match=r"cell 1 ended with ValueError"):
        cells_of(tmp_path, new_code_cell("1 / 0", execution_count=1, outputs=[failed]))
    cells_of(tmp_path, new_code_cell("  "))


def test_a_missing_or_broken_notebook_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a.ipynb: no such notebook"):
        notebooks.read_notebook(tmp_path / "a.ipynb")
    (tmp_path / "b.ipynb").write_text("{")
    with pytest.raises(UserError, match=r"b.ipynb: not a notebook"):
        notebooks.read_notebook(tmp_path / "b.ipynb")


# --- a small book -----------------------------------------------------------------------------------------------

BIBLIOGRAPHY = """
@article{one2020a, author = {One, Ann and Two, Bo}, title = {First {TITLE}}, year = {2020}, journal = {J}, volume = {3}}
@misc{three2021, author = {Three, Cy and Four, Di and Five, E. and Six, F.}, title = {Second}, year = {2021}}
@misc{one2020b, author = {One, Ann and Two, Bo}, title = {Third}, year = {2020}}
@misc{team, author = {{The Team}}, title = {Fourth}, year = {2022}}
@misc{others, author = {Se{\\~n}or, Gil and others}, title = {Fifth?}, year = {2023}}
"""
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


def figure_cell(label: str) -> nbformat.NotebookNode:
    source = f'#| label: {label}\n#| fig-cap: "Caption of {label}"\n#| fig-alt: "Alt"\nplot()'
    output = new_output("display_data", data={"image/svg+xml": SVG, "text/plain": "x"})
    return new_code_cell(source, execution_count=1, outputs=[output])


@pytest.fixture
def book(tmp_path) -> Path:
    """Two numbered chapters, one without a number, and an appendix."""
    folder = tmp_path / "book"
    files = {
        "index.qmd": "# Start {.unnumbered}\n\n{{< var said >}} See @sec-two and @fig-b.\n",
        "one.qmd": "# One {#sec-one}\n\n## First\n\nInline $a_1^*$ costs \\$5, `$x$ @fig-a` stays.\n\n"
        "$$\nE = mc^2\n$$ {#eq-e}\n\n## Second {#sec-second}\n\nBy @eq-e [@one2020a; @three2021, p. 3].\n\n"
        "```\n@fig-nothing {{< var x >}}\n```\n",
        "part/two.qmd": "# Two {#sec-two}\n\n{{< embed summary/s.ipynb#fig-a >}}\n\n"
        "{{< embed summary/s.ipynb#fig-b >}}\n\n@one2020b agree with @sec-second, @sec-one and @fig-a.\n",
        "references.qmd": "# References {.unnumbered}\n\n::: {#refs}\n:::\n",
        "notebooks/n.qmd": "# N {.unnumbered}\n\n```{.python}\nplot()\n```\n\n:::: {#fig-n}\n\n"
        '::: {.run data-run="a"}\n\n![](figures/a.svg){.figure-img fig-alt="Alt"}\n\n'
        ":::\n\nCaption of fig-n\n\n::::\n\nSee @fig-n.\n",
        "notebooks/figures/a.svg": SVG,
        "references.bib": BIBLIOGRAPHY,
        "_variables.yml": "said: Hello *there*.\n",
        "_quarto.yml": yaml.safe_dump({
            "project": {"type": "book"},
            "book": {"title": "A book", "subtitle": "of tests",
                     "chapters": ["index.qmd", {"part": "P", "chapters": ["one.qmd", "part/two.qmd"]},
                                  "references.qmd"],
                     "appendices": [{"part": "M", "chapters": ["notebooks/n.qmd"]}]},
            "format": {"html": {"theme": "default", "toc": True}},
        }),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    cells = {label: figure_cell(label) for label in ("fig-a", "fig-b")}
    for page in sorted(folder.rglob("*.qmd")):
        page.write_text(assemble.embed(page, {"s": cells}))
    return folder


def page_text(book: Path, source: str) -> str:
    loaded = preview.Book(book)
    page = next(page for page in loaded.pages if page.source == source)
    return preview.Writer(loaded, page).text()


def test_numbers_run_by_chapter_and_references_cross_chapters(book):
    targets = {label: (page.source, said) for label, (page, said) in preview.Book(book).targets.items() if label}
    assert targets == {
        "sec-one": ("one.qmd", "Chapter 1"), "sec-second": ("one.qmd", "Section 1.2"),
        "eq-e": ("one.qmd", "Equation 1.1"), "sec-two": ("part/two.qmd", "Chapter 2"),
        "fig-a": ("part/two.qmd", "Figure 2.1"), "fig-b": ("part/two.qmd", "Figure 2.2"),
        "fig-n": ("notebooks/n.qmd", "Figure 1"),
    }  # fmt: skip
    first = page_text(book, "index.qmd")
    assert "[Chapter\N{NO-BREAK SPACE}2](part/two.qmd#sec-two){.quarto-xref}" in first
    assert "[Figure\N{NO-BREAK SPACE}2.2](part/two.qmd#fig-b){.quarto-xref}" in first
    assert "Hello *there*." in first and "This is a preview" in first and "title: A book" in first
    second = page_text(book, "part/two.qmd")
    assert "](../one.qmd#sec-second)" in second and "](#fig-a)" in second
    assert '![](figures/fig-a-1.svg){.figure-img fig-alt="Alt"}' in second
    assert (book / "part/figures/fig-b-1.svg").read_text() == SVG
    assert "Figure\N{NO-BREAK SPACE}2.1:</span> Caption of fig-a" in second and "plot()" not in second
    appendix = page_text(book, "notebooks/n.qmd")
    assert "plot()" in appendix and "![](figures/a.svg)" in appendix
    assert "Figure\N{NO-BREAK SPACE}1:</span> Caption of fig-n" in appendix and "](#fig-n)" in appendix


def test_math_becomes_mathml_and_code_is_left_alone(book):
    text = page_text(book, "one.qmd")
    assert text.count("<math") == 2 and 'id="eq-e"' in text and "(1.1)" in text
    assert "costs \\$5, `$x$ @fig-a` stays" in text
    assert "@fig-nothing {{< var x >}}" in text
    assert "*" not in text.split("Inline ")[1].split(" costs")[0], "an asterisk of a formula would become emphasis"
    assert (
        "## [1.1]{.header-section-number} First" in text
        and "## [1.2]{.header-section-number} Second {#sec-second}" in text
    )


@pytest.mark.parametrize("formula", ["\\left( a", "a_b_c", "\\unknown{a}"])
def test_a_formula_that_cannot_be_read_names_its_page(book, formula):
    (book / "one.qmd").write_text(f"# One\n\n$$\n{formula}\n$$\n")
    with pytest.raises(UserError, match=r"one.qmd: the formula .* cannot be read"):
        page_text(book, "one.qmd")


def test_citations_name_authors_and_years(book):
    cited = "[@one2020a; see @three2021, p. 3] [-@team] @others me@team.org [@sec-two; @team]\n\nAs @one2020b say.\n"
    (book / "one.qmd").write_text(f"# One\n\n{cited}")
    text = page_text(book, "one.qmd").replace("{.citation}", "")
    assert "([One and Two 2020](references.qmd#ref-one2020a); see [Three et al. 2021](" in text
    assert ", p. 3) ([2022](references.qmd#ref-team)) Señor et al. ([2023](" in text
    assert " me@team.org ([Chapter" in text and "; [The Team 2022](" in text
    assert "As One and Two ([2020](" in text


def test_the_bibliography_lists_what_is_cited_by_author_and_year(tmp_path):
    (tmp_path / "references.bib").write_text(BIBLIOGRAPHY)
    bibliography = Bibliography(tmp_path / "references.bib")
    for key in ("others", "team", "one2020b", "one2020a"):
        bibliography.cite(key)
    listed = bibliography.to_html()
    assert listed.count('class="csl-entry"') == 4 and "ref-three2021" not in listed
    assert "One, Ann and Two, Bo.\nFirst" in listed and "<em>J</em>" in listed and "2020" in listed
    assert "or, Gil and others" in listed and "Fifth?\n2023." in listed
    places = [listed.index(f"ref-{key}") for key in ("one2020a", "one2020b", "others", "team")]
    assert places == sorted(places)


def test_the_small_book_renders(book, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    preview.build(book, site, "It was asked for.")
    rendering.check_site(site)
    pages = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    assert pages == ["index.html", "notebooks/n.html", "one.html", "part/two.html", "references.html"]
    appendix = (site / "notebooks/n.html").read_text()
    assert (
        '<div class="run" data-run="a">' in appendix and 'src="figures/a.svg"' in appendix and 'alt="Alt"' in appendix
    )
    assert (site / "notebooks/figures/a.svg").read_text() == SVG
    first = (site / "index.html").read_text()
    assert "This is a preview" in first and "It was asked for." in first
    assert 'href="part/two.html#fig-b"' in first and "Hello <em>there</em>." in first
    assert "smalldocs-search" not in first and not (site / "search.json").exists(), "a folder's pages cannot fetch it"
    listed = (site / "references.html").read_text()
    assert 'id="ref-three2021"' in listed and "ref-team" not in listed, "only what is cited is listed"
    for page in site.rglob("*.html"):
        assert "https://cdn" not in page.read_text()


# --- what Quarto would only warn of -----------------------------------------------------------------------------


def test_the_small_book_passes_the_checks(book):
    assemble.check(book)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("one.qmd", "# One\n\nSee @fig-c.\n", r"one.qmd: reference 'fig-c' leads nowhere"),
        ("one.qmd", "# One\n\nSee @one2020c.\n", r"citation 'one2020c' leads nowhere; did you mean 'one2020b'"),
        ("one.qmd", "# One\n\n{{< var sad >}}\n", r"variable 'sad' leads nowhere; did you mean 'said'"),
        ("one.qmd", "# One {#sec-two}\n", r"part/two.qmd: label 'sec-two' is defined in one.qmd already"),
    ],
)
def test_what_leads_nowhere_is_an_error(book, file, text, said):
    (book / file).write_text(text)
    with pytest.raises(UserError, match=said):
        assemble.check(book)


def write_variables(section: str, **content: str) -> None:
    folder = paths.profile_run("offline") / "summary" / section
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "variables.json").write_text(json.dumps(content))


def test_variables_are_those_of_every_summary_notebook(book, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    write_variables("detox", said="It falls.")
    write_variables("run", title="Tiny")
    assert assemble.read_variables(recorded("offline"), book) == {"said": "It falls.", "title": "Tiny"}


def test_a_variable_of_a_notebook_that_was_not_run_says_so(book, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    write_variables("detox")
    (tmp_path / "notebooks").mkdir()
    for section in SECTIONS:
        cell = new_code_cell(f'write_json(file, {{"of_{section}": text}})')
        nbformat.write(new_notebook(cells=[cell]), tmp_path / f"notebooks/summary_{section}.ipynb")
    results = recorded("offline")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    (book / "one.qmd").write_text("# One\n\n{{< var of_fluency >}} {{< var of_detox >}} {{< var wrong >}}\n")
    assert assemble.read_variables(results, book) == {"of_fluency": "Not run yet."}


def test_a_variable_that_two_notebooks_write_is_an_error(book, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    write_variables("detox", said="a")
    write_variables("fluency", said="b")
    with pytest.raises(UserError, match=r"summary_fluency.ipynb: variable 'said' is written by .*summary_detox.ipynb"):
        assemble.read_variables(recorded("offline"), book)


def test_an_embed_of_a_notebook_that_was_not_run_says_so(tmp_path):
    embeds = "".join(f"\n{{{{< embed summary/detox.ipynb#{label} >}}}}\n" for label in ("fig-a", "tbl-a"))
    (tmp_path / "page.qmd").write_text(f"See @fig-a and @fig-x.\n{embeds}")
    resolved = assemble.embed(tmp_path / "page.qmd", {})
    assert "embed" not in resolved and resolved.count("summary_detox.ipynb`, which was not run") == 1, "said once"
    assert "See (not run) and @fig-x." in resolved


def book_of_two(folder):
    """A chapter with two sections, another chapter, a first page that leads to both, and a card for all but one."""
    (folder / "one.qmd").write_text(
        "# One {#sec-one}\n\n## Kept {#sec-kept}\n\n{{< var kept >}}\n\n## Cut {#sec-cut}\n\n{{< var cut >}}\n\n"
        "{{< embed summary/s.ipynb#fig-cut >}}\n")  # fmt: skip
    (folder / "two.qmd").write_text("# Two {#sec-two}\n\n{{< var cut >}}\n")
    (folder / "index.qmd").write_text(
        "# Abstract\n\nSee @sec-cut, @fig-cut and [two](two.qmd#sec-two).\n\n- [One](one.qmd#sec-one)\n"
        "- [Two](two.qmd#sec-two): asks\n  more.\n- [More](extensions.qmd#sec-extensions)\n")  # fmt: skip
    cards = [("kept", "kept"), ("cut", "cut"), ("two", "cut")]
    (folder / "extensions.qmd").write_text("# Extensions {#sec-extensions}\n" + "".join(
        f"\n## A card {{#sec-{name}}}\n\nWhy?\n\n::: {{.snapshot}}\n{{{{< var {said} >}}}}\n:::\n"
        for name, said in cards))  # fmt: skip


def test_what_was_not_run_becomes_a_card_and_references_follow(tmp_path):
    book_of_two(tmp_path)
    assert extensions.keep_what_ran(tmp_path, {"kept": "It falls.", "cut": "Not run."}) == {"two.qmd"}
    pages = {page.name: page.read_text() for page in tmp_path.glob("*.qmd")}
    assert "{#sec-kept}" in pages["one.qmd"] and "sec-cut" not in pages["one.qmd"]
    assert re.findall(r"\{#(sec-\w+)\}", pages["extensions.qmd"]) == ["sec-extensions", "sec-cut", "sec-two"]
    assert "snapshot" not in pages["extensions.qmd"] and "{{< var" not in pages["extensions.qmd"]
    assert "See @sec-cut, (not run) and [two](extensions.qmd#sec-two)." in pages["index.qmd"]
    assert pages["index.qmd"].endswith("- [One](one.qmd#sec-one)\n- [More](extensions.qmd#sec-extensions)\n")


def test_a_run_of_everything_has_no_extensions(tmp_path):
    book_of_two(tmp_path)
    assert extensions.keep_what_ran(tmp_path, {"kept": "It falls.", "cut": "It rises."}) == {"extensions.qmd"}
    assert "More" not in (tmp_path / "index.qmd").read_text() and "{#sec-cut}" in (tmp_path / "one.qmd").read_text()


def test_a_card_shows_its_snapshot_with_its_origin(tmp_path, monkeypatch):
    (tmp_path / "book/snapshots").mkdir(parents=True)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    made = {"profile": "world", "model": "Tiny", "date": "2026-11-29", "commit": "abc", "template": "{{< var cut >}}\n"}
    made["text"] = "It rises. ![](snapshots/figures/fig-cut-1.svg)"
    (tmp_path / "book/snapshots/sec-cut.json").write_text(json.dumps(made))
    book_of_two(tmp_path)
    extensions.keep_what_ran(tmp_path, {"kept": "It falls.", "cut": "Not run."})
    shown = (tmp_path / "extensions.qmd").read_text()
    assert "It rises. ![](snapshots/figures/fig-cut-1.svg)" in shown
    assert "*From the last full run: Tiny, profile `world`, 2026-11-29, commit abc.*" in shown


def stale(book):
    """Why each committed snapshot no longer fits the cards of *Extensions*."""
    cards = dict(extensions.CARD.findall((book / "extensions.qmd").read_text()))
    found = []
    for file in (book / "snapshots").glob("*.json"):
        made = json.loads(file.read_text())
        if set(made) != {"profile", "model", "date", "commit", "template", "text"}:
            found.append(f"{file.name}: other fields")
        elif made["template"] != cards.get(file.stem):
            found.append(f"{file.name}: made for another card")
        pictures = re.findall(r"\]\((snapshots/[^)]+)\)", made.get("text", ""))
        found += [f"{file.name}: no {picture}" for picture in pictures if not (book / picture).is_file()]  # fmt: skip
    return found


def test_the_committed_snapshots_fit_the_cards(tmp_path):
    assert stale(paths.root() / "book") == []
    book_of_two(tmp_path)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots/sec-cut.json").write_text('{"text": "![](snapshots/figures/a.svg)"}')
    assert stale(tmp_path) == ["sec-cut.json: other fields", "sec-cut.json: no snapshots/figures/a.svg"]


def test_every_card_has_its_place_and_its_command():
    book = paths.root() / "book"
    cards = [label for label, _ in extensions.CARD.findall((book / "extensions.qmd").read_text())]
    labels = re.findall(
        r"\{#(sec-[\w-]+)\}", "".join(p.read_text() for p in book.glob("*.qmd") if p.stem != "extensions")
    )
    assert cards and set(cards) <= set(labels)
    text = (book / "extensions.qmd").read_text()
    commands = re.findall(r"make paper PROFILE=([\w-]+)`", text)
    # Labels by people are no profile's: a key of any profile asks for their sheets.
    assert "`labels: {}` in a profile" in text
    without = [part.split("}")[0] for part in re.split(r"\{#(?=sec-)", text)[1:] if "make paper PROFILE=" not in part]
    assert set(without) & set(cards) == {"sec-labels"}
    assert all((paths.root() / f"params/profiles/{profile}.yaml").is_file() for profile in commands)


@pytest.mark.parametrize(("label", "said"), [("fig-b", "did you mean 'fig-a'"), ("fig-a", "a cell without output")])
def test_an_embed_that_a_notebook_cannot_fill_is_an_error(tmp_path, label, said):
    cell = new_code_cell("#| label: fig-a\nplot()", execution_count=1)
    (tmp_path / "page.qmd").write_text(f"{{{{< embed summary/s.ipynb#{label} >}}}}")
    with pytest.raises(UserError, match=rf"book/page.qmd: embeds summary/s.ipynb#{label}.*{said}"):
        assemble.embed(tmp_path / "page.qmd", {"s": {"fig-a": cell}})


def test_html_that_other_formats_withhold_stands_before_what_they_show():
    output = new_output("display_data", data={"text/html": "<b>x</b>", "text/markdown": "*y*", "text/plain": "z"})
    text = notebooks.outputs_text(new_code_cell("show()", outputs=[output]), lambda content, suffix: "")
    assert text.endswith('</div>\n```\n\n::: {.content-hidden when-format="html"}\n*y*\n:::')


@pytest.mark.parametrize("left", ["<strong>?var:x</strong>", "<b>?@fig-a</b>", "{{< var x >}}", "<p>see @tbl-x</p>"])
def test_a_site_with_something_unresolved_is_refused(tmp_path, left):
    (tmp_path / "index.html").write_text("<p>fine</p>")
    (tmp_path / "page.html").write_text(f"<p>{left}</p>")
    with pytest.raises(UserError, match=r"page.html: .* was not resolved"):
        rendering.check_site(tmp_path)


def test_a_site_with_a_path_of_this_machine_is_refused(tmp_path):
    (tmp_path / "index.html").write_text(f"<p>{paths.root()}/x</p>")
    with pytest.raises(UserError, match="of this machine"):
        rendering.check_site(tmp_path)
