"""The papers' profiles with random models of their architectures and data in the published layouts, to the site.

Everything but amounts is as the profiles have it (`python -m tests.rehearsal` runs them whole): here two languages,
fewer models, and this project's multiple-choice tasks, since MMLU alone is 57 tasks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from polydetox.core.params import load_model
from rehearsal import AMOUNTS, PROFILES, SIDE_BY_SIDE, make_checkout, prepare, rehearsed_model, rehearsed_profile
from tiny import CHECKOUT

# Of each kind of tuning one model; both models of paper B, of which Falcon alone has no token before a text.
SUITE: dict[str, dict[str, Any]] = {
    "paper": {
        "models": ["mgpt", "bloom-1b7-detox", "llama-2-7b"],
        "languages": ["en", "ja"],
        "capability": {
            "suites": {
                "arc": {"tasks": ["arc_vi"]},
                "hellaswag": {"tasks": ["hellaswag_ru"]},
                "mmlu": {"tasks": ["m_mmlu_hi"]},
                "crows-pairs": {"tasks": ["crows_pairs_french"]},
                "global-mmlu": {"tasks": ["global_mmlu_ar"]},
                "bias": {"tasks": ["bias_en"], "limit": 2},
                "refusal": {"limit": 2},
            }
        },
    },
    "paper-control": {
        "models": ["falcon-7b"],
        "control": {"attribute_eval": {"suites": {"knowledge": {"tasks": ["knowledge"], "shots": 5, "limit": 2}}}},
    },
}


def flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their full names."""
    if not isinstance(settings, dict) or not settings:
        return {name: settings}
    return {key: value for part, inner in settings.items()
            for key, value in flat(inner, f"{name}.{part}" if name else str(part)).items()}  # fmt: skip


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    old, new = flat(before), flat(after)
    return {name for name in old.keys() | new.keys() if old.get(name, ...) != new.get(name, ...)}


# All that a rehearsal changes where there is no GPU; where there is one, the amounts alone.
CHANGED = {
    "paper": {"dpo.max_steps", "dpo.eval_steps", "dpo.warmup_steps", "generate.engine"},
    "paper-control": {"prompts.limit", "control.regularise.steps"} | {
        f"control.{section}.{name}" for section in ("regularise", "jigsaw_classify.regularise")
        for name in ("iterations", "samples", "rl_steps")},
}  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_rehearsed_with_its_own_settings_but_for_amounts(profile, tmp_path):
    settings = yaml.safe_load((CHECKOUT / f"params/profiles/{profile}.yaml").read_text("utf-8"))
    written = make_checkout(tmp_path, gpu=False) / f"params/profiles/{profile}.yaml"
    assert changed(settings, yaml.safe_load(written.read_text("utf-8"))) == CHANGED[profile]
    amounts = set(flat(AMOUNTS[profile]))
    assert (
        changed(settings, rehearsed_profile(profile, settings, gpu=True))
        == amounts
        == CHANGED[profile] - {"generate.engine"}
    )
    # A setting that the profile gains is rehearsed as well.
    more = settings | {"seed_of_a_later_release": 1, "generate": {"engine": "vllm", "top_p": 0.5}}
    assert changed(more, rehearsed_profile(profile, more, gpu=True)) == amounts


def test_model_files_are_rehearsed_as_they_are_but_for_four_bits():
    for file in (CHECKOUT / "params/models").glob("*.yaml"):
        settings = yaml.safe_load(file.read_text("utf-8"))
        assert rehearsed_model(settings, gpu=True) == settings
        four_bits = settings.get("dpo", {}).get("method") == "qlora"
        assert changed(settings, rehearsed_model(settings, gpu=False)) == ({"dpo.method"} if four_bits else set())


