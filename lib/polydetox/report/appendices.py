"""The executed notebooks as pages of the book: one for each model and stage, with a choice among the stage's runs.

Runs of one stage differ in their numbers alone, so a page shows prose and code once and, below each cell, the outputs
of the run that the reader chooses: a language, a variant, a method. Without scripts all of them show, each under its
name. One more page lists every run of the profile and leads to each that was done.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from polydetox.core.artifacts import MANIFEST, read_json
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.core.params import Profile, load_model
from polydetox.report.clean import REMOVED, cell_options, clean, labels, read_notebook, without_machine_paths
from polydetox.report.masking import COVER, WARNING, WARNING_TITLE
from polydetox.results.collect import Results
from polydetox.results.stages import StageRun, variant_title

FOLDER = "notebooks"
LIST = "notebooks.qmd"
WORLD = "Synthetic setting"  # its many small models share their pages

_LIST_PLACE = re.compile(r"^:::\s*\{#runs\}\s*^:::[ \t]*$", re.MULTILINE)
_FIRST_HEADING = re.compile(r"\A\s*# .*\n*")
_PICTURES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}

# Shows the outputs of one run and hides those of the others; an address ending in #run-<name> chooses it.
_CHOOSE = """<script>
(() => {
  const form = document.currentScript.previousElementSibling, choice = form.querySelector('select');
  const style = document.head.appendChild(document.createElement('style'));
  const show = () => {
    style.textContent = `.run:not([data-run="${choice.value}"]) { display: none; } .run::before { content: none; }`;
  };
  const follow = () => {
    const name = location.hash.replace('#run-', '');
    if ([...choice.options].some(option => option.value === name)) { choice.value = name; show(); }
  };
  choice.onchange = () => { show(); history.replaceState(null, '', `#run-${choice.value}`); };
  addEventListener('hashchange', follow);
  form.hidden = false;
  show();
  follow();
})();
</script>"""


@dataclass(frozen=True)
class Notebook:
    """One executed run of a stage: what a reader chooses it by, and what it left."""

    run: StageRun
    name: str  # within its page, such as `base-de`
    title: str  # `German, untuned`
    content: NotebookNode
    manifest: Mapping[str, Any]

    @property
    def cells(self) -> list[NotebookNode]:
        """The cells that a reader is shown."""
        return [cell for cell in self.content.cells if REMOVED not in cell.metadata.get("tags", [])]


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

    def address(self, notebook: Notebook) -> str:
        """Where the rendered page shows one of its runs, from the top of the site."""
        return f"{FOLDER}/{self.slug}.html" + (f"#run-{notebook.name}" if len(self.notebooks) > 1 else "")


def write_appendices(results: Results, folder: Path) -> list[Any]:
    """Write a page for each model and stage of which something was run, and the list of all runs into ``LIST``.

    Returns the book's appendices: the list, then one part a model.
    """
    written = list(pages(results))
    for page in written:
        target = folder / page.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_Writer(page, target.parent).text(), "utf-8")
    file = folder / LIST
    if not file.is_file():
        raise UserError(f"book/{LIST}: no such file; restore book/ from the repository")
    text, places = _LIST_PLACE.subn(lambda match: list_of_runs(results, written), file.read_text("utf-8"))
    if places != 1:
        raise UserError(f"book/{LIST}: needs one `::: {{#runs}}` block, which the list of runs replaces")
    file.write_text(text, "utf-8")
    parts: dict[str, list[str]] = {}
    for page in written:
        parts.setdefault(page.part, []).append(page.file)
    return [LIST, *({"part": title, "chapters": files} for title, files in parts.items())]


# --- which run stands where -------------------------------------------------------------------------------------


def pages(results: Results) -> Iterator[Page]:
    """The pages of a profile's finished runs."""
    for (part, stage), runs in _by_stage(results).items():
        notebooks = [_read(results.profile, run) for run in runs if run.done]
        # Runs of an older version of a notebook, whose text or code differs, stand on a page of their own.
        versions: dict[tuple[Any, ...], list[Notebook]] = {}
        for notebook in notebooks:
            versions.setdefault(tuple((cell.cell_type, cell.source) for cell in notebook.cells), []).append(notebook)
        for number, same in enumerate(versions.values(), start=1):
            title, name = results.title(stage), "-".join([part if part == WORLD else runs[0].model, stage])
            if number > 1:
                title, name = f"{title}, version {number}", f"{name}-{number}"
            yield Page(part, title, slug(name), same)


def _by_stage(results: Results) -> dict[tuple[str, str], list[StageRun]]:
    """The runs of each stage by its model, in the order of the report, those of one language beside one another."""
    titles = {model.name: model.title for model in map(load_model, results.profile.models)}
    found: dict[tuple[str, str], list[StageRun]] = {}
    for run in results.stages:
        found.setdefault((titles.get(run.model, WORLD), run.stage), []).append(run)
    order = ["", *LANGUAGES]
    for runs in found.values():
        runs.sort(key=lambda run: order.index(run.language or ""))
    models, stages = [*titles.values(), WORLD], list(results.record["stages"])
    return dict(sorted(found.items(), key=lambda item: (models.index(item[0][0]), stages.index(item[0][1]))))


