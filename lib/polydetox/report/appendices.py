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
from nbformat import NotebookNode

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, read_json
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.core.parameters import notebook_file
from polydetox.report import links, notebooks
from polydetox.report.extensions import CROSS_REFERENCE, LABEL
from polydetox.report.masking import COVER, WARNING
from polydetox.results.collect import Results
from polydetox.results.stages import StageRun
from polydetox.results.tables import html_table

FOLDER = "notebooks"
LIST = "notebooks.qmd"
REPORT, SYNTHETIC = "Report", "Synthetic setting"  # runs of no model: summary notebooks, and many small models

_LIST_PLACE = re.compile(r"^:::\s*\{#runs\}\s*^:::[ \t]*$", re.MULTILINE)
_FIRST_HEADING = re.compile(r"\A\s*# .*\n*")
_CODE_OR_REFERENCE = re.compile(f"{notebooks.CODE.pattern}|{CROSS_REFERENCE.pattern}", notebooks.CODE.flags)


@dataclass(frozen=True)
class Notebook:
    """One executed run of a stage: what a reader chooses it by, and what it left."""

    run: StageRun
    name: str  # within its page, such as `gemma-3-270m-base-de`
    model: str  # its title
    about: str  # `German, base model`
    whole: list[NotebookNode]  # with the cells that no page shows
    manifest: dict[str, Any]

    @property
    def cells(self) -> list[NotebookNode]:
        """Those that a page shows."""
        return notebooks.shown(self.whole)


@dataclass(frozen=True)
class Page:
    """The runs of one stage that were executed from the same notebook."""

    title: str  # the stage's
    slug: str
    notebooks: list[Notebook]

    @property
    def file(self) -> str:
        """Its path in the book."""
        return f"{FOLDER}/{self.slug}.qmd"


def write_appendices(results: Results, folder: Path) -> list[str]:
    """Write a page for each notebook that was run, and the list of runs; returns the book's appendices."""
    written = list(pages(results))
    (folder / FOLDER).mkdir(exist_ok=True)
    targets = set(LABEL.findall("".join(page.read_text("utf-8") for page in folder.glob("*.qmd"))))
    for page in written:
        (folder / page.file).write_text(_page_text(page, folder, targets), "utf-8")
    file = folder / LIST
    if not file.is_file():
        raise UserError(f"book/{LIST}: no such file; restore book/ from the repository")
    text, places = _LIST_PLACE.subn(lambda match: _list_of_runs(results, written), file.read_text("utf-8"))
    if places != 1:
        raise UserError(f"book/{LIST}: needs one `::: {{#runs}}` block, which the list of runs replaces")
    file.write_text(text, "utf-8")
    return [LIST, *(page.file for page in written)]


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
            versions.setdefault(tuple((cell.cell_type, cell.source) for cell in notebook.cells), []).append(notebook)
        for number, same in enumerate(versions.values(), start=1):
            title, name = _title(results, same[0].run), stage
            if number > 1:
                title, name = f"{title}, version {number}", f"{name}-{number}"
            yield Page(title, slug(name), same)


def _in_order(results: Results) -> list[StageRun]:
    """The runs stage by stage in the order of the report, model by model, those of a language beside one another."""
    stages, models, languages = list(results.record["stages"]), list(results.models), ["", *LANGUAGES]
    ran = sorted(results.stages, key=lambda run: (
        stages.index(run.stage), models.index(run.model) if run.model in models else -1,
        languages.index(run.language or "")))  # fmt: skip
    return [*summary_runs(results).values(), *ran]


def _model(results: Results, run: StageRun) -> str:
    return REPORT if run.model == REPORT else results.models.get(run.model, SYNTHETIC)


def _title(results: Results, run: StageRun) -> str:
    """What a run's notebook is called: as its stage, or by its own heading."""
    if run.model != REPORT:
        return results.title(run.stage)
    return str(notebooks.read_notebook(Path(run.notebook)).cells[0].source).splitlines()[0].removeprefix("# ")


