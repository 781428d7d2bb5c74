"""Attribute control through the workflow: every algorithm on a tiny model, each stage's notebook through papermill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from tiny import TINY_PROFILE, called, environment, make_checkout, polydetox

SMALL = {
    "iterations": 2, "steps": 2, "batch_size": 4, "max_length": 96, "warmup_steps": 1, "samples": 12,
    "samples_per_prompt": 2, "max_new_tokens": 5, "head_epochs": 1, "head_batch_size": 4, "head_rank": 4,
    "rl_steps": 2, "rl_prompts": 2, "rl_generations": 2, "lora_rank": 4, "scorer": "lexicon",
}  # fmt: skip
CONTROL = {
    "languages": ["de"],
    "corpus": {"source": "model", "n": 2, "max_new_tokens": 6, "rows_per_domain": 16, "threshold": 0.0,
               "held_out_fraction": 0.2},
    "regularise": SMALL,
    "algorithms": {
        "plain": {"title": "Fine-tuned", "algorithm": "plain"},
        "filtering": {"algorithm": "filtering", "regularise": {"iterations": 1}},
        "rl": {"algorithm": "rl"},
        "nado": {"algorithm": "nado", "regularise": {"head": "tied"}},
        "regularised": {"algorithm": "regularised", "regularise": {
            "direction": "reverse", "backbone": "lora", "tuning": "lora"}},
        "adaptive": {"algorithm": "regularised", "regularise": {
            "schedule": "parallel", "iterations": 3, "regulariser_weight_neutral": 0.0}},
        "pr-finetune": {"algorithm": "pr-finetune", "regularise": {"label_power": 1.0}},
    },
}  # fmt: skip
# All are sampled by one notebook, which differs for NADO alone; every checkpoint is loaded below.
SAMPLED = ("base", "nado", "regularised")
TARGETS = [f"runs/tiny/tiny/control/{algorithm}/constrained_decode/manifest.json" for algorithm in SAMPLED]
TRAINED = [f"runs/tiny/tiny/control/{algorithm}/regularise/manifest.json" for algorithm in CONTROL["algorithms"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_checkpoints) -> Path:
    """A checkout in which every algorithm was trained, and some sampled."""
    folder = make_checkout(
        tmp_path_factory.mktemp("control") / "checkout", tiny_checkpoints["llama"], control=CONTROL, trim=None
    )
    done = polydetox(folder, "run", "--profile", "tiny", *TARGETS, *TRAINED)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def folder_of(checkout: Path, algorithm: str) -> Path:
    return checkout / "runs/tiny/tiny/control" / algorithm


def test_every_notebook_ran_and_left_its_artefacts(finished):
    corpus = pd.read_parquet(folder_of(finished, "corpus") / "corpus.parquet")
    assert corpus.groupby("domain").size().nunique() == 1, "half toxic, half neutral"
    assert set(corpus["split"]) == {"train", "held_out"} and corpus["toxicity"].between(0, 1).all()
    assert all(text.startswith(prompt) for text, prompt in zip(corpus["text"], corpus["prompt"], strict=True))
    shared = corpus.groupby("prompt")["split"].nunique()
    assert (shared == 1).all(), "no prompt on both sides of the split"
    for algorithm in CONTROL["algorithms"]:
        folder = folder_of(finished, algorithm) / "regularise"
        for name in ("manifest.json", "metrics.json", "iterations.parquet", "training_log.parquet"):
            assert (folder / name).is_file(), (algorithm, name)
        assert not list(folder.glob("iterations/*/weights")), "only the last checkpoint is kept"
        cells = nbformat.read(folder / "notebook.ipynb", as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    for target in TARGETS:
        table = pd.read_parquet(finished / Path(target).parent / "continuations.parquet")
        assert table.groupby("language").size().to_dict() == dict.fromkeys(CONTROL["languages"], 4 * 3)
        assert {"prompt_id", "continuation", "gloss"} <= set(table)


def test_each_iteration_keeps_its_samples_head_and_figures(finished):
    folder = folder_of(finished, "adaptive") / "regularise"
    iterations = pd.read_parquet(folder / "iterations.parquet")
    assert iterations["iteration"].tolist() == [0, 1, 2, 3]
    assert iterations[["held_out_toxic", "held_out_neutral"]].notna().all(axis=None)
    # The last iteration of the parallel schedule trains no head, since no model would use it.
    assert iterations["samples"].notna().tolist() == [False, True, True, False]
    for number in ("01", "02"):
        samples = pd.read_parquet(folder / "iterations" / number / "samples.parquet")
        assert set(samples["satisfied"]) <= {0.0, 1.0} and set(samples["domain"]) == {"toxic", "neutral"}
        assert (folder / "iterations" / number / "head/head.safetensors").is_file()
    log = pd.read_parquet(folder / "training_log.parquet")
    assert log[log["metric"] == "next_token"]["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (log[log["metric"] == "kl"]["value"] >= -1e-4).all()


def test_every_algorithm_is_loaded_alike_and_nado_gives_a_distribution(finished, monkeypatch):
    import torch

    from polydetox.attribute_control.head import engine_of
    from polydetox.core import paths
    from polydetox.models.checkpoints import load_causal_lm, load_tokenizer, weights_of

    monkeypatch.setenv("POLYDETOX_ROOT", str(finished))
    monkeypatch.delenv("POLYDETOX_RUNS", raising=False)
    paths.root.cache_clear()
    try:
        logits = {}
        for algorithm in ("base", *CONTROL["algorithms"]):
            weights = weights_of("tiny" if algorithm == "base" else f"runs/tiny/tiny/control/{algorithm}/regularise")
            engine_of(weights, "auto")
            model, tokenizer = load_causal_lm(weights, torch.float32), load_tokenizer(weights)
            with torch.inference_mode():
                logits[algorithm] = model(**tokenizer("The neighbours are", return_tensors="pt")).logits
        assert len({tuple(value.shape) for value in logits.values()}) == 1
        assert torch.allclose(logits["nado"].logsumexp(-1), torch.zeros(1), atol=1e-4)
        # Of the tiny model's texts the oracle rejects none, so RL finds no advantage and leaves the model as it is.
        for algorithm in set(CONTROL["algorithms"]) - {"rl"}:
            assert not torch.allclose(logits[algorithm].log_softmax(-1), logits["base"].log_softmax(-1), atol=1e-6), (
                algorithm
            )
    finally:
        paths.root.cache_clear()


def test_a_killed_training_continues_at_its_iteration(finished):
    """Killed once the second iteration's model is trained; its first two are then not trained again."""
    profile = finished / "params/profiles/tiny.yaml"
    control = CONTROL | {"algorithms": {"killed": {"algorithm": "plain", "regularise": {"iterations": 12, "steps": 1}}}}
    profile.write_text(yaml.safe_dump(TINY_PROFILE | {"control": control, "trim": None}))
    target = "runs/tiny/tiny/control/killed/regularise/manifest.json"
    folder = finished / Path(target).parent
    command = [sys.executable, "-m", "polydetox", "run", "--profile", "tiny", target]
    process = subprocess.Popen(command, cwd=finished, env=environment(finished), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    until = time.time() + 300
    while not (folder / "iterations/02/model.json").is_file():
        assert process.poll() is None and time.time() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2.0)  # the stage notices within a second that its run is gone
    before = {path: path.stat().st_mtime_ns for path in folder.glob("iterations/*/model.json")}
    assert 2 <= len(before) < 12 and not (folder / "manifest.json").is_file()
    done = polydetox(finished, "run", "--profile", "tiny", target)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "an iteration was trained again"
    assert json.loads((folder / "metrics.json").read_text())["iterations"] == 12


