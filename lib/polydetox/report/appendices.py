"""The executed notebooks as pages of the book: one for each model and stage, with a choice among the stage's runs.

Runs of one stage differ in their numbers alone, so a page shows prose and code once and, below each cell, the outputs
of the run that the reader chooses: a language, a variant, a method. Without scripts all of them show, each under its
name. One more page lists every run of the profile and leads to each that was done.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from polydetox.core.artifacts import MANIFEST, read_json
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.report.masking import COVER, WARNING
from polydetox.report.notebooks import (
    attribute,
    cell_options,
    cell_text,
    labelled,
    outputs_text,
    pictures,
    raw,
    read_cells,
    without_machine_paths,
)
from polydetox.results.collect import Results
from polydetox.results.stages import StageRun

FOLDER = "notebooks"
LIST = "notebooks.qmd"
WORLD = "Synthetic setting"  # its many small models share their pages

_LIST_PLACE = re.compile(r"^:::\s*\{#runs\}\s*^:::[ \t]*$", re.MULTILINE)
_FIRST_HEADING = re.compile(r"\A\s*# .*\n*")


@dataclass(frozen=True)
class Notebook:
    """One executed run of a stage: what a reader chooses it by, and what it left."""

    run: StageRun
    name: str  # within its page, such as `base-de`
    title: str  # `German, base model`
    cells: list[NotebookNode]
    manifest: Mapping[str, Any]


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
    """Write a page for each model and stage of which something was run, and the list of all runs into ``LIST``.

    Returns the book's appendices: the list, then one part a model.
    """
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


# --- which run stands where -------------------------------------------------------------------------------------


def pages(results: Results) -> Iterator[Page]:
    """The pages of a profile's finished runs."""
    for part, stage, runs in _by_stage(results):
        # Runs of an older version of a notebook, whose text or code differs, stand on a page of their own.
        versions: dict[tuple[Any, ...], list[Notebook]] = {}
        for notebook in (_read(results, run) for run in runs if run.done):
            versions.setdefault(tuple((cell.cell_type, cell.source) for cell in notebook.cells), []).append(notebook)
        for number, same in enumerate(versions.values(), start=1):
            title, name = results.title(stage), f"{part if part == WORLD else runs[0].model}-{stage}"
            if number > 1:
                title, name = f"{title}, version {number}", f"{name}-{number}"
            yield Page(part, title, slug(name), same)


def _by_stage(results: Results) -> Iterator[tuple[str, str, list[StageRun]]]:
    """Model, stage and its runs in the order of the report, the runs of one language beside one another."""
    parts, stages, languages = [*results.models.values(), WORLD], list(results.record["stages"]), ["", *LANGUAGES]

    def page(run: StageRun) -> tuple[int, int]:
        return parts.index(results.models.get(run.model, WORLD)), stages.index(run.stage)

    for (part, stage), runs in groupby(sorted(results.stages, key=page), page):
        yield parts[part], stages[stage], sorted(runs, key=lambda run: languages.index(run.language or ""))


def _read(results: Results, run: StageRun) -> Notebook:
    names = [run.model if run.model not in results.models else "", run.variant, run.kind, run.prompt_set, run.language]
    words = [run.language and LANGUAGES[run.language], results.subject(run)]
    return Notebook(run, slug("-".join(filter(None, names))) or "run", ", ".join(filter(None, words)),
                    read_cells(run.folder / "notebook.ipynb"), read_json(run.folder / MANIFEST))  # fmt: skip


