"""Every notebook, executed by the workflow with papermill on a tiny random-weight model, to the rendered site."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from recorded import SECTIONS

from notebook_cells import run_cells
from polydetox.core import locks, paths
from polydetox.core.errors import UserError
from tiny import CHECKOUT, called, environment, make_checkout, plan, polydetox

OF_MODELS = [section for section in SECTIONS if section != "world"]  # what a profile of models reports
EVALUATED = [(variant, language) for variant in ("base", "dpo") for language in ("de", "en", "ja")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_checkpoints) -> tuple[Path, subprocess.CompletedProcess]:
    """A checkout in which the whole tiny profile has run, and what the command printed.

    One tuned variant is enough here: LoRA and other ways of tuning are run by test_ablations.py.
    """
    folder = make_checkout(tmp_path_factory.mktemp("workflow") / "checkout", tiny_checkpoints["llama"],
                           variants={"dpo": {"pairs": "on-policy"}})  # fmt: skip
    return folder, polydetox(folder, "run", "--profile", "tiny")


def test_the_command_ends_at_the_site(finished):
    checkout, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("runs/tiny/site/index.html")
    assert (checkout / "runs/tiny/site/index.html").is_file()


def stage_folders(checkout: Path) -> list[Path]:
    return sorted(path.parent for path in (checkout / "runs").rglob("manifest.json"))


def test_every_stage_left_its_manifest_and_executed_notebook(finished):
    checkout, _ = finished
    names = {str(folder.relative_to(checkout / "runs")) for folder in stage_folders(checkout)}
    expected = {"checkpoints/tiny", "tiny/tiny/trim", "tiny/tiny/pairs/on-policy"}
    expected |= {f"tiny/tiny/dpo/{stage}" for stage in ("dpo", "merge", "residual", "transfer")}
    variants = ("base", "dpo")
    expected |= {f"tiny/tiny/{variant}/{stage}" for variant in variants for stage in ("generate", "score")}
    expected |= {f"tiny/tiny/{variant}/evaluate/{language}" for variant, language in EVALUATED}
    expected |= {"tiny/tiny/agreement", "tiny/tiny/probe", "tiny/tiny/value_vectors"}
    expected |= {f"tiny/tiny/{variant}/activations" for variant in variants}
    expected |= {"tiny/tiny/base/intervene", "tiny/tiny/base/retrieval"}
    expected |= {f"tiny/tiny/{variant}/capability" for variant in variants}
    expected |= {f"tiny/summary/{section}" for section in OF_MODELS}
    assert names == expected
    for folder in stage_folders(checkout):
        notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        assert all(cell.execution_count for cell in code), folder
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["versions"]["torch"] and manifest["wall_seconds"] >= 0


def test_every_notebook_of_the_repository_is_run_here_or_by_its_own_test():
    # In test_control.py, test_control_eval.py, test_ablations.py; summary_first in tests/site/test_first.py;
    # of tests/unit: test_scoring.py, test_agreement.py, test_labels.py.
    own = {"scorer_head", "scorer_candidates", "control_corpus", "regularise", "profs"}
    own |= {"attribute_eval", "win_rate", "jigsaw_classify", "label_sheet", "human_labels", "summary_labels"}
    own |= {"summary_first"}
    names = {path.stem for path in (CHECKOUT / "notebooks").rglob("*.ipynb")}
    stages = {"checkpoint", "trim", "pairs", "dpo", "merge", "generate", "score", "evaluate", "agreement"}
    stages |= {"probe", "value_vectors", "activations", "intervene", "residual", "retrieval", "transfer"}
    stages |= {"world_pretrain", "world_transfer", "capability"}
    assert names - own == stages | {f"summary_{section}" for section in SECTIONS}


def test_results_are_complete_and_in_range(finished):
    checkout, _ = finished
    for variant, language in EVALUATED:
        folder = checkout / f"runs/tiny/tiny/{variant}/evaluate/{language}"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["prompts"] == 4 and metrics["continuations"] == 12
        assert metrics["scored"] + metrics["empty"] == 12
        for name in ("emt", "toxprob", "avgtox"):
            value = metrics[name]
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
        assert metrics["perplexity"]["median"]["value"] > 1
        scores = pd.read_parquet(checkout / f"runs/tiny/tiny/{variant}/score/scores.parquet")
        scores = scores[scores["language"] == language]
        assert scores.groupby("prompt_id").size().tolist() == [3] * 4


def test_the_continuations_are_compared_under_two_scorers_and_scored_once(finished):
    checkout, _ = finished
    folder = checkout / "runs/tiny/tiny/agreement"
    scores = pd.read_parquet(folder / "scores.parquet")
    assert len(scores) == len(EVALUATED) * 12 and list(scores.columns[-2:]) == ["embedded", "lexicon"]
    english = scores[(scores["variant"] == "dpo") & (scores["language"] == "en")]
    evaluated = pd.read_parquet(checkout / "runs/tiny/tiny/dpo/score/scores.parquet").query("language == 'en'")
    assert np.array_equal(english["embedded"], evaluated["toxicity"], equal_nan=True)
    scales = pd.read_parquet(folder / "scales.parquet")
    assert (scales.loc[scales["scorer"] == "embedded", "matched"] == 0.5).all() and len(scales) == 6
    page = (checkout / "runs/tiny/site/results-detox.html").read_text()
    assert "Mean EMT of Tiny before and after tuning: under" in page


def test_the_mechanism_is_measured_on_the_same_neurons_throughout(finished):
    checkout, _ = finished
    run = checkout / "runs/tiny/tiny"
    sources = pd.read_parquet(run / "value_vectors/sources.parquet")
    metrics = json.loads((run / "value_vectors/metrics.json").read_text())
    assert len(sources) == 12 and sources["cosine"].is_monotonic_decreasing
    assert set(sources["tokens"].map(len)) == {5}, "as many as the profile says"
    assert metrics["actual"] == int((sources["activation"] > 0).sum()) and metrics["neurons"] == 2 * 64
    actual = set(zip(*(sources.loc[sources["actual"], key] for key in ("layer", "neuron")), strict=True))
    for variant, language in EVALUATED:
        neurons = pd.read_parquet(run / f"{variant}/activations/neurons.parquet")
        neurons = neurons[neurons["language"] == language]
        groups = {
            group: set(zip(rows["layer"], rows["neuron"], strict=True)) for group, rows in neurons.groupby("group")
        }
        assert groups["sources"] == actual and len(groups["random"]) == len(actual)
        assert len(groups["matched"]) == len(actual)
        potential = set(zip(sources["layer"], sources["neuron"], strict=True))
        assert not (groups["random"] | groups["matched"]) & potential
    # What is watched while English is continued is what made the sources actual.
    english = pd.read_parquet(run / "base/activations/neurons.parquet").query("language == 'en'")
    assert np.allclose(english.loc[english["group"] == "sources", "activation"],
                       sources.loc[sources["actual"], "activation"], atol=1e-5)  # fmt: skip
    shifted = pd.read_parquet(run / "base/intervene/continuations.parquet")
    assert set(shifted.loc[shifted["group"] == "neutral", "language"]) == {"en"}
    shifted = shifted[shifted["language"] == "en"]
    counts = shifted.groupby(["group", "offset"]).size().to_dict()
    assert counts == {("sources", 0.0): 2, ("sources", -2.0): 2, ("random", 0.0): 4, ("random", -2.0): 4,
                      ("neutral", 0.0): 8, ("neutral", 5.0): 8}  # fmt: skip
    assert shifted.query("group == 'random'").groupby("number").size().to_dict() == {0: 4, 1: 4}, "two sets"
    offsets = pd.read_parquet(run / "base/intervene/offsets.parquet")
    assert offsets["language"].tolist() == ["de", "en", "ja", "mean"] * 2 and (offsets["random_sets"] == 2).all()
    assert (offsets["random_least"] <= offsets["random_most"]).all() and offsets["difference_low"].notna().all()


def test_retrieval_finds_english_in_itself(finished):
    checkout, _ = finished
    folder = checkout / "runs/tiny/tiny/base/retrieval"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["sentences"] == 6 and list(metrics["languages"]) == ["en", "de", "ja"]
    english = metrics["languages"]["en"]
    assert english["accuracy"] == 1.0 and english["aligned_cosine"] == pytest.approx(1.0)
    for language in ("de", "ja"):
        found = metrics["languages"][language]
        assert 0 <= found["accuracy"] <= found["best_accuracy"] <= 1
    layers = pd.read_parquet(folder / "layers.parquet")
    assert layers.groupby("language")["layer"].apply(list).to_dict() == {name: [1, 2] for name in ("de", "en", "ja")}


def test_an_added_language_costs_only_itself(finished, monkeypatch):
    """By hand, in a folder of its own: first two languages, then a third; the shards of the first two are kept."""
    checkout, _ = finished
    folder = checkout / "runs/by-hand"
    monkeypatch.setattr(paths, "root", lambda: checkout)
    monkeypatch.delenv("POLYDETOX_RUNS", raising=False)

    def by_hand(*languages: str) -> dict[str, int]:
        run_cells("retrieval", checkpoint="tiny", sentences="project", limit=6, languages=list(languages),
                  output_folder=str(folder))  # fmt: skip
        assert list(json.loads((folder / "metrics.json").read_text())["languages"]) == ["en", *languages]
        return {file.name.split(".")[0]: file.stat().st_mtime_ns for file in (folder / "parts").iterdir()}

    first = by_hand("de")
    assert set(first) == {"en", "de"}
    second = by_hand("de", "ja")
    assert set(second) == {"en", "de", "ja"} and {name: second[name] for name in first} == first


def test_a_controlled_world_runs_to_its_own_report(finished):
    """A small version of the profile `world`, which has no pretrained model at all."""
    checkout, _ = finished
    profile = {
        "title": "A small world", "languages": ["de", "en", "es"],
        "world": {"sizes": {"s": {"hidden": 32, "layers": 2}}, "alignments": [0.0, 1.0], "seeds": [0],
                  "pretrain": {"steps": 5, "batch_size": 4, "block": 32},
                  "transfer": {"dpo_steps": 2, "dpo_batch_size": 4, "prompts": 4, "n": 2, "sentences": 10}},
    }  # fmt: skip
    (checkout / "params/profiles/small-world.yaml").write_text(yaml.safe_dump(profile))
    done = polydetox(checkout, "run", "--profile", "small-world")
    assert done.returncode == 0, done.stdout + done.stderr
    for configuration, alignment in (("s-a000-s0", 0.0), ("s-a100-s0", 1.0)):
        folder = checkout / f"runs/small-world/world/{configuration}/transfer"
        table = pd.read_parquet(folder / "languages.parquet").set_index("language")
        assert list(table.index) == ["de", "en", "es"] and table.loc["en", "accuracy"] == 1.0
        assert table.loc["en", "direction_cosine"] == pytest.approx(1.0)
        assert table["direction_cosine"].between(-1.001, 1.001).all()
        assert table[["before", "after", "accuracy", "well_formed_before"]].stack().between(0, 1).all()
        metrics = json.loads((folder / "metrics.json").read_text())
        assert (metrics["alignment"], metrics["seed"]) == (alignment, 0)
    page = (checkout / "runs/small-world/site/world.html").read_text()
    assert "This run asks for 2 small models in 3 languages" in page
    assert not (checkout / "runs/small-world/site/results-detox.html").exists()
    assert "make paper PROFILE=offline" in (checkout / "runs/small-world/site/extensions.html").read_text()


def test_no_machine_path_in_manifests_or_site(finished, tiny_checkpoints):
    checkout, _ = finished
    given = str(tiny_checkpoints["llama"])  # the model file itself names a local folder
    for folder in stage_folders(checkout):
        manifest = (folder / "manifest.json").read_text("utf-8").replace(given, "")
        assert str(checkout) not in manifest and sys.prefix not in manifest, folder
    for page in (checkout / "runs/tiny/site").rglob("*.html"):
        assert str(checkout) not in page.read_text("utf-8"), page


def test_a_second_run_does_nothing(finished):
    checkout, _ = finished
    before = {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in stage_folders(checkout)}
    again = polydetox(checkout, "run", "--profile", "tiny")
    assert again.returncode == 0, again.stderr
    assert {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in stage_folders(checkout)} == before


def planned(checkout: Path, file: str, **changes) -> dict[str, int]:
    """How many jobs of each rule the plan has with a changed parameter file."""
    words = [line.split() for line in plan(checkout, file, **changes).splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdigit()}


def test_changed_settings_run_only_what_depends_on_them(finished):
    checkout, _ = finished
    unchanged = called(checkout, "run", "--profile", "tiny", "-n")
    assert unchanged.returncode == 0 and "Nothing to be done" in unchanged.stdout + unchanged.stderr

    counts = planned(checkout, "profiles/tiny.yaml", generate={"n": 2, "max_new_tokens": 6})
    assert counts["generate"] == counts["score"] == 2 and counts["evaluate"] == 6
    assert counts["summary"] == len(OF_MODELS)
    assert not {"checkpoint", "trim", "pairs", "dpo", "merge"} & set(counts)

    # Other weights under the same name: everything made from them is made again.
    counts = planned(checkout, "models/tiny.yaml", dtype="bfloat16")
    assert counts["checkpoint"] == counts["trim"] == counts["pairs"] == 1 and counts["generate"] == 2

    # Without the trimmed vocabulary, what was made with it does not count.
    counts = planned(checkout, "profiles/tiny.yaml", trim=None)
    assert "trim" not in counts and counts["pairs"] == 1 and counts["dpo"] == 1 and counts["generate"] == 2


def test_one_stage_by_hand_with_plain_papermill(finished, monkeypatch):
    """The README's words: papermill alone, with a checkpoint and a language, and no profile."""
    checkout, _ = finished
    manifest = checkout / "runs/tiny/tiny/base/generate/manifest.json"
    before = manifest.read_bytes()
    command = [sys.executable, "-m", "papermill", "notebooks/evaluation/generate.ipynb", "out.ipynb",
               "-p", "checkpoint", "runs/tiny/tiny/trim", "-p", "languages", "de", "-p", "prompts_source", "project",
               "-p", "prompt_limit", "2", "-k", "python3"]  # fmt: skip
    done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(checkout / "runs/manual/generate/continuations.parquet")
    assert len(table) == 2 * 25 and set(table["language"]) == {"de"}
    assert manifest.read_bytes() == before, "a stage run by hand must not touch the run's artefacts"

    misspelt = subprocess.run([*command, "-p", "tempratur", "1"], cwd=checkout, env=environment(checkout),
                              capture_output=True, text=True, timeout=300)  # fmt: skip
    assert misspelt.returncode != 0
    assert "no parameter 'tempratur'; did you mean 'temperature'?" in misspelt.stderr

    monkeypatch.setattr(paths, "root", lambda: checkout)
    monkeypatch.delenv("POLYDETOX_RUNS", raising=False)
    with pytest.raises(UserError, match="the vocabulary was trimmed to de en ja, without 'pl'"):
        run_cells("generate", checkpoint="runs/tiny/tiny/trim", languages=["pl"], prompts_source="project")