def test_what_is_missing_is_said_before_the_run(finished, tmp_path):
    profile = finished / "params/profiles/missing.yaml"
    control = CONTROL | {"corpus": {"toxigen": "/nowhere"}}
    profile.write_text(yaml.safe_dump(TINY_PROFILE | {"control": control}))
    done = called(finished, "run", "--profile", "missing")
    assert done.returncode == 2 and "control: corpus: toxigen '/nowhere': no such folder or file" in done.stderr
    # What is there but has too little, before a model is fetched: once here, and again by the stage.
    pd.DataFrame({"generation": ["a", "b"], "prompt_label": [1, 0]}).to_parquet(tmp_path / "toxigen.parquet")
    (tmp_path / "wikitext.txt").write_text("a short line\n")
    for texts, message in (
        ({"toxigen": "toxigen.parquet"}, "toxigen.parquet: no two toxic statements there"),
        ({"toxigen": "two.parquet", "wikitext": "wikitext.txt"}, "no two paragraphs there"),
    ):
        pd.DataFrame({"generation": ["a", "b"], "prompt_label": [1, 1]}).to_parquet(tmp_path / "two.parquet")
        corpus = {name: str(tmp_path / file) for name, file in texts.items()}
        profile.write_text(yaml.safe_dump(TINY_PROFILE | {"control": CONTROL | {"corpus": corpus}}))
        done = called(finished, "run", "--profile", "missing")
        assert done.returncode == 2 and message in done.stderr, done.stderr
