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

from notebook_cells import definitions, run_cell
from polydetox.core import artifacts, paths
from polydetox.report.links import FILES, Links
from polydetox.report.masking import masked_table
from polydetox.report.notebooks import labelled
from polydetox.results.stages import StageRun
from polydetox.results.tables import Cell, Group, PaperTable, number
from tiny import CHECKOUT

RUN = StageRun("evaluate", paths.runs() / "offline/evaluate", "m", notebook="notebooks/evaluation/evaluate.ipynb")
CODE = "notebooks/evaluation/evaluate.ipynb"


def cited(remote: str, tmp_path, monkeypatch) -> dict[str, str]:
    """What the summary notebook of a checkout with a remote says of it, and the BibTeX."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "config", "remote.origin.url", remote], check=True)
    (tmp_path / "CITATION.cff").write_bytes((CHECKOUT / "CITATION.cff").read_bytes())
    for module in (paths, artifacts):
        monkeypatch.setattr(module, "root", lambda: tmp_path)
    manifests = pd.DataFrame({"finished": ["2026-01-30T23:00:00Z", None, "2026-01-31T01:00:00Z"]})
    return run_cell("summary_run", "citation", **vars(definitions("summary_run")) | {"manifests": manifests})


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://host.example/owner/name.git", "https://host.example/owner/name"),
        ("https://user:secret@host.example/owner/name", "https://host.example/owner/name"),
        ("git@host.example:owner/name.git", ""),
        ("/srv/name.git", ""),
    ],
)
def test_the_citation_is_that_of_its_file_with_the_address_of_the_repository(tmp_path, monkeypatch, remote, address):
    found = cited(remote, tmp_path, monkeypatch)
    assert found["repository"] == address and found["date"] == "2026-01-31"
    assert "secret" not in found["bibtex"]
    (entry,) = parse_string(found["bibtex"], "bibtex").entries.values()
    said = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text("utf-8"))
    fields = [entry.fields.get(name) for name in ("title", "version", "license", "year", "url")]
    assert fields == [f"{{{said['title']}}}", said["version"], said["license"], "2026", address or None]
    assert [str(person) for person in entry.persons["author"]] == ["{The polydetox authors}"]


def test_the_citation_has_no_address_without_git_and_never_that_of_another_repository(tmp_path, monkeypatch):
    (other := tmp_path / "other").mkdir()
    (own := tmp_path / "own").mkdir()
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    subprocess.run(["git", "-C", str(other), "config", "remote.origin.url", "https://host.example/o/other"], check=True)
    with monkeypatch.context() as hook:  # as within a hook of another repository
        hook.setenv("GIT_DIR", str(other / ".git"))
        monkeypatch.setattr(artifacts, "root", lambda: own)
        assert artifacts.origin() == ""
    found = cited("https://host.example/o/own", own, monkeypatch)
    assert found["repository"] == "https://host.example/o/own"
    monkeypatch.setenv("PATH", str(own))
    names = {name: value for name, value in found.items() if name != "repository"}
    assert run_cell("summary_run", "citation", **names)["repository"] == ""


@pytest.mark.parametrize(
    ("address", "commit", "shown"),
    [
        ("https://host.example/o/n", "0123456789abcdef+",
         f'<a href="https://host.example/o/n/blob/0123456789abcdef/{CODE}">{CODE} at 0123456789</a>'),
        ("none", "0123456789abcdef", f"{CODE} at 0123456789"),
        ("https://host.example/o/n", None, CODE),
    ],
)  # fmt: skip
def test_code_is_linked_at_its_commit_where_the_repository_has_an_address(tmp_path, address, commit, shown):
    found = Links(tmp_path, {}, {"run_repository": address})
    line = found.of_run("x", RUN, [], {"git_commit": commit})
    assert line.endswith(f" · Code: {shown}</p>\n```")
    assert "<code>polydetox open runs/offline/evaluate</code>" in line


def test_data_leave_out_columns_of_text_and_keep_numbers_of_the_same_name(tmp_path):
    texts = pd.DataFrame({"language": ["de"], "prompt": ["secret"], "continuation": ["secret"], "tokens": [["secret"]],
                          "before": [0.5], "after": ["secret"], "gloss": ["secret"]})  # fmt: skip
    run = StageRun("summary_x", tmp_path, "Report", notebook=CODE)
    texts.to_parquet(tmp_path / "kept.parquet")
    (tmp_path / "manifest.json").write_text("{}")
    found = Links(tmp_path, {"x": run}, {})
    line = found.of_figure("x", "fig-a", new_code_cell("#| label: fig-a\n#| data: kept\nplot()"))
    assert '<a href="notebooks/summary-x.html#fig-a-summary-x">Notebook</a>' in line
    assert '<a href="files/fig-a.csv" download>Data (CSV)</a>' in line
    assert (tmp_path / FILES / "fig-a.csv").read_text() == "language,before\nde,0.5\n"
    assert "Data" not in found.of_figure("x", "fig-b", new_code_cell("#| data: lost\nplot()")), "of a run of before"


def test_a_table_as_data_has_its_groups_and_headings():
    table = PaperTable(
        ["Language", "EMT", "Drop", "Note"],
        [Group("This run", [["German", number(0.5, 2, 0.4, 0.6), number(-1234.5, 1), "a, b"]]),
         Group(None, [["English", number(float("nan"), 2), Cell(""), "c"]])],
        [("", 1), ("Of both", 2)],
    )  # fmt: skip
    assert table._repr_mimebundle_()["text/csv"].splitlines() == [
        "group,Language,Of both: EMT,Of both: Drop,Note",
        'This run,German,0.50 (0.40 to 0.60),"-1,234.5","a, b"',
        ",English,not run,,c",
    ]


def test_a_notebook_to_download_keeps_its_outputs_but_covered_texts_and_the_place_of_the_run(tmp_path):
    covered = masked_table(pd.DataFrame({"prompt": ["secret"], "toxicity": [0.5]}), "de")
    cells = [
        new_code_cell('lang = "de"\noutput_folder = "runs/x"\nparts = "runs/y"\nn = 3',
                      metadata={"tags": ["injected-parameters"]}),
        new_code_cell("show()", outputs=[new_output("display_data", data=covered._repr_mimebundle_())],
                      metadata={"papermill": {"duration": 1.0}}),
        new_code_cell("1", outputs=[new_output("stream", text="24 prompts")]),
    ]  # fmt: skip
    line = Links(tmp_path, {}, {}).of_run("evaluate-m-de", RUN, cells, {})
    assert '<a href="../files/evaluate-m-de.ipynb" download>Download</a>' in line
    written = nbformat.read(tmp_path / FILES / "evaluate-m-de.ipynb", as_version=4)
    nbformat.validate(written)
    parameters, shown, printed = written.cells
    assert parameters.source == 'lang = "de"\nn = 3' and parameters.metadata.tags == ["injected-parameters"]
    assert "secret" not in str(written) and "1 text withheld" in shown.outputs[0].data["text/plain"]
    assert shown.metadata == {"tags": []} and printed.outputs[0].text == "24 prompts"
    assert "secret" in cells[1].outputs[0].data["text/html"], "the page still covers it"


@pytest.mark.parametrize("file", sorted((CHECKOUT / "notebooks").rglob("summary_*.ipynb")), ids=lambda file: file.stem)
def test_every_figure_of_results_names_a_table_that_its_notebook_writes(file):
    cells = nbformat.read(file, as_version=4).cells
    source = "\n".join(cell.source for cell in cells)
    schematic = {"fig-control-schedules", "fig-perplexity-distribution"}  # no results; each continuation's score
    for label, cell in labelled(cells).items():
        if (named := re.search(r"^#\| data: (\w+)$", cell.source, re.MULTILINE)) or label.startswith("fig-"):
            assert label in schematic or re.search(rf'"{named[1]}(\.parquet)?"', source), label
