"""The executed notebooks as pages of the book: one for each notebook, with a choice among its runs.

Prose and code stand there once and, below each cell, the outputs of the run that the reader chooses; without scripts,
those of all runs, each under its name.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from nbformat import NotebookNode

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, read_json
from polydetox.core.languages import LANGUAGES
from polydetox.core.parameters import notebook_file
from polydetox.report import notebooks
from polydetox.report.links import Links
from polydetox.report.masking import COVER, WARNING
from polydetox.results.collect import Results
from polydetox.results.stages import StageRun
from polydetox.results.tables import html_table

FOLDER = "notebooks"
LIST = "notebooks.qmd"
REPORT, SYNTHETIC = "Report", "Synthetic setting"  # runs of no model: summary notebooks, and many small models

_FIRST_HEADING = re.compile(r"\A\s*# .*\n*")


@dataclass(frozen=True)
class Notebook:
    """One executed run of a stage: what a reader chooses it by, and what it left."""

    run: StageRun
    name: str  # within its page, such as `gemma-3-270m-base-de`
    title: str  # `Gemma 3 270M, German, base model`
    cells: list[NotebookNode]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """The runs of one stage that were executed from the same notebook."""

    title: str  # the stage's
    slug: str  # the page is `notebooks/<slug>.qmd`
    notebooks: list[Notebook]


def write_appendices(results: Results, found: Links) -> list[str]:
    """Write a page for each notebook that was run, and the list of runs; returns the book's appendices."""
    written = list(pages(results))
    (found.book / FOLDER).mkdir(exist_ok=True)
    for page in written:
        (found.book / FOLDER / f"{page.slug}.qmd").write_text(_page_text(page, found), "utf-8")
    with (found.book / LIST).open("a", encoding="utf-8") as file:
        file.write(f"\n{_list_of_runs(results, written)}\n")
    return [LIST, *(f"{FOLDER}/{page.slug}.qmd" for page in written)]


def summary_runs(results: Results) -> dict[str, StageRun]:
    """The summary notebooks of a profile, run or not, by section."""
    return {section: StageRun(f"summary_{section}", paths.given(place), REPORT,
                              notebook=str(notebook_file(f"summary_{section}")))
            for section, place in results.record["sections"].items()}  # fmt: skip


def pages(results: Results) -> Iterator[Page]:
    """The pages of a profile's finished runs."""
    for stage, runs in groupby(_in_order(results), lambda run: run.stage):
        # Runs of an older version of a notebook, whose text or code differs, stand on a page of their own.
        versions: dict[tuple[Any, ...], list[Notebook]] = {}
        for notebook in (_read(results, run) for run in runs if run.done):
            version = tuple((cell.cell_type, cell.source) for cell in notebooks.shown(notebook.cells))
            versions.setdefault(version, []).append(notebook)
        for number, same in enumerate(versions.values(), start=1):
            title, name = _title(results, same[0].run), stage
            if number > 1:
                title, name = f"{title}, version {number}", f"{name}-{number}"
            yield Page(title, slug(name), same)


def _title(results: Results, run: StageRun) -> str:
    """The stage of a run as the report prints it; of a notebook of the report itself, the notebook's heading."""
    if run.model != REPORT:
        return results.title(run.stage)
    heading = notebooks.read_notebook(Path(run.notebook)).cells[0].source.splitlines()[0]
    return f"Summary: {heading.removeprefix('# ')}"


def _in_order(results: Results) -> list[StageRun]:
    """The runs stage by stage in the order of the report, model by model, those of a language beside one another."""
    stages, models, languages = list(results.record["stages"]), list(results.models), ["", *LANGUAGES]
    ran = sorted(results.stages, key=lambda run: (
        stages.index(run.stage), models.index(run.model) if run.model in models else -1,
        languages.index(run.language or "")))  # fmt: skip
    return [*summary_runs(results).values(), *ran]


def _read(results: Results, run: StageRun) -> Notebook:
    name = slug("-".join(filter(None, [run.model, run.variant, run.kind, run.prompt_set, run.language])))
    parts = [results.models.get(run.model), LANGUAGES.get(run.language or ""), results.subject(run)]
    cells = notebooks.read_cells(run.folder / "notebook.ipynb")
    return Notebook(run, name, ", ".join(filter(None, parts)), cells, read_json(run.folder / MANIFEST))


def _how_it_ran(manifest: Mapping[str, Any]) -> str:
    named = {name: value for name, value in manifest["parameters"].items() if value not in ("", None)}
    text = notebooks.without_machine_paths(yaml.safe_dump(named, allow_unicode=True, sort_keys=False, width=100))
    commit = f", commit `{manifest['git_commit'][:10]}`" if manifest.get("git_commit") else ""
    ran = f"It ran with seed {manifest['seed']}, {manifest['wall_seconds']} s{commit}."
    return f"{notebooks.fenced(text.rstrip(), '{.yaml}')}\n\n{ran}"