def _read(results: Results, run: StageRun) -> Notebook:
    name = slug("-".join(filter(None, [run.model, run.variant, run.kind, run.prompt_set, run.language])))
    about = ", ".join(filter(None, [LANGUAGES.get(run.language or ""), results.subject(run)]))
    whole = notebooks.read_cells(run.folder / "notebook.ipynb")
    return Notebook(run, name, _model(results, run), about, whole, read_json(run.folder / MANIFEST))


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
    """Every run of the profile: a table a model, a row a stage and variant, the languages in it."""
    places = {notebook.run: f"{FOLDER}/{page.slug}.html" + f"#run-{notebook.name}" * (len(page.notebooks) > 1)
              for page in written for notebook in page.notebooks}  # fmt: skip
    rows = []
    for run in _in_order(results):
        part, title = _model(results, run), _title(results, run)
        about = results.subject(run) if run.model in results.models else ""
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


def _page_text(page: Page, folder: Path, targets: set[str]) -> str:
    """A page as the Markdown of Quarto and of the preview renderer alike; ``targets``: the labels of the chapters."""
    runs = [notebook.cells for notebook in page.notebooks]
    parts = ["---\nnumber-sections: false\n---", f"# {page.title} {{.unnumbered #sec-{page.slug}}}"]
    outputs = [output for cells in runs for cell in cells for output in cell.get("outputs", [])]
    if any(f'class="{COVER}"' in output.get("data", {}).get("text/html", "") for output in outputs):
        parts.append(WARNING)
    if len(page.notebooks) > 1:
        parts.append(_choice(page))
    downloads = [links.write_notebook(folder, f"{page.slug}-{notebook.name}", notebook.whole)
                 for notebook in page.notebooks]  # fmt: skip
    parts.append(_of_each_run(page, [
        links.line(links.code(notebook.run, notebook.manifest.get("git_commit")), link, links.opening(notebook.run))
        for notebook, link in zip(page.notebooks, downloads, strict=True)]))  # fmt: skip
    first = runs[0]
    own = set(notebooks.labelled(first))

    def reference(match: re.Match[str]) -> str:
        if match[2] in own:
            return f"{match[0]}-{page.slug}"
        return match[0] if match[2] is None or match[2] in targets else "(not run)"

    kept = [notebooks.pictures(folder / FOLDER, f"{page.slug}-{notebook.name}") for notebook in page.notebooks]
    for position, cell in enumerate(first):
        if cell.cell_type == "markdown":
            parts.append(cell.source if position else _FIRST_HEADING.sub("", cell.source))
        elif cell.cell_type == "code":
            options, code = notebooks.cell_options(cell.source)
            texts = [notebooks.outputs_text(cells[position], keep) for cells, keep in zip(runs, kept, strict=True)]
            label = f"{options['label']}-{page.slug}" if "label" in options else ""
            parts.append(notebooks.cell_text(options, label, _of_each_run(page, texts), code))
    parts += ["## How this notebook was run {.unnumbered}",
              _of_each_run(page, [_how_it_ran(notebook.manifest) for notebook in page.notebooks])]  # fmt: skip
    return _CODE_OR_REFERENCE.sub(reference, "\n\n".join(filter(None, parts))) + "\n"


def _choice(page: Page) -> str:
    """A menu of the runs, model by model, at English where there is one, and a place for links to each."""
    first = next((notebook for notebook in page.notebooks if notebook.run.language == "en"), page.notebooks[0])
    options = "".join(
        f'<optgroup label="{notebooks.attribute(model)}">' + "".join(
            f'<option value="{notebook.name}"{" selected" * (notebook is first)}>{html.escape(notebook.about)}</option>'
            for notebook in of_model) + "</optgroup>"
        for model, of_model in groupby(page.notebooks, lambda notebook: notebook.model)
    )  # fmt: skip
    places = "".join(f'<span id="run-{notebook.name}"></span>' for notebook in page.notebooks)
    menu = f'<form class="run-choice" hidden><label>Outputs of <select>{options}</select></label></form>'
    return notebooks.raw(f"<div>{places}</div>\n{menu}")


def _of_each_run(page: Page, texts: list[str]) -> str:
    """The texts, each marked as its run's; one alone where all are the same."""
    if len(set(texts)) == 1:
        return texts[0]
    titles = [notebooks.attribute(", ".join(filter(None, [one.model, one.about]))) for one in page.notebooks]
    return "\n\n".join(
        f'::: {{.run data-run="{notebook.name}" data-title="{title}"}}\n\n{text}\n\n:::'
        for notebook, title, text in zip(page.notebooks, titles, texts, strict=True) if text
    )  # fmt: skip
