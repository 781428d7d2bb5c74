"""What the pages link: a notebook at its commit and as a download, the data of a figure or table, how to cite."""

from __future__ import annotations

import html
import re
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from pybtex.database import BibliographyData, Entry, Person

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, read_json, read_parquet, repository
from polydetox.core.yaml_files import read_yaml
from polydetox.report.masking import COVER, without_texts
from polydetox.report.notebooks import INJECTED, cell_options, raw, without_machine_paths
from polydetox.results.stages import StageRun

FILES = "_files"  # of an assembled book; the underscore, which the site's folder lacks, lets Quarto pass it over

_OUTPUT_FOLDER = re.compile(r"^output_folder = .*\n?", re.MULTILINE)


def line(*links: str) -> str:
    """Small links below a figure or a title; none where there are none."""
    return raw(f'<p class="sources">{" · ".join(filter(None, links))}</p>')


def link(said: str, address: str) -> str:
    """A link, which downloads where it leads to a file of the site."""
    download = " download" if f"{FILES[1:]}/" in address else ""
    return f'<a href="{html.escape(address)}"{download}>{html.escape(said)}</a>'


def code(run: StageRun, commit: str | None) -> str:
    """The notebook of a run as it is committed; its name where the repository has no address or no commit."""
    file, base = paths.relative(run.notebook), repository()
    said = f"Code: {file}" + (f" at {commit[:10]}" if commit else "")
    return link(said, f"{base}/blob/{commit.rstrip('+')}/{file}") if base and commit else html.escape(said)


def opening(run: StageRun) -> str:
    """The command that opens a run's notebook in Jupyter."""
    return f"Run it: <code>polydetox open {html.escape(without_machine_paths(str(run.folder)))}</code>"


def below(folder: Path, run: StageRun, label: str, cell: NotebookNode) -> str:
    """The links of a figure or table in a chapter of the book in ``folder``; none below anything else."""
    if label.split("-")[0] not in ("fig", "tbl"):
        return ""
    page = run.stage.replace("_", "-")
    source = code(run, read_json(run.folder / MANIFEST).get("git_commit"))
    notebook, data = link("Notebook", f"notebooks/{page}.html#{label}-{page}"), _write_data(folder, run, label, cell)
    return f"\n\n{line(notebook, data, source)}"


def _write_data(folder: Path, run: StageRun, label: str, cell: NotebookNode) -> str:
    """Write the data of a figure or table of a summary notebook as CSV; returns a link, or "" where none are kept.

    They are the table that its option ``data`` names, without prompts, continuations and tokens, or what it shows.
    """
    name = f"{run.stage}-{label}.csv"
    table = run.folder / f"{cell_options(cell.source)[0].get('data')}.parquet"
    shown = [output.data["text/csv"] for output in cell.outputs if "text/csv" in output.get("data", {})]
    content = without_texts(read_parquet(table)).to_csv(index=False) if table.is_file() else "".join(shown)
    if not content:
        return ""
    (folder / FILES / name).write_text(content, "utf-8")
    return link("Data (CSV)", f"{FILES[1:]}/{name}")


def write_notebook(folder: Path, name: str, cells: list[NotebookNode]) -> str:
    """Write an executed notebook to download, its covered texts withheld, for runs of its own; returns a link."""
    kept = deepcopy(cells)
    for cell in kept:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if INJECTED in tags:
            cell.source = _OUTPUT_FOLDER.sub("", cell.source)  # a run's artefacts are not written over
        for output in cell.get("outputs", []):
            if COVER in output.get("data", {}).get("text/html", ""):
                del output.data["text/html"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=kept, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / FILES / f"{name}.ipynb")
    return link("Download", f"../{FILES[1:]}/{name}.ipynb")


def citation(date: str) -> tuple[dict[str, str], str]:
    """What ``CITATION.cff`` says for the text, with the date of a run, and as BibTeX."""
    cited = read_yaml(paths.root() / "CITATION.cff")
    names = [one.get("name") or f"{one['given-names']} {one['family-names']}" for one in cited["authors"]]
    people = [Person(f"{{{one['name']}}}" if "name" in one else name)
              for one, name in zip(cited["authors"], names, strict=True)]  # fmt: skip
    fields = {"title": f"{{{cited['title']}}}", "year": date[:4], "version": cited["version"],
              "license": cited["license"], "url": repository()}  # fmt: skip
    entry = Entry("software", {name: text for name, text in fields.items() if text}, {"author": people})
    said = {"authors": ", ".join(names), "licence": cited["license"], "run_date": date or "Not run."}
    return said, BibliographyData({"polydetox": entry}).to_string("bibtex").strip()