def _read(profile: Profile, run: StageRun) -> Notebook:
    source = run.folder / "notebook.ipynb"
    content = clean(read_notebook(source), source)
    words = [run.language and LANGUAGES[run.language], subject(profile, run)]
    name = slug("-".join(filter(None, [*_names(profile, run), run.language]))) or "run"
    return Notebook(run, name, ", ".join(filter(None, words)), content, read_json(run.folder / MANIFEST))


def _names(profile: Profile, run: StageRun) -> list[str]:
    world = run.model if profile.world and run.model in profile.world.configurations() else None
    return [name for name in (world, run.variant, run.kind, run.prompt_set) if name]


def subject(profile: Profile, run: StageRun) -> str:
    """What a run is about beside its model and language: ``untuned``, ``on-policy``."""
    names = _names(profile, run)
    if run.variant:
        names[names.index(run.variant)] = variant_title(profile, run.variant)
    if run.prompt_set:
        names[-1] = profile.more_prompts[run.prompt_set].title or run.prompt_set
    return ", ".join(names)


def slug(text: str) -> str:
    """A name that can be a file's and the end of a label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def list_of_runs(results: Results, written: list[Page]) -> str:
    """Every run of the profile as one table a model: a row a stage and variant, the languages in it."""
    places = {id(notebook.run): (page, notebook) for page in written for notebook in page.notebooks}
    rows: dict[str, dict[tuple[str, str], list[str]]] = {}
    for (part, stage), runs in _by_stage(results).items():
        for run in runs:
            about = subject(results.profile, run) if part != WORLD else ""
            word = run.language or (run.model if part == WORLD else "notebook")
            said = ", ".join(filter(None, [results.title(stage), about, run.language and LANGUAGES[run.language]]))
            entry = f'<span class="missing" title="{_attribute(said)}: not run">{html.escape(word)}</span>'
            if id(run) in places:
                page, notebook = places[id(run)]
                entry = f'<a href="{page.address(notebook)}" title="{_attribute(said)}">{html.escape(word)}</a>'
            rows.setdefault(part, {}).setdefault((results.title(stage), about), []).append(entry)
    return "\n\n".join(f"## {part} {{.unnumbered}}\n\n{_table(lines)}" for part, lines in rows.items())


def _table(lines: dict[tuple[str, str], list[str]]) -> str:
    body, before = [], ""
    for (stage, about), entries in lines.items():
        title = stage if stage != before else ""
        before = stage
        words = " ".join(entries)
        body.append(f'<tr><td>{title}</td><td>{html.escape(about)}</td><td class="runs">{words}</td></tr>')
    rows = "\n".join(body)
    head = "<tr><th>Stage</th><th>Of</th><th>Runs</th></tr>"
    table = f'<table class="paper-table table">\n<thead>\n{head}\n</thead>\n<tbody>\n{rows}\n</tbody>\n</table>'
    return raw(f'<div class="cell-output-display">\n{table}\n</div>')


# --- writing a page ---------------------------------------------------------------------------------------------


class _Writer:
    """One page as the Markdown of Quarto and of the preview renderer alike."""

    def __init__(self, page: Page, folder: Path):
        self.page, self.folder = page, folder
        first = page.notebooks[0].content
        self.renamed = {label: f"{label}-{page.slug}" for label in labels(first)}
        self.pictures = 0

    def text(self) -> str:
        """The whole page."""
        front = f'---\nsubtitle: "{_attribute(self.page.part)}"\nnumber-sections: false\n---'
        parts = [front, f"# {self.page.title} {{.unnumbered #sec-{self.page.slug}}}"]
        covered = any(
            f'class="{COVER}"' in text for notebook in self.page.notebooks for text in _html_outputs(notebook.cells)
        )
        if covered:
            parts.append(f'::: {{.callout-warning title="{WARNING_TITLE}"}}\n{WARNING}\n:::')
        if len(self.page.notebooks) > 1:
            parts.append(self._choice())
        titled = False
        for position, cell in enumerate(self.page.notebooks[0].cells):
            if cell.cell_type == "code":
                parts.append(self._code(position, cell))
            elif cell.cell_type == "markdown":
                source = cell.source if titled else _FIRST_HEADING.sub("", cell.source, count=1)
                titled = True
                parts.append(self._renamed(source))
        return "\n\n".join(filter(None, [*parts, self._manifests()])) + "\n"

    def _choice(self) -> str:
        """A menu of the runs, at English where there is one, and a place for links to each."""
        runs = self.page.notebooks
        first = next((notebook for notebook in runs if notebook.run.language == "en"), runs[0])
        options = "".join(
            f'<option value="{notebook.name}"{" selected" * (notebook is first)}>{html.escape(notebook.title)}</option>'
            for notebook in runs
        )
        places = "".join(f'<span id="run-{notebook.name}"></span>' for notebook in runs)
        menu = f'<form class="run-choice" hidden><label>Outputs of <select>{options}</select></label></form>'
        return raw(f"<div>{places}</div>\n{menu}\n{_CHOOSE}")

    def _renamed(self, source: str) -> str:
        for old, new in self.renamed.items():
            source = re.sub(rf"(?<![\w@])@{re.escape(old)}(?![\w-])", f"@{new}", source)
        return source

    def _code(self, position: int, cell: NotebookNode) -> str:
        """One cell: its code, then what each run of it put out."""
        options, code = cell_options(cell.source)
        if not options.get("include", True):
            return ""
        parts = [fenced(code, "{.python .cell-code}")] if options.get("echo", True) and code else []
        alternative = str(options.get("fig-alt") or options.get("fig-cap") or "")
        outputs = self._of_each_run([
            "\n\n".join(self._outputs(notebook, position, alternative)) for notebook in self.page.notebooks
        ])  # fmt: skip
        label = str(options.get("label", ""))
        kind = label.split("-")[0]
        if outputs and kind in ("fig", "tbl"):
            caption = str(options.get(f"{kind}-cap", ""))
            outputs = f":::::: {{#{self.renamed[label]}}}\n\n{outputs}\n\n{caption}\n\n::::::"
        parts += [outputs] if outputs else []
        return ":::::::: {.cell}\n\n" + "\n\n".join(parts) + "\n\n::::::::" if parts else ""

    def _of_each_run(self, texts: list[str]) -> str:
        """The texts, each marked as its run's; one alone where all are the same."""
        if len(set(texts)) == 1:
            return texts[0]
        return "\n\n".join(
            f'::: {{.run data-run="{notebook.name}" data-title="{_attribute(notebook.title)}"}}\n\n{text}\n\n:::'
            for notebook, text in zip(self.page.notebooks, texts, strict=True) if text
        )  # fmt: skip

    def _outputs(self, notebook: Notebook, position: int, alternative: str) -> list[str]:
        def picture(content: bytes, suffix: str) -> str:
            self.pictures += 1
            file = self.folder / "figures" / f"{self.page.slug}-{notebook.name}-{self.pictures}.{suffix}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            return f"figures/{file.name}"

        return [output_text(output, picture, alternative) for output in notebook.cells[position].outputs]

    def _manifests(self) -> str:
        """The end of a page: with what parameters the notebook ran, at which commit, and for how long."""
        manifests = [notebook.manifest for notebook in self.page.notebooks]
        given = [
            {name: _plain(value) for name, value in manifest.get("parameters", {}).items() if value not in ("", None)}
            for manifest in manifests
        ]
        shared = {name: value for name, value in given[0].items() if all(own.get(name) == value for own in given)}
        own = [
            _parameters({name: value for name, value in values.items() if name not in shared}, manifest)
            for values, manifest in zip(given, manifests, strict=True)
        ]
        heading = "## How this notebook was run {.unnumbered}"
        return "\n\n".join(filter(None, [heading, _parameters(shared), self._of_each_run(own)]))


