"""The executed notebooks as pages of the book: one for each model and stage, with a choice among the stage's runs.

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
from nbformat import NotebookNode

from polydetox.core.artifacts import MANIFEST, read_json
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.report import notebooks
from polydetox.report.masking import COVER, WARNING
from polydetox.results.collect import Results
from polydetox.results.stages import StageRun
from polydetox.results.tables import html_table

FOLDER = "notebooks"
LIST = "notebooks.qmd"
SYNTHETIC = "Synthetic setting"  # its many small models share their pages

_LIST_PLACE = re.compile(r"^:::\s*\{#runs\}\s*^:::[ \t]*$", re.MULTILINE)
_FIRST_HEADING = re.compile(r"\A\s*# .*\n*")


@dataclass(frozen=True)
class Notebook:
    """One executed run of a stage: what a reader chooses it by, and what it left."""

    run: StageRun
    name: str  # within its page, such as `base-de`
    title: str  # `German, base model`
    cells: list[NotebookNode]
    how: str  # its parameters, time and commit, as Markdown


@dataclass(frozen=True)
class Page:
    """The runs of one stage of one model that were executed from the same notebook."""

    part: str  # the model's title
    title: str  # the stage's
    slug: str
    notebooks: list[Notebook]

    @property
    def file(self) -> str:
        """Its path in the book."""
        return f"{FOLDER}/{self.slug}.qmd"


def write_appendices(results: Results, folder: Path) -> list[Any]:
    """Write a page for each model and stage that was run, and the list of runs; returns the book's appendices."""
    written = list(pages(results))
    (folder / FOLDER).mkdir(exist_ok=True)
    for page in written:
        (folder / page.file).write_text(_page_text(page, folder / FOLDER), "utf-8")
    file = folder / LIST
    if not file.is_file():
        raise UserError(f"book/{LIST}: no such file; restore book/ from the repository")
    text, places = _LIST_PLACE.subn(lambda match: _list_of_runs(results, written), file.read_text("utf-8"))
    if places != 1:
        raise UserError(f"book/{LIST}: needs one `::: {{#runs}}` block, which the list of runs replaces")
    file.write_text(text, "utf-8")
    parts = groupby(written, lambda page: page.part)
    return [LIST, *({"part": title, "chapters": [page.file for page in group]} for title, group in parts)]


def pages(results: Results) -> Iterator[Page]:
    """The pages of a profile's finished runs."""
    for part, stage, runs in _by_stage(results):
        # Runs of an older version of a notebook, whose text or code differs, stand on a page of their own.
        versions: dict[tuple[Any, ...], list[Notebook]] = {}
        for notebook in (_read(results, run) for run in runs if run.done):
            versions.setdefault(tuple((cell.cell_type, cell.source) for cell in notebook.cells), []).append(notebook)
        for number, same in enumerate(versions.values(), start=1):
            title, name = results.title(stage), f"{part if part == SYNTHETIC else runs[0].model}-{stage}"
            if number > 1:
                title, name = f"{title}, version {number}", f"{name}-{number}"
            yield Page(part, title, slug(name), same)


def _by_stage(results: Results) -> Iterator[tuple[str, str, list[StageRun]]]:
    """Model, stage and its runs in the order of the report, the runs of one language beside one another."""
    parts, stages, languages = [*results.models.values(), SYNTHETIC], list(results.record["stages"]), ["", *LANGUAGES]

    def page(run: StageRun) -> tuple[int, int]:
        return parts.index(results.models.get(run.model, SYNTHETIC)), stages.index(run.stage)

    for (part, stage), runs in groupby(sorted(results.stages, key=page), page):
        yield parts[part], stages[stage], sorted(runs, key=lambda run: languages.index(run.language or ""))


def _read(results: Results, run: StageRun) -> Notebook:
    names = [run.model if run.model not in results.models else "", run.variant, run.kind, run.prompt_set, run.language]
    title = ", ".join(filter(None, [LANGUAGES.get(run.language or ""), results.subject(run)]))
    cells, how = notebooks.read_cells(run.folder / "notebook.ipynb"), _how_it_ran(read_json(run.folder / MANIFEST))
    return Notebook(run, slug("-".join(filter(None, names))) or "run", title, cells, how)


