"""The evaluation of attribute control on a tiny model, each stage's notebook through papermill."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tiny import called, make_checkout, polydetox

SMALL = {
    "iterations": 2, "steps": 1, "batch_size": 4, "max_length": 48, "warmup_steps": 0, "samples": 8,
    "samples_per_prompt": 2, "max_new_tokens": 4, "head_epochs": 1, "head_batch_size": 4, "head_rank": 4,
    "scorer": "lexicon",
}  # fmt: skip
SUITES = {
    "knowledge": {"tasks": ["knowledge"], "shots": 1, "limit": 2},
    "commonsense": {"tasks": ["commonsense"], "limit": 3},
}
CONTROL = {
    "languages": ["de", "en"],
    "corpus": {"source": "model", "n": 2, "max_new_tokens": 6, "rows_per_domain": 16, "threshold": 0.0},
    "regularise": SMALL,
    "algorithms": {"plain": {"title": "plain fine-tuning", "algorithm": "plain"}},
    "attribute_eval": {"suites": SUITES, "bootstrap_samples": 20, "scorer": "lexicon"},
    "win_rate": {"bootstrap_samples": 20},
    "jigsaw_classify": {
        "limit": 40, "label_threshold": 0.2, "epochs": 0.2, "max_length": 128, "n": 2, "max_new_tokens": 4,
        "prompt_limit": 2, "bootstrap_samples": 20, "scorer": "lexicon",
        "regularise": {name: SMALL[name] for name in SMALL if name not in ("steps", "max_length", "batch_size")},
    },
}  # fmt: skip
RUN = "runs/tiny/tiny/control"
TARGETS = [f"{RUN}/{name}/manifest.json" for name in (
    "base/attribute_eval", "plain/attribute_eval", "win_rate", "jigsaw_classify/regularised-lm",
    "jigsaw_classify/sft-classification",
)]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_checkpoints) -> Path:
    """A checkout in which an algorithm and the base model were evaluated, and two ways to learn from comments run."""
    folder = make_checkout(
        tmp_path_factory.mktemp("control") / "checkout", tiny_checkpoints["llama"], control=CONTROL, trim=None,
        languages=["en", "de"],
    )  # fmt: skip
    done = polydetox(folder, "run", "--profile", "tiny", *TARGETS)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def metrics(checkout: Path, name: str) -> dict:
    return json.loads((checkout / RUN / name / "metrics.json").read_text())


def test_every_algorithm_answers_the_same_questions_and_prompts(finished):
    tables = {}
    for algorithm in ("base", "plain"):
        found = metrics(finished, f"{algorithm}/attribute_eval")
        assert list(found["toxicity"]) == ["de", "en"] and set(found["suites"]) == set(SUITES)
        for language in ("de", "en"):
            assert found["toxicity"][language]["prompts"] == 4
            rate = found["toxicity"][language]["toxic_fraction"]
            assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
        assert all(found["perplexity"][half]["value"] > 1 for half in ("toxic", "neutral"))
        folder = finished / RUN / algorithm / "attribute_eval"
        tables[algorithm] = pd.read_parquet(folder / "items.parquet")
        assert not (folder / "tasks").exists(), "what was kept for a stopped run is cleared away"
    keys = ["suite", "task", "item"]
    assert tables["base"][keys].equals(tables["plain"][keys]) and len(tables["base"]) == 5
    base, plain = (metrics(finished, f"{algorithm}/attribute_eval")["perplexity"]["toxic"]["value"]
                   for algorithm in ("base", "plain"))  # fmt: skip
    assert base != plain


def test_win_rates_mirror_each_other(finished):
    found = metrics(finished, "win_rate")
    rates = {(row["algorithm"], row["opponent"]): row["value"] for row in found["rates"]}
    assert set(rates) == {("base", "plain"), ("plain", "base")}
    assert rates["base", "plain"] + rates["plain", "base"] == pytest.approx(1.0)
    assert found["lang"] == "en" and len(pd.read_parquet(finished / RUN / "win_rate/pairs.parquet")) == 4


def test_comments_are_learnt_and_detected(finished):
    for condition in ("regularised-lm", "sft-classification"):
        found = metrics(finished, f"jigsaw_classify/{condition}")
        assert found["texts_train"] > found["texts_test"] > 1
        for way in ("prompting", "head"):
            assert 0 <= found[way]["low"] <= found[way]["value"] <= found[way]["high"] <= 1
        folder = finished / RUN / "jigsaw_classify" / condition
        trained = folder / "regularise" if condition == "regularised-lm" else folder
        assert (trained / "weights/model.safetensors").is_file() and not list(folder.glob("trainer-*"))


def test_the_language_model_keeps_the_classifiers_backbone(finished):
    from safetensors.torch import load_file

    folder = finished / RUN / "jigsaw_classify/sft-classification"
    backbone, classifier = (load_file(folder / name / "model.safetensors") for name in ("weights", "classifier"))
    shared = [name for name in backbone if name in classifier]
    assert len(shared) > 10 and all((backbone[name] == classifier[name]).all() for name in shared)
    assert "score.weight" in classifier and "lm_head.weight" in backbone


def test_mistakes_are_named_before_anything_starts(finished):
    import yaml

    file = finished / "params/profiles/tiny.yaml"
    original = file.read_text()
    profile = yaml.safe_load(original)
    try:
        for change, words in [
            ({"attribute_eval": {"suites": {"k": {"tasks": ["knowledge"], "shots": 9}}}}, "task 'knowledge' has 5"),
            ({"win_rate": {"judge": "nowhere"}}, "model 'nowhere': no such file"),
            ({"jigsaw_classify": {"texts": "nowhere.csv"}}, "nowhere.csv: cannot be read (No such file"),
        ]:
            file.write_text(yaml.safe_dump(profile | {"control": CONTROL | change}))
            done = called(finished, "run", "--profile", "tiny", TARGETS[0])
            assert done.returncode == 2 and words in done.stderr, done.stderr
    finally:
        file.write_text(original)