def _parameters(values: Mapping[str, str], manifest: Mapping[str, Any] | None = None) -> str:
    rows = [f"| `{name}` | `{value}` |" for name, value in values.items()]
    parts = ["\n".join(["| parameter | value |", "|---|---|", *rows])] if rows else []
    if manifest is not None:
        facts = [f"seed {manifest.get('seed')}", f"{manifest.get('wall_seconds')} s"]
        if manifest.get("git_commit"):
            facts.append(f"commit `{str(manifest['git_commit'])[:10]}`")
        parts.append(f"It ran with {', '.join(facts)}.")
    return "\n\n".join(parts)


def _plain(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return without_machine_paths(text).replace("|", "\\|").replace("`", "'")


def _attribute(text: str) -> str:
    """A text that can stand between the quotes of an attribute, in HTML and in Markdown."""
    return html.escape(text.replace("\\", "").replace('"', "'"), quote=False)


# --- outputs as Markdown ----------------------------------------------------------------------------------------


def _html_outputs(cells: Iterable[NotebookNode]) -> list[str]:
    found = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs if "data" in output]
    return [output.data.get("text/html", "") for output in found]


def output_text(output: NotebookNode, picture: Callable[[bytes, str], str], alternative: str) -> str:
    """One output of a cell as Markdown.

    ``picture`` keeps an image, given as its bytes and suffix, and returns its address from the page.
    """
    data = output.get("data", {})
    if "text/html" in data:
        return html_block(data["text/html"])
    for mime, suffix in _PICTURES.items():
        if mime in data:
            content = data[mime].encode() if suffix == "svg" else base64.b64decode(data[mime])
            return f'![]({picture(content, suffix)}){{.figure-img fig-alt="{_attribute(alternative)}"}}'
    if "text/markdown" in data:
        return str(data["text/markdown"])
    plain = output.text if output.output_type == "stream" else data.get("text/plain", "")
    return fenced(plain.rstrip(), "{.cell-output}")


def html_block(content: str) -> str:
    """An output of HTML as Markdown."""
    return raw(f'<div class="cell-output cell-output-display">{content}</div>')


def raw(content: str) -> str:
    """HTML that Markdown leaves alone."""
    return fenced(content, "{=html}")


def fenced(content: str, attributes: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", content)), default=0))
    return f"{fence}{attributes}\n{content}\n{fence}"