def _how_it_ran(manifest: Mapping[str, Any]) -> str:
    rows = []
    for name, value in manifest["parameters"].items():
        if value not in ("", None):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            text = notebooks.without_machine_paths(text).replace("|", "\\|").replace("`", "'")
            rows.append(f"| `{name}` | `{text}` |")
    commit = f", commit `{manifest['git_commit'][:10]}`" if manifest.get("git_commit") else ""
    ran = f"It ran with seed {manifest['seed']}, {manifest['wall_seconds']} s{commit}."
    return "\n".join(["| parameter | value |", "|---|---|", *rows, "", ran])


def slug(text: str) -> str:
    """A name that can be a file's and the end of a label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _list_of_runs(results: Results, written: list[Page]) -> str:
    """Every run of the profile as one table a model: a row a stage and variant, the languages in it."""
    places = {notebook.run: f"{FOLDER}/{page.slug}.html" + f"#run-{notebook.name}" * (len(page.notebooks) > 1)
              for page in written for notebook in page.notebooks}  # fmt: skip
    rows = []
    for part, stage, runs in _by_stage(results):
        for run in runs:
            title, about = results.title(stage), results.subject(run) if part != SYNTHETIC else ""
            word = run.language or (run.model if part == SYNTHETIC else "notebook")
            said = notebooks.attribute(", ".join(filter(None, [title, about, LANGUAGES.get(run.language or "")])))
            missing = f'<span class="missing" title="{said}: not run">{word}</span>'
            entry = f'<a href="{places[run]}" title="{said}">{word}</a>' if run in places else missing
            rows.append([part, title, html.escape(about), entry])
    table = pd.DataFrame(rows, columns=["part", "Stage", "Of", "Runs"])
    table = table.groupby(["part", "Stage", "Of"], sort=False)["Runs"].agg(" ".join).reset_index()
    table["Stage"] = table["Stage"].mask(table.duplicated(["part", "Stage"]), "")
    return "\n\n".join(
        f"## {part} {{.unnumbered}}\n\n"
        + notebooks.raw(f'<div class="cell-output-display runs">\n{html_table(lines.drop(columns="part"))}\n</div>')
        for part, lines in table.groupby("part", sort=False)
    )


def _page_text(page: Page, folder: Path) -> str:
    """A page as the Markdown of Quarto and of the preview renderer alike; its pictures go to ``folder``."""
    first = page.notebooks[0].cells
    parts = [f'---\nsubtitle: "{notebooks.attribute(page.part)}"\nnumber-sections: false\n---',
             f"# {page.title} {{.unnumbered #sec-{page.slug}}}"]  # fmt: skip
    outputs = [output for notebook in page.notebooks for cell in notebook.cells for output in cell.get("outputs", [])]
    if any(f'class="{COVER}"' in output.get("data", {}).get("text/html", "") for output in outputs):
        parts.append(WARNING)
    if len(page.notebooks) > 1:
        parts.append(_choice(page))
    if first and first[0].cell_type == "markdown":
        first[0].source = _FIRST_HEADING.sub("", first[0].source)
    labels = "|".join(map(re.escape, notebooks.labelled(first))) or "(?!)"  # which nothing matches
    reference = re.compile(rf"(?<![\w@])@({labels})(?![\w-])")
    kept = [notebooks.pictures(folder, f"{page.slug}-{notebook.name}") for notebook in page.notebooks]
    for position, cell in enumerate(first):
        if cell.cell_type == "markdown":
            parts.append(reference.sub(rf"@\1-{page.slug}", cell.source))
        elif cell.cell_type == "code":
            options, code = notebooks.cell_options(cell.source)
            texts = [notebooks.outputs_text(notebook.cells[position], keep)
                     for notebook, keep in zip(page.notebooks, kept, strict=True)]  # fmt: skip
            label = f"{options['label']}-{page.slug}" if "label" in options else ""
            parts.append(notebooks.cell_text(options, label, _of_each_run(page, texts), code))
    parts += ["## How this notebook was run {.unnumbered}",
              _of_each_run(page, [notebook.how for notebook in page.notebooks])]  # fmt: skip
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
