"""What ran: the tables of stages, artefacts, versions and licences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polydetox.core.languages import LANGUAGES
from polydetox.core.params import load_model
from polydetox.results.collect import Results
from polydetox.results.stages import variant_title
from polydetox.results.tables import NOT_APPLICABLE, NOT_RUN, Cell, Group, PaperTable, number

if TYPE_CHECKING:
    from IPython.display import Markdown


def not_run(what: str) -> Markdown:
    """What a notebook shows in place of a figure or table whose artefacts are not there."""
    from IPython.display import Markdown

    return Markdown(f"*Not run: {what}.*")


# --- provenance -------------------------------------------------------------------------------------------------


def stages_table(results: Results) -> PaperTable:
    """Of each stage how many runs the profile asks for, how many are done, and how long they took."""
    columns = ["Stage", "Runs", "Done", "Total time", "Longest"]
    done = results.manifests()
    lines: list[list[Cell | str]] = []
    for stage, title in ((name, each["title"]) for name, each in results.record["stages"].items()):
        asked = [run for run in results.stages if run.stage == stage]
        if asked:
            seconds = done.loc[done["stage"] == stage, "wall_seconds"].astype(float)
            times = (
                [Cell(duration(seconds.sum())), Cell(duration(seconds.max()))] if len(seconds) else [Cell(NOT_RUN)] * 2
            )
            lines.append([title, number(len(asked), 0), number(len(seconds), 0), *times])
    return PaperTable(columns, [Group(None, lines)])


def artefacts_table(results: Results) -> PaperTable:
    """Every finished run of a stage: its time, seed and commit, and the hash of what it wrote."""
    columns = ["Stage", "What", "Seed", "Time", "Commit", "sha256"]
    rows: list[list[Cell | str]] = [
        [results.title(row.stage), _subject(results, row), Cell(str(row.seed)), Cell(duration(row.wall_seconds)),
         str(row.git_commit or NOT_APPLICABLE)[:10], str(row.sha256 or NOT_APPLICABLE)[:12]]
        for row in results.manifests().itertuples()
    ]  # fmt: skip
    return PaperTable(columns, [Group(None, rows or [["", NOT_RUN, Cell(""), Cell(""), "", ""]])])


def _subject(results: Results, row: Any) -> str:
    """What one run of a stage was about, in words."""
    parts = [results.models.get(row.model, row.model)]
    if isinstance(row.kind, str):
        parts.append(f"{row.kind} pairs" if row.stage == "pairs" else row.kind)
    if isinstance(row.variant, str):
        parts.append(variant_title(results.profile, row.variant))
    if isinstance(row.prompt_set, str):
        parts.append(results.profile.more_prompts[row.prompt_set].title or row.prompt_set)
    if isinstance(row.language, str):
        parts.append(LANGUAGES[row.language])
    return ", ".join(parts)


def versions_table(results: Results) -> PaperTable:
    """The libraries that the finished stages recorded."""
    rows = [[name, ", ".join(versions)] for name, versions in results.versions().items()]
    return PaperTable(["Package", "Version"], [Group(None, rows or [["", NOT_RUN]])])


def licences_table(results: Results) -> PaperTable:
    """The licence of each model, and the notice that it asks to be shown."""
    rows = []
    for model in map(load_model, results.profile.models):
        rows.append([model.title, model.licence, " ".join(part for part in (model.notice, model.licence_url) if part)])
    return PaperTable(["Model", "Licence", "Notice"], [Group(None, rows)])


def duration(seconds: float) -> str:
    """A time as a person reads it: ``42 s``, ``3 min 20 s``, ``2 h 5 min``.

    >>> duration(200)
    '3 min 20 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
