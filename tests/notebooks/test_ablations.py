"""A profile with own pairs and prompts, an ablation and optional data, run on a tiny random model to the site."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest

from tiny import make_checkout, polydetox

PROFILE = {
    "languages": ["de"],
    "mechanism": None,
    "alignment": None,
    "agreement": None,
    "capability": None,
    "evaluate": {"bootstrap_samples": 50, "scorer": "lexicon", "second_scorer": None},
    "pairs": {
        "mine": {"data": "$MY_DATA/pairs.csv", "columns": {"prompt": "question", "chosen": "better"}},
        "rtp-lx": {"folder": "$RTP_LX"},
        "single": {"data": "$MY_DATA/single.csv", "columns": {"label": "good"}},
    },
    "more_prompts": {
        "further": {"title": "Further", "source": "own", "folder": "$MY_DATA", "column": "frage", "limit": 2},
        "rtp-lx": {"source": "rtp-lx", "folder": "$RTP_LX", "limit": 2, "optional": True},
    },
    "variants": {
        "dpo": {"pairs": "mine"},
        "dpo-rtplx": {"pairs": "rtp-lx", "optional": True, "title": "RTP-LX"},
        "kto": {"pairs": "single", "dpo": {"loss": "kto"}},
        "lr": {"pairs": "mine", "ablation": "learning-rate", "prompt_limit": 3,
               "generate": {"n": 2}, "dpo": {"learning_rate": 1e-2, "method": "lora"}},
        "polite": {"pairs": "mine", "ablation": "prompting", "tuning": "none",
                   "generate": {"prefix": "own-language"}},
        "steered": {"pairs": "mine", "ablation": "decoding", "tuning": "none",
                    "generate": {"experts": ["dpo", "lr"], "alpha": 1.0}},
        "edited": {"pairs": "mine", "ablation": "tuning", "tuning": "profs", "prompt_limit": 3,
                   "generate": {"n": 2}, "profs": {"rank": 1}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_checkpoints):
    """A checkout in which the chapter of ablations and all that it reads has been run, and what was printed."""
    folder = make_checkout(tmp_path_factory.mktemp("ablations") / "checkout", tiny_checkpoints["llama"], **PROFILE)
    own = tmp_path_factory.mktemp("own")
    pairs = [(f"Number {row} is", "kind", "rude") for row in range(6)] + [("Frage 2:", "an evaluated", "prompt")]
    pd.DataFrame(pairs, columns=["question", "better", "rejected"]).to_csv(own / "pairs.csv", index=False)
    single = [(f"Number {row} is", text, text == "kind") for row in range(6) for text in ("kind", "rude", "so rude")]
    pd.DataFrame([*single, ("Frage 2:", "an evaluated prompt", True)], columns=["prompt", "completion", "good"]).to_csv(
        own / "single.csv", index=False
    )
    (own / "de.jsonl").write_text("\n".join(json.dumps({"frage": f"Frage {row}"}) for row in range(1, 5)))
    data = {"RTP_LX": "", "MY_DATA": str(own), "POLYDETOX_DATA": str(folder / "nothing")}
    targets = [f"runs/tiny/summary/{section}/manifest.json" for section in ("ablations", "training", "run")]
    done = polydetox(folder, "run", "--profile", "tiny", *targets, **data)
    assert done.returncode == 0, done.stdout + done.stderr
    rendered = polydetox(folder, "render", "--profile", "tiny", "--preview", **data)
    assert rendered.returncode == 0, rendered.stdout + rendered.stderr
    return folder / "runs/tiny", done


def test_what_is_not_available_is_skipped_with_a_word(ran):
    runs, done = ran
    assert "skipped: variant dpo-rtplx: its pairs rtp-lx are not available" in done.stderr
    assert "skipped: prompts rtp-lx: rtp-lx is not available" in done.stderr
    assert not (runs / "tiny/dpo-rtplx").exists() and not (runs / "tiny/base/rtp-lx").exists()


def test_an_ablation_runs_as_much_as_it_says(ran):
    runs, _ = ran
    scores = pd.read_parquet(runs / "tiny/lr/score/scores.parquet")
    assert set(scores["language"]) == {"de"} and (runs / "tiny/lr/evaluate/de/metrics.json").is_file()
    assert scores.groupby("prompt_id").size().tolist() == [2, 2, 2]
    assert json.loads((runs / "tiny/lr/dpo/metrics.json").read_text())["learning_rate"] == 1e-2
    trained, merged = (runs / "tiny/lr" / stage / "weights" for stage in ("dpo", "merge"))
    assert (trained / "adapter_config.json").is_file() and not (merged / "adapter_config.json").is_file()
    assert (merged / "model.safetensors").is_file(), "an adapter is merged into the base model's weights"
    assert not (runs / "tiny/lr/further").exists()


def test_a_variant_without_tuning_differs_by_its_prefix_alone(ran):
    runs, _ = ran
    assert not (runs / "tiny/polite/dpo").exists() and not (runs / "tiny/polite/merge").exists()
    base, polite = (pd.read_parquet(runs / f"tiny/{variant}/score/scores.parquet") for variant in ("base", "polite"))
    assert base["prompt"].tolist() == polite["prompt"].tolist()
    assert base["continuation"].tolist() != polite["continuation"].tolist()
    families = pd.read_parquet(runs / "summary/ablations/families.parquet")
    labels = families.loc[families["ablation"] == "prompting", "label"]
    assert set(labels) == {"DPO", "a prefix in the prompt's language"}


def test_experts_steer_the_base_model(ran):
    runs, _ = ran
    assert not (runs / "tiny/steered/merge").exists()
    manifest = json.loads((runs / "tiny/steered/generate/manifest.json").read_text())
    experts = ["runs/tiny/tiny/dpo/merge", "runs/tiny/tiny/lr/merge"]
    assert manifest["parameters"]["experts"] == experts and {*experts, "runs/tiny/tiny/trim"} <= set(manifest["inputs"])
    base, steered = (pd.read_parquet(runs / f"tiny/{variant}/score/scores.parquet") for variant in ("base", "steered"))
    assert base["prompt"].tolist() == steered["prompt"].tolist()
    assert base["continuation"].tolist() != steered["continuation"].tolist()
    said = json.loads((runs / "summary/ablations/variables.json").read_text())["ablation_decoding_sentence"]
    assert said.startswith("With DExperts instead of DPO, EMT of Tiny (dpo) is ")


def test_an_edited_variant_is_linked_and_evaluated(ran):
    runs, _ = ran
    edited, merged = (runs / "tiny/edited" / stage / "weights/model.safetensors" for stage in ("profs", "merge"))
    assert edited.samefile(merged) and not (runs / "tiny/edited/dpo").exists()
    assert json.loads((runs / "tiny/edited/profs/metrics.json").read_text())["rank"] == 1
    said = json.loads((runs / "summary/ablations/variables.json").read_text())["ablation_tuning_sentence"]
    assert said.startswith("With ProFS instead of DPO, EMT of Tiny (dpo) after tuning is ")


def test_the_vocabulary_keeps_the_tokens_of_further_prompts(ran):
    runs, _ = ran
    parameters = json.loads((runs / "tiny/trim/manifest.json").read_text())["parameters"]
    further = {"source": "own", "folder": "$MY_DATA", "column": "frage", "strip": True, "limit": 2, "languages": ["de"]}
    assert parameters["more_prompts"] == [further], "the notebook checks that each is tokenised as before"


def test_own_pairs_are_trained_on_but_for_an_evaluated_prompt(ran):
    runs, _ = ran
    pairs = pd.read_parquet(runs / "tiny/pairs/mine/pairs.parquet")
    assert pairs["prompt"].tolist() == [f"Number {row} is" for row in range(6)]
    manifest = json.loads((runs / "tiny/pairs/mine/manifest.json").read_text())
    assert manifest["parameters"]["columns"]["prompt"] == "question" and "pairs.csv" in manifest["inputs"]
    trained = json.loads((runs / "tiny/dpo/dpo/metrics.json").read_text())
    assert (trained["pairs_train"], trained["pairs_held_out"]) == (5, 1)


def test_unpaired_data_of_ones_own_are_trained_on_and_in_the_site(ran):
    runs, _ = ran
    data = pd.read_parquet(runs / "tiny/pairs/single/pairs.parquet")
    assert data.columns.tolist() == ["prompt_id", "prompt", "completion", "label"]
    assert len(data) == 18 and data["label"].sum() == 6, "all but an evaluated prompt"
    trained = json.loads((runs / "tiny/kto/dpo/metrics.json").read_text())
    assert (trained["pairs_train"], trained["pairs_held_out"]) == (15, 3)
    assert (runs / "tiny/kto/evaluate/de/metrics.json").is_file()
    (page,) = (runs / "site").rglob("training.html")
    assert re.search(r"<th[^>]*>single, Tiny</th>\s*<td[^>]*>6</td>\s*<td[^>]*>18</td>", page.read_text())


def test_own_prompts_are_sampled_and_own_pairs_are_in_the_site(ran):
    runs, _ = ran
    sampled = pd.read_parquet(runs / "tiny/dpo/further/generate/continuations.parquet")
    assert set(sampled["prompt"]) == {"Frage 1", "Frage 2"} and set(sampled["language"]) == {"de"}
    (page,) = (runs / "site").rglob("training.html")
    assert re.search(r"<th[^>]*>mine, Tiny</th>\s*<td[^>]*>6</td>\s*<td[^>]*>6</td>", page.read_text())


def test_further_prompts_have_folders_of_their_own(ran):
    runs, _ = ran
    for variant in ("base", "dpo"):
        folder = runs / "tiny" / variant / "further/evaluate/de"
        assert json.loads((folder / "metrics.json").read_text())["prompts"] == 2
        parameters = json.loads((folder / "manifest.json").read_text())["parameters"]
        assert parameters["scores"] == f"runs/tiny/tiny/{variant}/further/score/scores.parquet"
        first = json.loads((runs / "tiny" / variant / "evaluate/de/metrics.json").read_text())
        assert first["prompts"] == 4


def test_the_chapter_measures_what_was_run(ran):
    runs, _ = ran
    families = pd.read_parquet(runs / "summary/ablations/families.parquet")
    rates = families[(families["ablation"] == "learning-rate") & (families["metric"] == "emt")]
    assert set(rates["language"]) == {"de", "mean"} and rates["after"].between(0, 1).all()
    assert set(rates["prompts"]) == {3} and set(rates["continuations"]) == {2}
    sets = families.query("ablation == 'prompts' and metric == 'emt' and language == 'mean'")
    sets = sets[sets["family"].str.startswith("Tiny (dpo)") & sets["prompt_set"].isin(["", "further"])]
    assert sets.groupby("prompt_set")["prompts"].max().to_dict() == {"": 4, "further": 2}
    said = json.loads((runs / "summary/ablations/variables.json").read_text())
    assert said["ablation_seed_sentence"] == "Not run."
    assert said["ablation_rate_sentence"].startswith("EMT of Tiny (dpo) after tuning is ")
    assert "on this project's prompts and by" in said["ablation_prompts_sentence"]
    assert "on Further prompts" in said["ablation_prompts_sentence"]