def test_every_model_of_the_profiles_can_be_rehearsed():
    from polydetox.scoring.huggingface import READY
    from rehearsal.checkpoints import REPOSITORIES

    for profile in PROFILES:
        settings = yaml.safe_load((CHECKOUT / f"params/profiles/{profile}.yaml").read_text("utf-8"))
        named = {value for key, value in flat(settings).items() if key.endswith(("judge", "reference_model", "scorer"))}
        named |= {*settings["models"], *settings.get("agreement", {}).get("scorers", [])}
        ready = {READY[name].source for name in named & set(READY)}
        files = [load_model(name) for name in named - set(READY) - {"embedded", "lexicon"}]
        hub = {file.hub for file in files} | {file.tuned.hub for file in files if file.tuned}
        assert ready | hub <= set(REPOSITORIES), profile


def run(profile: str, place: Path) -> Path:
    """The folder of a rehearsal that has run."""
    environment = prepare(place, [profile], gpu=False, **{profile: SUITE[profile]})
    command = [sys.executable, "-m", "polydetox", "run", "--profile", profile, *SIDE_BY_SIDE]
    done = subprocess.run(command, cwd=environment["POLYDETOX_ROOT"], env=environment, capture_output=True, text=True,
                          timeout=3600)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(environment["POLYDETOX_ROOT"]) / "runs" / profile


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text("utf-8"))


# One test a profile: of several, xdist's processes would each run it.
@pytest.mark.rehearsal
def test_paper_goes_to_the_site(tmp_path):
    paper = run("paper", tmp_path)
    assert (paper / "site/index.html").is_file()
    page = (paper / "site/results-detox.html").read_text("utf-8")
    for title in ("mGPT", "BLOOM 1.7B (published)", "Llama 2 7B"):
        assert title in page
    for model, variant in (("mgpt", "dpo"), ("bloom-1b7-detox", "published"), ("llama-2-7b", "dpo")):
        sampled = pd.read_parquet(paper / model / variant / "generate" / "continuations.parquet")
        for language in ("en", "ja"):
            table = sampled[sampled["language"] == language]
            assert table.groupby("prompt_id").size().tolist() == [25, 25], "as many continuations as the paper draws"
            found = metrics(paper / model / variant / "evaluate" / language)
            assert found["perplexity"]["median"]["value"] > 1, "mT5 reads what has text"
    assert metrics(paper / "mgpt/dpo/dpo")["method"] == "full"
    assert metrics(paper / "llama-2-7b/dpo/dpo")["method"] == "lora"
    for model in ("mgpt", "bloom-1b7-detox", "llama-2-7b"):
        assert len(pd.read_parquet(paper / model / "value_vectors/sources.parquet")) == 100
        scores = pd.read_parquet(paper / model / "agreement/scores.parquet")
        scorers = ["embedded", "toxicity-lens", "textdetox-xlmr-large", "detoxify-multilingual", "lexicon"]
        assert list(scores.columns[-5:]) == scorers
        assert scores.loc[scores["language"] == "ja", "detoxify-multilingual"].isna().all(), "which knows no Japanese"


@pytest.mark.rehearsal
def test_paper_control_goes_to_the_site(tmp_path):
    paper_control = run("paper-control", tmp_path)
    page = (paper_control / "site/control.html").read_text("utf-8")
    assert "Falcon 7B" in page and "Regularised (adaptive, parallel)" in page
    control = paper_control / "falcon-7b/control"
    corpus = pd.read_parquet(control / "corpus/corpus.parquet")
    assert corpus.groupby("domain").size().nunique() == 1 and len(corpus) > 40
    assert metrics(control / "corpus")["evaluated_skipped"] > 0
    for algorithm in (
        "plain",
        "filtering",
        "rl",
        "nado",
        "regularised",
        "regularised-adaptive",
        "regularised-parallel",
        "pr-finetune",
    ):
        assert metrics(control / algorithm / "attribute_eval")["perplexity"]["toxic"]["value"] > 1
    assert len(metrics(control / "win_rate")["rates"]) == 9 * 8
    assert (control / "jigsaw_classify/sft-classification/metrics.json").is_file()