def test_a_job_of_the_run_is_opened_by_hand(finished):
    checkout, _ = finished
    job = checkout / "runs/tiny/tiny/dpo/evaluate/ja"
    before = (job / "manifest.json").read_bytes()
    done = polydetox(checkout, "open", str(job), "--no-start")
    assert done.returncode == 0, done.stderr
    copy = checkout / "runs/manual/tiny/tiny/dpo/evaluate/ja/evaluate.ipynb"
    assert done.stdout.strip().endswith(str(copy.relative_to(checkout)))
    command = [sys.executable, "-m", "papermill", str(copy), str(copy), "-k", "python3"]
    by_hand = subprocess.run(command, cwd=copy.parent, env=environment(checkout), capture_output=True, text=True)
    assert by_hand.returncode == 0, by_hand.stderr
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (job, copy.parent)]
    assert metrics[0] == metrics[1] and (job / "manifest.json").read_bytes() == before


@pytest.fixture
def small(tmp_path, tiny_checkpoints) -> Path:
    """A profile of one language without DPO's longer stages, for runs that are stopped or fail."""
    return make_checkout(tmp_path / "checkout", tiny_checkpoints["gpt2"], languages=["en"], trim=None)


def test_a_failing_stage_is_named_and_its_notebook_kept(finished, tmp_path):
    checkout = shutil.copytree(finished[0], tmp_path / "checkout", symlinks=True)
    shutil.rmtree(checkout / "runs/tiny/tiny/base/score")
    table = checkout / "runs/tiny/tiny/base/generate/continuations.parquet"
    whole = table.read_bytes()
    stamp = table.stat()
    table.write_bytes(whole[:100])
    os.utime(table, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    target = "runs/tiny/tiny/base/score/manifest.json"
    failed = polydetox(checkout, "run", "--profile", "tiny", target)
    assert failed.returncode == 1
    lines = [line for line in failed.stderr.splitlines() if "  failed " in line or line.startswith("  the")]
    assert "continuations.parquet: not a readable Parquet file" in lines[0] and "delete it" in lines[0]
    assert lines[1].endswith("runs/tiny/failed/tiny-base-score.ipynb")
    assert (checkout / "runs/tiny/failed/tiny-base-score.ipynb").is_file()

    table.unlink()
    mended = polydetox(checkout, "run", "--profile", "tiny", target)
    assert mended.returncode == 0, mended.stderr
    assert table.read_bytes() != whole[:100] and not list((checkout / "runs/tiny/failed").glob("*"))


def test_a_killed_run_goes_on_by_the_same_command(small):
    command = [sys.executable, "-m", "polydetox", "run", "--profile", "tiny",
               "runs/tiny/tiny/dpo/merge/manifest.json"]  # fmt: skip
    run = subprocess.Popen(command, cwd=small, env=environment(small), stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    pairs = small / "runs/tiny/tiny/pairs/on-policy/manifest.json"
    training = small / "runs/tiny/tiny/dpo/dpo/log.txt"
    deadline = time.time() + 120
    while not training.is_file() and time.time() < deadline:
        time.sleep(0.2)
    assert pairs.is_file()
    os.killpg(run.pid, 9)
    run.wait()
    kept = pairs.stat().st_mtime_ns
    resumed = subprocess.run(command, cwd=small, env=environment(small), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert pairs.stat().st_mtime_ns == kept
    assert (small / "runs/tiny/tiny/dpo/merge/weights/model.safetensors").is_file()


def test_two_runs_of_one_profile_do_not_meet(small):
    with locks.held(small / "runs/tiny/.running"):
        refused = called(small, "run", "--profile", "tiny")
    assert refused.returncode == 2
    assert f"is being run already (process {os.getpid()} on {socket.gethostname()})" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_mistakes_are_named_before_anything_starts(small):
    file = small / "params/profiles/tiny.yaml"
    profile = yaml.safe_load(file.read_text())
    for change, words in [
        ({"langauges": ["en"]}, "unknown key 'langauges'; did you mean 'languages'"),
        ({"prompts": {"source": "rtp-lx", "folder": "nowhere"}}, "nowhere: no such folder"),
        ({"evaluate": {"scorer": "embeded"}}, "'embedded'"),
    ]:
        file.write_text(yaml.safe_dump(profile | change))
        done = called(small, "run", "--profile", "tiny")
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (small / "runs").exists()
    shutil.rmtree(small / "params/prompts")
    file.write_text(yaml.safe_dump(profile))
    assert "training.yaml: no such file" in called(small, "run", "--profile", "tiny").stderr