def slug(text: str) -> str:
    """A name that can be a file's and the end of a label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _list_of_runs(results: Results, written: list[Page]) -> str:
    """Every run of the profile: a table a model, a row a stage, and a row a variant where its runs are languages."""
    places = {notebook.run: f"{FOLDER}/{page.slug}.html" + f"#run-{notebook.name}" * (len(page.notebooks) > 1)
              for page in written for notebook in page.notebooks}  # fmt: skip
    rows = []
    for run in _in_order(results):
        title, about = _title(results, run), results.subject(run) if run.model != REPORT else ""
        part = results.models.get(run.model, SYNTHETIC if about else REPORT)
        said = notebooks.attribute(", ".join(filter(None, [title, about, LANGUAGES.get(run.language or "")])))
        word = run.language or html.escape(about) or "notebook"
        missing = f'<span class="missing" title="{said}: not run">{word}</span>'
        entry = f'<a href="{places[run]}" title="{said}">{word}</a>' if run in places else missing
        rows.append([part, title, html.escape(about) if run.language else "", entry])
    table = pd.DataFrame(rows, columns=["part", "Stage", "Of", "Runs"])
    table = table.groupby(["part", "Stage", "Of"], sort=False)["Runs"].agg(" ".join).reset_index()
    table["Stage"] = table["Stage"].mask(table.duplicated(["part", "Stage"]), "")
    return "\n\n".join(
        f"## {part} {{.unnumbered}}\n\n"
        + notebooks.raw(f'<div class="cell-output-display runs">\n{html_table(lines.drop(columns="part"))}\n</div>')
        for part, lines in table.groupby("part", sort=False)
    )


def _page_text(page: Page, found: Links) -> str:
    """A page as the Markdown of Quarto and of the preview renderer alike."""
    runs = [notebooks.shown(notebook.cells) for notebook in page.notebooks]
    first, parts = runs[0], ["---\nnumber-sections: false\n---",
                             f"# {page.title} {{.unnumbered #sec-notebook-{page.slug}}}"]  # fmt: skip
    outputs = [output for cells in runs for cell in cells for output in cell.get("outputs", [])]
    if any(f'class="{COVER}"' in output.get("data", {}).get("text/html", "") for output in outputs):
        parts.append(WARNING)
    if len(page.notebooks) > 1:
        parts.append(_choice(page))
    parts.append(_of_each_run(page, [
        found.of_run(f"{page.slug}-{notebook.name}", notebook.run, notebook.cells, notebook.manifest)
        for notebook in page.notebooks]))  # fmt: skip
    if first and first[0].cell_type == "markdown":
        first[0].source = _FIRST_HEADING.sub("", first[0].source)
    labels = "|".join(map(re.escape, notebooks.labelled(first))) or "(?!)"  # which nothing matches
    reference = re.compile(rf"(?<![\w@])@({labels})(?![\w-])")
    kept = [notebooks.pictures(found.book / FOLDER, f"{page.slug}-{notebook.name}") for notebook in page.notebooks]
    for position, cell in enumerate(first):
        if cell.cell_type == "markdown":
            parts.append(reference.sub(rf"@\1-{page.slug}", cell.source))
        elif cell.cell_type == "code":
            options, code = notebooks.cell_options(cell.source)
            texts = [notebooks.outputs_text(cells[position], keep) for cells, keep in zip(runs, kept, strict=True)]
            label = f"{options['label']}-{page.slug}" if "label" in options else ""
            parts.append(notebooks.cell_text(options, label, _of_each_run(page, texts), code))
    parts += ["## How this notebook was run {.unnumbered}",
              _of_each_run(page, [_how_it_ran(notebook.manifest) for notebook in page.notebooks])]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"


def _choice(page: Page) -> str:
    """A menu of the runs, at English where there is one, and a place for links to each."""
    first = next((notebook for notebook in page.notebooks if notebook.run.language == "en"), page.notebooks[0])
    options = "".join(
        f'<option value="{notebook.name}"{" selected" * (notebook is first)}>{html.escape(notebook.title)}</option>'
        for notebook in page.notebooks
    )
    places = "".join(f'<span id="run-{notebook.name}"></span>' for notebook in page.notebooks)
    menu = f'<form class="run-choice" hidden><label>Outputs of <select>{options}</select></label></form>'
    return notebooks.raw(f"<div>{places}</div>\n{menu}")


def _of_each_run(page: Page, texts: list[str]) -> str:
    """The texts, each marked as its run's; one alone where all are the same."""
    if len(set(texts)) == 1:
        return texts[0]
    return "\n\n".join(
        f'::: {{.run data-run="{notebook.name}" data-title="{notebooks.attribute(notebook.title)}"}}\n\n{text}\n\n:::'
        for notebook, text in zip(page.notebooks, texts, strict=True) if text
    )  # fmt: skip