def slug(text: str) -> str:
    """A name that can be a file's and the end of a label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _list_of_runs(results: Results, written: list[Page]) -> str:
    """Every run of the profile as one table a model: a row a stage and variant, the languages in it."""
    places = {notebook.run: f"{FOLDER}/{page.slug}.html" + f"#run-{notebook.name}" * (len(page.notebooks) > 1)
              for page in written for notebook in page.notebooks}  # fmt: skip
    tables: dict[str, list[str]] = {}
    for part, stage, runs in _by_stage(results):
        entries: dict[str, list[str]] = {}
        for run in runs:
            about = results.subject(run) if part != WORLD else ""
            word = html.escape(run.language or (run.model if part == WORLD else "notebook"))
            named = filter(None, [results.title(stage), about, run.language and LANGUAGES[run.language]])
            said = attribute(", ".join(named))
            entry = f'<span class="missing" title="{said}: not run">{word}</span>'
            if run in places:
                entry = f'<a href="{places[run]}" title="{said}">{word}</a>'
            entries.setdefault(about, []).append(entry)
        for number, (about, links) in enumerate(entries.items()):
            title = "" if number else results.title(stage)
            cells = f'<td>{title}</td><td>{html.escape(about)}</td><td class="runs">{" ".join(links)}</td>'
            tables.setdefault(part, []).append(f"<tr>{cells}</tr>")
    head = "<thead>\n<tr><th>Stage</th><th>Of</th><th>Runs</th></tr>\n</thead>"
    opening = f'<div class="cell-output-display">\n<table class="paper-table table">\n{head}\n<tbody>'
    shown = {part: raw("\n".join([opening, *rows, "</tbody>\n</table>\n</div>"])) for part, rows in tables.items()}
    return "\n\n".join(f"## {part} {{.unnumbered}}\n\n{table}" for part, table in shown.items())


# --- writing a page ---------------------------------------------------------------------------------------------


def _page_text(page: Page, folder: Path) -> str:
    """A page as the Markdown of Quarto and of the preview renderer alike; its pictures go to ``folder``."""
    first, names = page.notebooks[0].cells, labelled(page.notebooks[0].cells)
    parts = [f'---\nsubtitle: "{attribute(page.part)}"\nnumber-sections: false\n---',
             f"# {page.title} {{.unnumbered #sec-{page.slug}}}"]  # fmt: skip
    outputs = [output for notebook in page.notebooks for cell in notebook.cells for output in cell.get("outputs", [])]
    if any(f'class="{COVER}"' in output.get("data", {}).get("text/html", "") for output in outputs):
        parts.append(WARNING)
    if len(page.notebooks) > 1:
        parts.append(_choice(page))
    if first and first[0].cell_type == "markdown":
        first[0].source = _FIRST_HEADING.sub("", first[0].source)
    kept = [pictures(folder, f"{page.slug}-{notebook.name}") for notebook in page.notebooks]
    for position, cell in enumerate(first):
        if cell.cell_type == "markdown":
            for label in names:
                cell.source = re.sub(rf"(?<![\w@])@{re.escape(label)}(?![\w-])", f"@{label}-{page.slug}", cell.source)
            parts.append(cell.source)
        elif cell.cell_type == "code":
            options, code = cell_options(cell.source)
            texts = [outputs_text(notebook.cells[position], keep)
                     for notebook, keep in zip(page.notebooks, kept, strict=True)]  # fmt: skip
            if options.get("include", True):
                label = f"{options['label']}-{page.slug}" if "label" in options else ""
                code = code if options.get("echo", True) else ""
                parts.append(cell_text(options, label, _of_each_run(page, texts), code))
    return "\n\n".join(filter(None, [*parts, _manifests(page)])) + "\n"


def _choice(page: Page) -> str:
    """A menu of the runs, at English where there is one, and a place for links to each."""
    first = next((notebook for notebook in page.notebooks if notebook.run.language == "en"), page.notebooks[0])
    options = "".join(
        f'<option value="{notebook.name}"{" selected" * (notebook is first)}>{html.escape(notebook.title)}</option>'
        for notebook in page.notebooks
    )
    places = "".join(f'<span id="run-{notebook.name}"></span>' for notebook in page.notebooks)
    menu = f'<form class="run-choice" hidden><label>Outputs of <select>{options}</select></label></form>'
    return raw(f"<div>{places}</div>\n{menu}")


def _of_each_run(page: Page, texts: list[str]) -> str:
    """The texts, each marked as its run's; one alone where all are the same."""
    if len(set(texts)) == 1:
        return texts[0]
    return "\n\n".join(
        f'::: {{.run data-run="{notebook.name}" data-title="{attribute(notebook.title)}"}}\n\n{text}\n\n:::'
        for notebook, text in zip(page.notebooks, texts, strict=True) if text
    )  # fmt: skip


def _manifests(page: Page) -> str:
    """The end of a page: with what parameters the notebook ran, at which commit, and for how long."""
    given = [
        {
            name: _plain(value)
            for name, value in notebook.manifest.get("parameters", {}).items()
            if value not in ("", None)
        }
        for notebook in page.notebooks
    ]
    shared = {name: value for name, value in given[0].items() if all(own.get(name) == value for own in given)}
    own = []
    for values, manifest in zip(given, (notebook.manifest for notebook in page.notebooks), strict=True):
        facts = [f"seed {manifest.get('seed')}", f"{manifest.get('wall_seconds')} s"]
        if manifest.get("git_commit"):
            facts.append(f"commit `{str(manifest['git_commit'])[:10]}`")
        table = _parameters({name: value for name, value in values.items() if name not in shared})
        own.append("\n\n".join(filter(None, [table, f"It ran with {', '.join(facts)}."])))
    heading = "## How this notebook was run {.unnumbered}"
    return "\n\n".join(filter(None, [heading, _parameters(shared), _of_each_run(page, own)]))


def _parameters(values: Mapping[str, str]) -> str:
    rows = [f"| `{name}` | `{value}` |" for name, value in values.items()]
    return "\n".join(["| parameter | value |", "|---|---|", *rows]) if rows else ""


def _plain(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return without_machine_paths(text).replace("|", "\\|").replace("`", "'")
