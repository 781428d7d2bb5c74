"""The Quarto book of one profile, assembled from ``book/``, ``_quarto.yml`` and the executed notebooks.

Each embed of a summary notebook's cell gives way to what the cell put out. Quarto only warns of a missing reference,
variable or output; here each is an error that names the file.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from nbformat import NotebookNode

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, atomic_folder, read_json, write_json
from polydetox.core.errors import UserError, nearest
from polydetox.core.params import load_model
from polydetox.core.yaml_files import read_yaml
from polydetox.report import extensions, notebooks
from polydetox.report.appendices import LIST, summary_runs, write_appendices
from polydetox.report.extensions import CROSS_REFERENCE, EMBED, VARIABLE
from polydetox.report.links import Links
from polydetox.results.collect import Results
from polydetox.results.stages import is_whole
from polydetox.results.tables import listing
from polydetox.workflow import record_file

CONFIGURATION = "_quarto.yml"
VARIABLES = "_variables.yml"

CITATION = re.compile(r"(?<![\w@/.])-?@(?!(?:fig|tbl|sec|eq)-)([A-Za-z][\w:-]*\w)")
_IDENTIFIER = re.compile(r"\{[^{}]*#((?:fig|tbl|sec|eq)-[\w-]+)[^{}]*\}")
_BIBLIOGRAPHY_KEY = re.compile(r"^@\w+\{\s*([^,\s]+)\s*,", re.MULTILINE)
_CODE = re.compile(r"^(`{3,}).*?^\1`*[ \t]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def assemble(profile: str) -> Path:
    """Assemble the book of a profile from what has been run so far, which says what was not; returns its folder."""
    results = Results(record_file(profile))
    with atomic_folder(paths.profile_run(profile) / "book") as folder:
        sources = paths.root() / "book"
        if lacking := [name for name in ("index.qmd", LIST) if not (sources / name).is_file()]:
            raise UserError(f"book/{lacking[0]}: no such file; restore book/ from the repository")
        shutil.copytree(sources, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("reference", "*.png", ".*"))
        variables, summaries = read_variables(results, folder), read_summaries(results)
        variables["chapters_to_come"] = "; ".join(
            chapter["about"] for chapter in results.record["chapters"].values()
            if chapter["included"] and chapter["section"] not in summaries) or "none"  # fmt: skip
        gone = extensions.keep_what_ran(folder, variables)
        found = Links(folder, summary_runs(results), variables)
        for page in sorted(folder.glob("*.qmd")):
            page.write_text(embed(page, summaries, found.of_figure), "utf-8")
        appendices = write_appendices(results, found)
        write_yaml(folder / VARIABLES, variables)
        configuration = read_yaml(paths.root() / CONFIGURATION)
        book = configuration["book"]
        for part in [book, *(item for item in book["chapters"] if isinstance(item, dict))]:
            part["chapters"] = [item for item in part["chapters"] if isinstance(item, dict) or item not in gone]
        if profile.startswith("paper"):
            book["title"] = book["title"].replace("a small-scale ", "a ")
        book |= {"subtitle": results.profile.title, "appendices": appendices}
        book |= {name: variables[f"run_{name}"] for name in ("author", "date")
                 if "run" in summaries and f"run_{name}" in variables}  # fmt: skip
        write_yaml(folder / CONFIGURATION, configuration)
        check(folder)
    return paths.profile_run(profile) / "book"


def snapshot(profile: str) -> list[Path]:
    """Keep what a finished run has for the cards of *Extensions* in ``book/snapshots/``; returns the files."""
    results, sources = Results(record_file(profile)), paths.root() / "book"
    if unfinished := [run for run in results.stages if not run.done]:
        raise UserError(f"{profile}: {len(unfinished)} jobs are not done; finish the run first")
    variables, summaries = read_variables(results, sources), read_summaries(results)
    commits = results.manifests["git_commit"].dropna().unique()
    origin = {"profile": profile, "model": listing([load_model(model).title for model in results.profile.models]),
              "date": max(read_json(run.folder / MANIFEST)["finished"] for run in results.stages)[:10],
              "commit": listing([commit[:10] + "+" * commit.endswith("+") for commit in commits])}  # fmt: skip
    files = []
    (sources / extensions.SNAPSHOTS).mkdir(exist_ok=True)
    for label, template in extensions.CARD.findall((sources / extensions.PAGE).read_text("utf-8")):
        if template and extensions.ran(template, variables):
            page = sources / extensions.SNAPSHOTS / f"{label}.qmd"
            page.write_text(VARIABLE.sub(lambda match: variables[match[1]], template), "utf-8")
            text = embed(page, summaries).replace("](figures/", f"]({extensions.SNAPSHOTS}/figures/")
            files.append(page.with_suffix(".json"))
            write_json(files[-1], origin | {"template": template, "text": text})
            page.unlink()
    return files


def read_summaries(results: Results) -> dict[str, dict[str, NotebookNode]]:
    """The labelled cells of every summary notebook that was executed."""
    return {name: notebooks.labelled(notebooks.read_cells(paths.given(place) / "notebook.ipynb"))
            for name, place in results.record["sections"].items() if is_whole(paths.given(place))}  # fmt: skip


def write_yaml(file: Path, content: Any) -> None:
    """Write a file that Quarto reads."""
    file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=110), "utf-8")


def embed(page: Path, summaries: dict[str, dict[str, NotebookNode]], below: Callable[..., str] = lambda *_: "") -> str:
    """The text of a page, each embed replaced by the outputs of its cell, found in ``summaries`` by notebook and label.

    ``below`` gives what stands below a figure or table, by notebook, label and cell. Embeds of a notebook that was not
    run give way to one note that says so, and references to them to a word.
    """
    missing, noted = set(), {"first"}

    def replace(match: re.Match[str]) -> str:
        notebook, label = match.groups()
        if notebook not in summaries:
            missing.add(label)
            if page.name == "index.qmd" or notebook in noted:  # the first page shows only what there is
                return ""
            noted.add(notebook)
            source = f"summary_{notebook}.ipynb"
            return f'::: {{.callout-note title="Not run"}}\nThis part comes from `{source}`, which was not run.\n:::'
        where, cells = f"book/{page.name}: embeds {match[0].split()[2]}", summaries[notebook]
        if label not in cells:
            raise UserError(f"{where}, but the notebook has no such label{nearest(label, list(cells))}")
        if not cells[label].outputs:
            raise UserError(f"{where}, a cell without output; mend the notebook")
        outputs = notebooks.outputs_text(cells[label], notebooks.pictures(page.parent, label))
        shown = notebooks.cell_text(notebooks.cell_options(cells[label].source)[0], label, outputs)
        return f"{shown}\n\n{below(notebook, label, cells[label])}" if label.startswith(("fig-", "tbl-")) else shown

    text = EMBED.sub(replace, page.read_text("utf-8"))
    return CROSS_REFERENCE.sub(lambda match: "(not run)" if match[1] in missing else match[0], text)


def read_variables(results: Results, folder: Path) -> dict[str, str]:
    """What the summary notebooks wrote for the pages in ``folder``; else ``Not run.``, or if due ``Not run yet.``"""
    found: dict[str, str] = {}
    writers: dict[str, str] = {}
    missing = {"Not run.": "", "Not run yet.": ""}  # the sources of the notebooks
    for notebook in sorted(paths.notebooks().rglob("summary_*.ipynb")):
        name, place = paths.relative(notebook), results.record["sections"].get(notebook.stem.removeprefix("summary_"))
        if place is None or not is_whole(paths.given(place)):
            said = "Not run yet." if place else "Not run."
            missing[said] += "\n".join(cell.source for cell in notebooks.read_notebook(notebook).cells)
            continue
        file = paths.given(place) / "variables.json"
        written = read_json(file) if file.is_file() else {}
        if twice := sorted(set(written) & set(found)):
            raise UserError(f"{name}: variable {twice[0]!r} is written by {writers[twice[0]]} already; rename one")
        writers |= dict.fromkeys(written, name)
        found |= written
    used = {name for page in folder.rglob("*.qmd") for name in VARIABLE.findall(page_prose(page))}
    return found | {name: said for said, sources in missing.items() for name in sorted(used - set(found))
                    if f'"{name}"' in sources}  # fmt: skip


def check(folder: Path) -> None:
    """Refuse a book in which a label is defined twice, or a reference, citation or variable leads nowhere."""
    bibliography = folder / "references.bib"
    cited = set(_BIBLIOGRAPHY_KEY.findall(bibliography.read_text("utf-8"))) if bibliography.is_file() else set()
    targets: dict[str, str] = {}
    pages = {page.relative_to(folder).as_posix(): page_prose(page) for page in book_pages(folder)}
    for name, prose in pages.items():
        for label in _IDENTIFIER.findall(prose):
            if label in targets:
                raise UserError(f"{name}: label {label!r} is defined in {targets[label]} already; rename one")
            targets[label] = name
    for name, prose in pages.items():
        for pattern, valid, what in (
            (VARIABLE, set(read_yaml(folder / VARIABLES)), "variable"),
            (CROSS_REFERENCE, set(targets), "reference"),
            (CITATION, cited, "citation"),
        ):
            for lost in sorted(set(pattern.findall(prose)) - valid):
                raise UserError(f"{name}: {what} {lost!r} leads nowhere{nearest(lost, sorted(valid))}")


def book_pages(folder: Path) -> list[Path]:
    """The pages of an assembled book, in its order: chapters, then appendices."""
    book = read_yaml(folder / CONFIGURATION)["book"]
    items = [*book["chapters"], *book.get("appendices", [])]
    return [folder / name for item in items for name in ([item] if isinstance(item, str) else item["chapters"])]


def page_prose(page: Path) -> str:
    """The Markdown of a page without its code."""
    return _CODE.sub("", page.read_text("utf-8"))
