"""Pages of executed notebooks: prose and code once, the outputs of each run, and a list that leads to all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from recorded import recorded

from polydetox.core import paths
from polydetox.core.params import load_profile
from polydetox.report import appendices
from polydetox.report.links import Links
from polydetox.report.notebooks import outputs_text
from polydetox.results.collect import Results
from polydetox.results.stages import StageRun

LIST = "# Notebooks {.unnumbered}\n\nAll of them.\n"


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """An empty folder of runs, beside a book whose list of runs is still to be written."""
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / appendices.LIST).write_text(LIST)
    return tmp_path


def leave(run: StageRun, code: str = "measure()", *, prose: str = "See @fig-a and @fig-ab.", **parameters) -> None:
    """Write what a finished run of a stage leaves: its notebook and its manifest."""
    about = f"{run.language} {run.variant} {run.model}"
    svg = new_output("display_data", data={"image/svg+xml": f"<svg><desc>{about}</desc></svg>", "text/plain": "x"})
    covered = f'<details class="masked"><summary>s</summary><div class="masked-body">{about}</div></details>'
    notebook = new_notebook(cells=[
        new_markdown_cell(f"# A title\n\n{prose}"),
        new_code_cell("lang = 'xx'", execution_count=1, metadata={"tags": ["injected-parameters"]}),
        new_code_cell("load()", execution_count=2, outputs=[new_output("stream", name="stdout", text="24 prompts\n")]),
        new_code_cell(f"#| label: fig-a\n#| fig-cap: Caption\n{code}", execution_count=3, outputs=[svg]),
        new_code_cell("cover()", execution_count=4, outputs=[new_output("display_data", data={"text/html": covered})]),
        new_code_cell("say()", execution_count=5,
                      outputs=[new_output("display_data", data={"text/markdown": f"Said of {about}."})]),
    ])  # fmt: skip
    run.folder.mkdir(parents=True)
    nbformat.write(notebook, run.folder / "notebook.ipynb")
    manifest = {"parameters": {"model": run.model, "lang": run.language, "n": 3, "folder": "", **parameters}, "seed": 3,
                "wall_seconds": 1.5, "git_commit": "0123456789abcdef"}  # fmt: skip
    (run.folder / "manifest.json").write_text(json.dumps(manifest))


def write(results: Results, folder: Path) -> list[str]:
    """Write the appendices into the book in a folder."""
    return appendices.write_appendices(results, Links(folder / "book", appendices.summary_runs(results), {}))


def chosen(results: Results, stage: str, **about) -> list[StageRun]:
    """The runs of a stage whose fields have one of the given values."""
    wanted = [run for run in results.stages if run.stage == stage]
    return [run for run in wanted if all(getattr(run, name) in values for name, values in about.items())]


def test_a_page_has_prose_and_code_once_and_the_outputs_of_each_run(runs):
    results = recorded("offline")
    for run in chosen(results, "evaluate", language=["de", "en"]):
        if run.variant in ("base", "dpo"):
            leave(run, variant=run.variant)
    parts = write(results, runs)
    assert parts == ["notebooks.qmd", "notebooks/evaluate.qmd"]
    text = (runs / "book/notebooks/evaluate.qmd").read_text()
    assert "# Evaluation {.unnumbered #sec-notebook-evaluate}" in text and "A title" not in text
    assert text.count("measure()") == text.count("See @fig-a-evaluate and @fig-ab.") == 1
    assert text.count("24 prompts") == 1, "what all runs put out is shown once"
    assert "lang = 'xx'" not in text and "Content warning" in text
    assert text.count("{#fig-a-evaluate}") == text.count("\n\nCaption\n\n::::::") == 1
    names = [f"gemma-3-270m-{side}" for side in ("base-de", "dpo-de", "base-en", "dpo-en")]
    assert re.findall(r'<option value="([^"]*)"', text) == names
    assert re.findall(r'<option value="([^"]*)" selected>([^<]*)<', text) == [
        (names[2], "Gemma 3 270M, English, base model")
    ]
    assert re.findall(r'<span id="run-([^"]*)">', text) == names
    for name in names:
        variant, language = name.split("-")[-2:]
        mine = "\n".join(re.findall(rf'^::: {{\.run data-run="{name}"[^\n]*}}\n(.*?)^:::$', text, re.M | re.S))
        about = f"{language} {variant} gemma-3-270m"
        assert f'<div class="masked-body">{about}</div>' in mine and f"Said of {about}." in mine
        (picture,) = re.findall(r"!\[\]\((\S+)\)\{\.figure-img fig-alt=\"Caption\"\}", mine)
        assert about in (runs / "book/notebooks" / picture).read_text()
        assert f"lang: {language}\n" in mine and f"variant: {variant}\n" in mine
        file = f"evaluate-{name}.ipynb"
        assert f'<a href="../files/{file}" download>Download</a>' in mine and (runs / "book/_files" / file).is_file()
        assert f"<code>polydetox open runs/offline/gemma-3-270m/{variant}/evaluate/{language}</code>" in mine
        assert "seed 3, 1.5 s, commit `0123456789`" in mine and "\nn: 3\n" in mine and "folder:" not in mine


def test_one_run_needs_no_choice(runs):
    results = recorded("offline")
    (run,) = (run for run in chosen(results, "dpo") if run.variant == "dpo")
    leave(run, languages=["a", "b|c"])
    write(results, runs)
    text = (runs / "book/notebooks/dpo.qmd").read_text()
    assert "<select" not in text and ".run" not in text
    assert "![](figures/dpo-gemma-3-270m-dpo-1.svg)" in text and "Said of None dpo" in text
    assert "- b|c\n" in text
    listed = (runs / "book/notebooks.qmd").read_text()
    assert 'href="notebooks/dpo.html"' in listed


def test_runs_of_another_version_of_the_notebook_have_a_page_of_their_own(runs):
    results = recorded("offline")
    german, english = chosen(results, "evaluate", variant=["base"], language=["de", "en"])
    leave(english)
    leave(german, "measure(more=True)")
    first, second = appendices.pages(results)
    assert [page.title for page in (first, second)] == ["Evaluation", "Evaluation, version 2"]
    assert [page.slug for page in (first, second)] == ["evaluate", "evaluate-2"]
    assert [page.notebooks[0].run.language for page in (first, second)] == ["de", "en"]
    write(results, runs)
    texts = [(runs / "book/notebooks" / f"{page.slug}.qmd").read_text() for page in (first, second)]
    assert "{#fig-a-evaluate}" in texts[0] and "{#fig-a-evaluate-2}" in texts[1]


def test_the_list_names_every_run_and_leads_to_those_that_were_done(runs):
    results = recorded("offline")
    for run in chosen(results, "evaluate", variant=["base"], language=["de", "fr"]):
        leave(run)
    write(results, runs)
    text = (runs / "book/notebooks.qmd").read_text()
    assert text.startswith("# Notebooks {.unnumbered}\n\nAll of them.\n\n## Report {.unnumbered}\n")
    heading = "Summary: Toxicity before and after"
    assert text.index("## Report") < text.index(heading) < text.index("## Gemma 3 270M {.unnumbered}\n")
    assert re.findall(r'href="([^"]*)" title="([^"]*)"', text) == [
        (f"notebooks/evaluate.html#run-gemma-3-270m-base-{code}", f"Evaluation, base model, {name}")
        for code, name in (("de", "German"), ("fr", "French"))
    ]  # fmt: skip
    assert text.count('class="missing"') == len(results.stages) + len(results.record["sections"]) - 2
    assert 'title="Evaluation, DPO, German: not run">de</span>' in text


def test_models_share_the_page_of_a_stage(runs):
    results = recorded("paper")
    models = [run for run in chosen(results, "evaluate", variant=["base"], language=["de"])][:2]
    for run in models:
        leave(run)
    assert write(results, runs)[1:] == ["notebooks/evaluate.qmd"]
    text = (runs / "book/notebooks/evaluate.qmd").read_text()
    titles = [results.models[run.model] for run in models]
    assert re.findall(r">([^<]*)</option>", text) == [f"{title}, German, base model" for title in titles]
    assert len(set(titles)) == 2
    assert all(f'data-title="{title}, German, base model"' in text for title in titles)
    stages = {run.stage for run in results.stages}
    assert len(stages) < 30, "however many models and languages, which are jobs, a stage is one page"


def test_the_small_models_of_the_world_share_two_pages(runs):
    profile = load_profile("world")
    first, *_, last = profile.world.configurations()
    for cell in (first, last):
        for part in ("pretrain", "transfer"):
            leave(StageRun(f"world_{part}", paths.profile_run("world") / "world" / cell / part, cell))
    parts = write(recorded("world"), runs)
    assert parts[-2:] == ["notebooks/world-pretrain.qmd", "notebooks/world-transfer.qmd"]
    text = (runs / "book/notebooks/world-transfer.qmd").read_text()
    assert re.findall(r'<option value="([^"]*)"', text) == list(map(appendices.slug, (first, last)))
    listed = (runs / "book/notebooks.qmd").read_text()
    assert listed.count("<a href=") == 4 and f">{last}</a>" in listed


def test_no_output_can_leave_its_fence(runs):
    nasty = new_output("stream", name="stdout", text="```\n::: {#fig-x}\n````")
    shown = outputs_text(new_code_cell("", outputs=[nasty]), lambda content, suffix: "")
    assert shown == "`````{.cell-output}\n```\n::: {#fig-x}\n````\n`````"
    markup = new_output("display_data", data={"text/html": "<p>```</p>", "text/plain": "x"})
    shown = outputs_text(new_code_cell("", outputs=[markup]), lambda content, suffix: "")
    assert shown.startswith("````{=html}\n")
