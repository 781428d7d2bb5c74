"""All languages of a model scored by one job, ahead of the stage that evaluates each language."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from polydetox import paths, workflow
from polydetox.artifacts import Stage
from polydetox.metrics.evaluate import add_scores
from polydetox.params import check_parameters, load_profile, stage_parameters
from polydetox.report.collect import Results
from polydetox.workflow import Graph
from tiny import make_checkout, run

LANGUAGES = ["en", "de"]
TARGETS = [f"runs/tiny/tiny/base/evaluate/{language}/manifest.json" for language in LANGUAGES]
EVALUATE = {"bootstrap_samples": 20, "judged_samples": 2}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_checkpoints) -> Path:
    """A checkout in which two languages were scored together and evaluated."""
    folder = make_checkout(tmp_path_factory.mktemp("score") / "checkout", tiny_checkpoints["llama"], trim=None,
                           languages=LANGUAGES, score_together=True, evaluate=EVALUATE)  # fmt: skip
    run(folder, *TARGETS)
    return folder


def test_scoring_together_changes_no_score(scored, monkeypatch, tmp_path):
    """Against the scores of each language by itself, which nothing told ahead."""
    monkeypatch.setattr(paths, "root", lambda: scored)
    monkeypatch.setattr(paths, "score_cache", lambda: tmp_path / "cache" / "scores")
    for language in LANGUAGES:
        values = stage_parameters("evaluate", load_profile("tiny"), "tiny", variant="base", lang=language)
        table = pd.read_parquet(scored / f"runs/tiny/tiny/base/generate/{language}/continuations.parquet")
        stage = Stage("evaluate", tmp_path / language, values)
        alone = add_scores(table, check_parameters("evaluate", values), stage)
        together = pd.read_parquet(scored / f"runs/tiny/tiny/base/evaluate/{language}/scores.parquet")
        pd.testing.assert_frame_equal(alone[together.columns], together, check_exact=True)
        assert together["perplexity"].notna().sum() == together.loc[~together["empty"] & (together["sample"] < 2)].shape[0]


def test_the_evaluations_load_no_model(scored):
    folder = scored / "runs/tiny/tiny/base"
    assert "Loading weights" in (folder / "score/notebook.ipynb").read_text()
    for language in LANGUAGES:
        notebook = (folder / f"evaluate/{language}/notebook.ipynb").read_text()
        assert "Loading weights" not in notebook
        assert not (folder / f"evaluate/{language}/parts").exists()
    assert json.loads((folder / "score/manifest.json").read_text())["languages"] == ["de", "en"]


def planned(checkout: Path, targets: list[str], **changes) -> set[str]:
    """How many jobs of each rule a changed profile would run; the profile is put back."""
    path = checkout / "params/profiles/tiny.yaml"
    original = path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(original) | changes))
    try:
        output = run(checkout, "-n", *targets)
    finally:
        path.write_text(original)
    words = [line.split() for line in output.partition("Reasons:")[0].splitlines()]
    return {f"{line[0]} {line[1]}" for line in words if len(line) == 2 and line[0] in ("score", "generate", "evaluate")}


def test_only_what_a_change_concerns_is_scored_again(scored):
    assert planned(scored, TARGETS) == set()
    more = [*TARGETS, TARGETS[0].replace("/en/", "/ja/")]
    # The evaluations only sum up what the stage has kept of the other languages.
    assert planned(scored, more, languages=[*LANGUAGES, "ja"]) == {"generate 1", "score 1", "evaluate 3"}
    assert planned(scored, TARGETS, evaluate=EVALUATE | {"bootstrap_samples": 30}) == {"evaluate 2"}
    assert planned(scored, TARGETS, evaluate=EVALUATE | {"judged_samples": 1}) == {"score 1", "evaluate 2"}


def test_a_job_that_finds_its_scores_asks_for_no_gpu(scored, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: scored)
    graph = Graph("tiny")
    assert graph.is_scored_ahead("tiny", "base") and graph.is_scored_ahead("tiny", "dpo")
    monkeypatch.setattr(workflow, "library_versions", lambda: {"torch": "99.0"})
    assert not Graph("tiny").is_scored_ahead("tiny", "base"), "told by another release"
    runs = [run for run in Results("tiny").stages if run.stage == "score"]
    assert [(run.variant, run.done) for run in runs] == [("base", True), ("dpo", False), ("dpo-lora", False)]
