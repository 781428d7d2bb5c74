"""Continuations and scores of all languages by one job each; each language is then evaluated without any model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from threadpoolctl import threadpool_limits

from notebook_cells import run_cells, some_cells
from polydetox.core import paths
from polydetox.core.artifacts import Stage
from polydetox.core.parameters import checked
from polydetox.workflow import load
from tiny import make_checkout, plan, polydetox

LANGUAGES = ["en", "de"]
FIRST = ["de"]  # have jobs of their own before those of all languages
TARGETS = [f"runs/tiny/tiny/base/evaluate/{language}/manifest.json" for language in LANGUAGES]
EVALUATE = {"bootstrap_samples": 20, "perplexity_samples": 2}
GENERATE = {"n": 3, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_checkpoints) -> Path:
    """A checkout in which two languages were sampled, scored and evaluated."""
    folder = make_checkout(tmp_path_factory.mktemp("score") / "checkout", tiny_checkpoints["llama"], trim=None,
                           languages=LANGUAGES, first=FIRST, evaluate=EVALUATE)  # fmt: skip
    done = polydetox(folder, "run", "--profile", "tiny", *TARGETS)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_each_language_has_the_scores_that_it_has_alone(scored, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "root", lambda: scored)
    monkeypatch.setattr(paths, "score_cache", lambda: tmp_path / "cache" / "scores")
    settings = checked("score", **load("tiny").resolved("score", model="tiny", variant="base"))
    sampled = pd.read_parquet(scored / "runs/tiny/tiny/base/generate/continuations.parquet")
    together = pd.read_parquet(scored / "runs/tiny/tiny/base/score/scores.parquet")
    for language in LANGUAGES:
        table = sampled[sampled["language"] == language].reset_index(drop=True)
        cells = ("5f68c445", "score-models", "score-rows", "score-key", "score-shards")
        made = some_cells("score", settings, Stage("score", tmp_path / language, {}), cells)
        with threadpool_limits(1):  # as its job has
            alone = made["values_of"](table, language)
        mine = together[together["language"] == language].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, mine[made["VALUES"]], check_exact=True)
        assert mine["perplexity"].notna().sum() == mine.loc[~mine["empty"] & (mine["sample"] < 2)].shape[0]


def test_the_evaluations_load_no_model(scored):
    folder = scored / "runs/tiny/tiny/base"
    assert "Loading weights" in (folder / "score/notebook.ipynb").read_text()
    for language in LANGUAGES:
        assert "Loading weights" not in (folder / f"evaluate/{language}/notebook.ipynb").read_text()
    code = "import sys, polydetox.metrics.evaluate; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stdout + done.stderr


def test_the_first_languages_are_sampled_and_scored_once(scored, monkeypatch, tmp_path):
    """Their own job is the first; that of all languages takes over its shards, and has what it has without it."""
    folder = scored / "runs/tiny/tiny/base"
    for stage, table in (("generate", "continuations"), ("score", "scores")):
        early, whole = (pd.read_parquet(folder / part / stage / f"{table}.parquet") for part in ("first", ""))
        assert set(early["language"]) == set(FIRST) and set(whole["language"]) == set(LANGUAGES)
        pd.testing.assert_frame_equal(early, whole[whole["language"] == "de"].reset_index(drop=True), check_exact=True)
        made = {language: [file.stat().st_mtime_ns for file in (folder / stage / "parts" / language).rglob("*.parquet")]
                for language in LANGUAGES}  # fmt: skip
        ended = (folder / "first" / stage / "manifest.json").stat().st_mtime_ns
        assert max(made["de"]) < ended < min(made["en"]) and not (folder / "first" / stage / "parts").exists()
    monkeypatch.setattr(paths, "root", lambda: scored)
    settings = load("tiny").resolved("generate", model="tiny", variant="base")
    run_cells("generate", **settings | {"output_folder": str(tmp_path)})
    without, whole = (pd.read_parquet(of / "continuations.parquet") for of in (tmp_path, folder / "generate"))
    pd.testing.assert_frame_equal(without, whole, check_exact=True)


def planned(checkout: Path, targets: list[str], **changes) -> set[str]:
    """How many jobs of each rule a changed profile would run."""
    output = plan(checkout, "profiles/tiny.yaml", *targets, **changes)
    words = [line.split() for line in output.partition("Reasons:")[0].splitlines()]
    return {f"{line[0]} {line[1]}" for line in words if len(line) == 2 and line[0] in ("score", "generate", "evaluate")}


def test_only_what_a_change_concerns_is_scored_again(scored):
    assert planned(scored, TARGETS) == set()
    more = [*TARGETS, TARGETS[0].replace("/en/", "/ja/")]
    assert planned(scored, more, languages=[*LANGUAGES, "ja"]) == {"generate 1", "score 1", "evaluate 3"}
    assert planned(scored, TARGETS, evaluate=EVALUATE | {"bootstrap_samples": 30}) == {"evaluate 2"}
    assert planned(scored, TARGETS, evaluate=EVALUATE | {"perplexity_samples": 1}) == {"score 2", "evaluate 2"}
    assert planned(scored, TARGETS, generate=GENERATE | {"n": 2}) == {"generate 2", "score 2", "evaluate 2"}
    assert planned(scored, TARGETS, first=["en"]) == {"generate 2", "score 2", "evaluate 2"}, "from what is kept"


def test_an_added_language_leaves_the_batches_of_the_others_as_they_are(scored):
    """The jobs of the model run again, and compute the new language alone."""
    folder = scored / "runs/tiny/tiny/base"
    kept = {file: file.stat().st_mtime_ns for stage in ("generate", "score")
            for file in (folder / stage / "parts").rglob("*.parquet")}  # fmt: skip
    assert {file.relative_to(folder).parts[2] for file in kept} == set(LANGUAGES)
    path = scored / "params/profiles/tiny.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"languages": [*LANGUAGES, "ja"]}))
    before = pd.read_parquet(folder / "score/scores.parquet")
    done = polydetox(scored, "run", "--profile", "tiny", TARGETS[0].replace("/en/", "/ja/"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    after = pd.read_parquet(folder / "score/scores.parquet")
    assert set(after["language"]) == {"de", "en", "ja"}
    same = after[after["language"].isin(LANGUAGES)].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, before)
