"""All languages of a model drawn by one engine, ahead of the stage that makes each language's table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from polydetox import paths, workflow
from polydetox.report.appendices import pages
from polydetox.report.collect import Results
from polydetox.report.sections import STAGE_TITLES, stages_table
from polydetox.workflow import Graph
from tiny import make_checkout, run

TARGETS = [f"runs/tiny/tiny/base/generate/{language}/manifest.json" for language in ("en", "de")]
GENERATE = {"n": 3, "max_new_tokens": 6, "engine": "transformers"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, tiny_checkpoints) -> list[Path]:
    """Two checkouts: one in which the languages are drawn together, one in which each is drawn by itself."""
    checkouts = []
    for together in (True, False):
        folder = make_checkout(tmp_path_factory.mktemp("draw") / "checkout", tiny_checkpoints["llama"],
                               draw_together=together, trim=None, languages=["en", "de"], generate=GENERATE)  # fmt: skip
        run(folder, *TARGETS)
        checkouts.append(folder)
    return checkouts


def test_drawing_together_changes_no_continuation(drawn):
    together, apart = drawn
    assert (together / "runs/tiny/tiny/base/draw/manifest.json").is_file()
    assert not (apart / "runs/tiny/tiny/base/draw").exists()
    for target in TARGETS:
        table = target.replace("manifest.json", "continuations.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(together / table), pd.read_parquet(apart / table))


def test_the_stages_that_follow_load_no_model(drawn):
    together, apart = drawn
    manifest = json.loads((together / "runs/tiny/tiny/base/draw/manifest.json").read_text())
    tables = [pd.read_parquet(together / target.replace("manifest.json", "continuations.parquet")) for target in TARGETS]
    assert manifest["new_tokens"] == sum(int(table["tokens"].sum()) for table in tables) > 0
    for target in TARGETS:
        assert "Loading weights" in (apart / target).with_name("notebook.ipynb").read_text()
        assert "Loading weights" not in (together / target).with_name("notebook.ipynb").read_text()


def planned(checkout: Path, targets: list[str], **changes) -> set[str]:
    """How many jobs of each rule a changed profile would run; the profile is put back."""
    path = checkout / "params/profiles/tiny.yaml"
    original = path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(original) | changes))
    try:
        lines = run(checkout, "-n", *targets).splitlines()
    finally:
        path.write_text(original)
    words = [line.split() for line in lines]
    return {f"{line[0]} {line[1]}" for line in words if len(line) == 2 and line[0] in ("draw", "generate")}


def test_only_what_a_change_concerns_is_drawn_again(drawn):
    together, _ = drawn
    assert planned(together, TARGETS) == set()
    more = [*TARGETS, TARGETS[0].replace("/en/", "/ja/")]
    assert planned(together, more, languages=["en", "de", "ja"]) == {"generate 1"}
    assert planned(together, TARGETS, generate=GENERATE | {"n": 2}) == {"draw 1", "generate 2"}


def test_a_job_that_finds_its_batches_asks_for_no_gpu(drawn, monkeypatch):
    together, apart = drawn
    for checkout, expected in ((together, (True, False)), (apart, (False, False))):
        monkeypatch.setattr(paths, "root", lambda checkout=checkout: checkout)
        graph = Graph("tiny")
        assert tuple(graph.is_drawn_ahead("tiny", "base", language) for language in ("de", "ja")) == expected
    monkeypatch.setattr(paths, "root", lambda: together)
    assert Graph("tiny").is_drawn_ahead("tiny", "dpo", "ja"), "that stage has not run, and will draw all languages"
    monkeypatch.setattr(workflow, "library_versions", lambda: {"vllm": "99.0"})
    assert not Graph("tiny").is_drawn_ahead("tiny", "base", "de"), "drawn with another release"


def test_the_report_shows_what_was_drawn_ahead(drawn, monkeypatch, tmp_path):
    together, apart = drawn
    monkeypatch.setattr(paths, "root", lambda: together)
    results = Results("tiny")
    runs = [run for run in results.stages if run.stage == "draw"]
    assert [(run.variant, run.done) for run in runs] == [("base", True), ("dpo", False), ("dpo-lora", False)]
    assert "draw" in set(results.manifests()["stage"])
    assert any(row[0] == STAGE_TITLES["draw"] for group in stages_table(results).groups for row in group.rows)
    assert "notebooks/tiny-draw.qmd" in {page.file for page in pages(results)}
    monkeypatch.setattr(paths, "root", lambda: apart)
    assert not [run for run in Results("tiny").stages if run.stage == "draw"]
