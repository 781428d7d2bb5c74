"""What pages link: code at its commit, data as CSV without offensive text, notebooks to download, how to cite."""

from __future__ import annotations

import re
import subprocess

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_output
from pybtex.database import parse_string

from polydetox.core import artifacts, paths
from polydetox.core.artifacts import repository
from polydetox.report import links
from polydetox.report.masking import masked_table, without_texts
from polydetox.report.notebooks import labelled
from polydetox.results.stages import StageRun
from polydetox.results.tables import Cell, Group, PaperTable, number
from tiny import CHECKOUT

RUN = StageRun("evaluate", paths.runs() / "offline/evaluate", "m", notebook="notebooks/evaluation/evaluate.ipynb")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Sets the address of the checkout's remote."""
    monkeypatch.setattr(artifacts, "root", lambda: tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    def set_address(address: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "config", "remote.origin.url", address], check=True)

    return set_address


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host.example/owner/name.git", "https://host.example/owner/name"),
        ("https://user:secret@host.example/owner/name", "https://host.example/owner/name"),
        ("git@host.example:owner/name.git", ""),
        ("/srv/name.git", ""),
    ],
)
def test_code_is_linked_at_its_commit_where_the_repository_has_an_address(remote, address, shown):
    remote(address)
    assert repository() == shown
    said = "Code: notebooks/evaluation/evaluate.ipynb at 0123456789"
    link = f'<a href="{shown}/blob/0123456789abcdef/notebooks/evaluation/evaluate.ipynb">{said}</a>'
    assert links.code(RUN, "0123456789abcdef+") == (link if shown else said)
    assert links.code(RUN, None) == said.removesuffix(" at 0123456789")
    assert "secret" not in links.citation("2026-01-31")[1]


def test_a_checkout_that_is_no_repository_has_no_address(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "root", lambda: tmp_path)
    assert repository() == ""


def test_the_citation_is_the_one_of_the_citation_file():
    cited = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text("utf-8"))
    said, bibtex = links.citation("2026-01-31")
    (entry,) = parse_string(bibtex, "bibtex").entries.values()
    fields = (entry.fields["title"], entry.fields["version"], entry.fields["license"], entry.fields["year"])
    assert fields == (f"{{{cited['title']}}}", cited["version"], cited["license"], "2026")
    assert [str(person) for person in entry.persons["author"]] == ["{The polydetox authors}"]
    assert said == {"authors": "The polydetox authors", "licence": "MIT", "run_date": "2026-01-31"}
    assert links.citation("")[0]["run_date"] == "Not run." and "year" not in links.citation("")[1]


def test_columns_of_text_are_left_out_and_numbers_of_the_same_name_stay():
    texts = pd.DataFrame({"language": ["de"], "prompt": ["secret"], "continuation": ["secret"], "tokens": [["secret"]],
                          "before": [0.5], "after": ["secret"], "gloss": ["secret"]})  # fmt: skip
    assert without_texts(texts).to_csv(index=False) == "language,before\nde,0.5\n"


def test_a_table_as_data_has_its_groups_and_its_intervals_in_columns_of_their_own():
    table = PaperTable(
        ["Language", "EMT", "Drop", "Note"],
        [Group("This run", [["German", number(0.5, 2, 0.4, 0.6), number(-1234.5, 1), "a, b"]]),
         Group(None, [["English", number(float("nan"), 2), Cell(""), "c"]])],
        [("", 1), ("Of both", 2)],
    )  # fmt: skip
    assert table._repr_mimebundle_()["text/csv"].splitlines() == [
        "group,Language,Of both: EMT,Of both: EMT interval,Of both: Drop,Note",
        'This run,German,0.50,0.40 to 0.60,-1234.5,"a, b"',
        ",English,not run,,,c",
    ]


def test_a_notebook_to_download_keeps_its_outputs_but_covered_texts_and_the_place_of_the_run(tmp_path):
    (tmp_path / links.FILES).mkdir()
    covered = masked_table(pd.DataFrame({"prompt": ["secret"], "toxicity": [0.5]}), "de")
    cells = [
        new_code_cell('lang = "de"\noutput_folder = "runs/x"\nn = 3', metadata={"tags": ["injected-parameters"]}),
        new_code_cell("show()", outputs=[new_output("display_data", data=covered._repr_mimebundle_())],
                      metadata={"papermill": {"duration": 1.0}}),
        new_code_cell("1", outputs=[new_output("stream", text="24 prompts")]),
    ]  # fmt: skip
    link = links.write_notebook(tmp_path, "evaluate-m-de", cells)
    assert link == '<a href="../files/evaluate-m-de.ipynb" download>Download</a>'
    written = nbformat.read(tmp_path / links.FILES / "evaluate-m-de.ipynb", as_version=4)
    nbformat.validate(written)
    parameters, shown, printed = written.cells
    assert parameters.source == 'lang = "de"\nn = 3' and parameters.metadata.tags == ["injected-parameters"]
    assert "secret" not in str(written) and "1 text withheld" in shown.outputs[0].data["text/plain"]
    assert shown.metadata == {} and printed.outputs[0].text == "24 prompts"
    assert "secret" in cells[1].outputs[0].data["text/html"], "the page still covers it"


@pytest.mark.parametrize("file", sorted((CHECKOUT / "notebooks").rglob("summary_*.ipynb")), ids=lambda file: file.stem)
def test_every_figure_of_results_names_a_table_that_its_notebook_writes(file):
    cells = nbformat.read(file, as_version=4).cells
    source = "\n".join(cell.source for cell in cells)
    schematic = {"fig-control-schedules", "fig-perplexity-distribution"}  # no results; each continuation's score
    for label, cell in labelled(cells).items():
        if (named := re.search(r"^#\| data: (\w+)$", cell.source, re.MULTILINE)) or label.startswith("fig-"):
            assert label in schematic or re.search(rf'"{named[1]}(\.parquet)?"', source), label
