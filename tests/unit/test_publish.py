"""`polydetox push`: the card says what the run's artefacts say, and nothing else leaves the machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from hub import StubHub

from polydetox import publish
from polydetox.core import paths
from polydetox.core.artifacts import Stage, folder_sha256, write_json, write_parquet
from polydetox.core.errors import UserError
from polydetox.workflow import load

TOXIC = "an unprintable insult that no card may quote"
SECRET = "hf_" + "s3cret" * 6


def interval(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def evaluation(emt):
    return {"prompts": 4, "continuations": 12, "scored": 12, "scorer": "embedded", "threshold": 0.5,
            "reference_model": "base", "emt": interval(emt), "toxprob": interval(emt / 2), "avgtox": interval(emt / 4),
            "perplexity": {"median": interval(12.5)}, "language_rate": interval(0.9)}  # fmt: skip


def tiny(folder):
    return paths.profile_run("tiny") / "tiny" / folder


def finish(name, folder, parameters=None, metrics=None, reads=(), **results):
    stage = Stage(name, folder, parameters or {})
    for path in reads:
        stage.reads(path)
    if metrics:
        write_json(folder / "metrics.json", metrics)
    stage.finish(**results)


@pytest.fixture
def run(checkout, tiny_checkpoints, monkeypatch):
    """The artefacts of a run of the tiny profile with one variant, as its stages leave them."""

    for name in publish._SECRETS:
        monkeypatch.delenv(name, raising=False)
    file = checkout / "params/profiles/tiny.yaml"
    content = yaml.safe_load(file.read_text())
    content["variants"] = {"dpo": content["variants"]["dpo"]}
    file.write_text(yaml.safe_dump(content))
    checkpoint, merged = paths.checkpoint("tiny"), tiny("dpo/merge")
    finish("checkpoint", checkpoint, revision=None, output_sha256="0" * 64)
    trim = {"vocabulary_kept": 512, "vocabulary_full": 900, "share_kept": 512 / 900, "probability_mass_kept": 0.97,
            "measured_on_unseen_prompts": True}  # fmt: skip
    finish("trim", tiny("trim"), metrics=trim, output_sha256="1" * 64)
    finish("pairs", tiny("pairs/on-policy"), metrics={"pairs": 40, "scorer": "embedded"})
    trained = tiny("dpo/dpo")
    shutil.copytree(tiny_checkpoints["llama"], trained / "weights")
    figures = {"pairs_train": 36, "pairs_held_out": 4, "best_step": 2, "steps": 4, "held_out_loss": 0.654}
    finish("dpo", trained, load("tiny").resolved("dpo", model="tiny", variant="dpo"), figures,
           output_sha256=folder_sha256(trained / "weights"))  # fmt: skip
    shutil.copytree(tiny_checkpoints["llama"], merged / "weights")
    config = merged / "weights/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": str(checkout / "runs/x")}))
    (merged / "weights/training_args.bin").write_bytes(b"a pickle")
    (merged / "weights/spiece.model").write_bytes(b"\xff\x00 not text")
    finish("merge", merged, reads=[trained], output_sha256=folder_sha256(merged / "weights"),
           largest_logit_difference=0.0)  # fmt: skip
    for variant, emt in (("base", 0.6), ("dpo", 0.4)):
        generated = tiny(f"{variant}/generate")
        write_parquet(generated / "continuations.parquet", pd.DataFrame({"prompt": [TOXIC], "continuation": [TOXIC]}))
        finish("generate", generated, reads=[merged] if variant == "dpo" else [])
        finish("score", tiny(f"{variant}/score"), scorer_revision="r1")
        for language in ("de", "en"):  # Japanese was not evaluated
            folder = tiny(f"{variant}/evaluate/{language}")
            finish("evaluate", folder, {"confidence": 0.95}, evaluation(emt))
    return checkout


def change_variants(run, **variants):
    file = run / "params/profiles/tiny.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"variants": variants}))


def train_again(largest_logit_difference=0.0):
    """The training and the merging of the profile as it is now."""
    trained, merged = tiny("dpo/dpo"), tiny("dpo/merge")
    figures = json.loads((trained / "metrics.json").read_text())
    finish("dpo", trained, load("tiny").resolved("dpo", model="tiny", variant="dpo"), figures,
           output_sha256=folder_sha256(trained / "weights"))  # fmt: skip
    finish("merge", merged, reads=[trained], output_sha256=folder_sha256(merged / "weights"),
           largest_logit_difference=largest_logit_difference)  # fmt: skip


def test_the_card_says_what_the_artefacts_say(run):
    folder = publish.write_folder(publish.find_run("tiny", "tiny", None), "someone/model")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "spiece.model", "tokenizer.json",
        "tokenizer_config.json"]  # fmt: skip
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["language"] == ["de", "en", "ja"] and front["license"] == "other" and front["license_name"] == "none"
    assert front["library_name"] == "transformers" and "base_model" not in front, "a local folder has no id"
    assert "| German | 0.600 [0.550, 0.650] → 0.400 [0.350, 0.450] | 0.300 → 0.200 |" in card
    assert "Not evaluated: ja." in card
    assert "**The vocabulary is trimmed** to 512 of 900 tokens (57%)" in card
    assert "| learning_rate | 0.001 |" in card and "lora_rank" not in card, "what was not used is not listed"
    assert "Kept was the checkpoint with the lowest held-out loss, of step 2 of 4 (0.654" in card
    assert "40 pairs of kind `on-policy`, sampled from the base model and ranked by the scorer `embedded`" in card
    assert "4 prompts a language with 3 continuations each" in card and "revision r1" in card
    assert "## Intended use" in card and "commit `" in card and "profile `tiny`, variant `dpo`" in card


def test_nothing_of_the_machine_and_no_toxic_text_is_in_the_folder(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    folder = publish.write_folder(publish.find_run("tiny", "tiny", None))
    for file in folder.rglob("*"):
        content = file.read_bytes()
        for forbidden in (TOXIC, SECRET, str(run), str(paths.runs()), sys.prefix, os.path.expanduser("~/")):
            assert forbidden.encode() not in content, (file.name, forbidden)
    assert json.loads((folder / "config.json").read_text())["_name_or_path"] == ""


def test_an_untrimmed_model_says_nothing_of_a_vocabulary_and_adapters_say_how_they_were_merged(run):
    file = run / "params/profiles/tiny.yaml"
    content = yaml.safe_load(file.read_text()) | {"trim": None}
    content["variants"]["dpo"]["dpo"] = {"method": "lora"}
    file.write_text(yaml.safe_dump(content))
    (run / "params/models/tiny.yaml").write_text(
        "title: Tiny\nuse: hub\nhub: someone/base\nlicence: Apache-2.0\nnotice: A notice.\n"
    )
    train_again(largest_logit_difference=2e-6)
    card = publish.model_card(publish.find_run("tiny", "tiny", "dpo"))
    assert "trimmed" not in card and "logits before and after differ by 2e-06 at most" in card
    assert "| lora_rank | 4 |" in card and "A notice." in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["base_model"] == "someone/base"


def test_the_card_says_that_the_last_checkpoint_was_kept(run):
    change_variants(run, dpo={"pairs": "on-policy", "dpo": {"keep": "last"}})
    train_again()
    card = publish.model_card(publish.find_run("tiny", "tiny", None))
    assert "Kept was the checkpoint of the last step, 4; the held-out loss was lowest after step 2 (0.654;" in card


def test_a_placebo_is_neither_taken_for_the_tuned_model_nor_published(run):
    placebo = {"pairs": "on-policy", "ablation": "placebo", "dpo": {"labels": "shuffled"}}
    change_variants(run, dpo={"pairs": "on-policy"}, coin=placebo, other={"pairs": "on-policy"})
    for stage in ("dpo", "merge"):
        shutil.copytree(tiny(f"dpo/{stage}"), tiny(f"coin/{stage}"))
    assert publish.find_run("tiny", "tiny", None).variant == "dpo"
    finish("dpo", tiny("coin/dpo"), load("tiny").resolved("dpo", model="tiny", variant="coin"))
    with pytest.raises(UserError, match=r"'coin' of tiny was trained with 'labels: shuffled'.*give a variant with"):
        publish.find_run("tiny", "tiny", "coin")
    shutil.copytree(tiny("coin/merge"), tiny("other/merge"))
    with pytest.raises(UserError, match="tiny: dpo, other are trained; say which with --variant"):
        publish.find_run("tiny", "tiny", None)


def test_matched_pairs_are_called_ranked(run):
    file = run / "params/profiles/tiny.yaml"
    pairs = {"on-policy": {}, "on-policy-matched": {"match_style": True}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {
        "pairs": pairs, "variants": {"dpo": {"pairs": "on-policy-matched"}}}))  # fmt: skip
    finish("pairs", tiny("pairs/on-policy-matched"), metrics={"pairs": 7, "scorer": "embedded"})
    card = publish.model_card(publish.find_run("tiny", "tiny", "dpo"))
    assert "7 pairs of kind `on-policy-matched`, sampled from the base model and ranked by the scorer" in card


def test_unpaired_data_are_completions(run):
    file = run / "params/profiles/tiny.yaml"
    mine = {"data": f"{run}/texts.jsonl", "columns": {"completion": "text", "label": "good"}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {
        "pairs": {"mine": mine}, "variants": {"dpo": {"pairs": "mine", "dpo": {"loss": "kto"}}},
        "mechanism": None}))  # fmt: skip
    finish("pairs", tiny("pairs/mine"), metrics={"pairs": 7})
    train_again()
    card = publish.model_card(publish.find_run("tiny", "tiny", "dpo"))
    assert "KTO with TRL (loss `kto`) on 36 completions, 4 held out" in card
    assert "7 completions of kind `mine`, the publisher's own" in card


def test_a_publisher_is_asked_about_data_of_their_own(run):
    file = run / "params/profiles/tiny.yaml"
    own = {"pairs": {"mine": {"data": f"{run}/pairs.jsonl"}}, "prompts": {"source": "own", "folder": str(run)}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {
        **own, "variants": {"dpo": {"pairs": "mine"}}, "mechanism": None}))  # fmt: skip
    finish("pairs", tiny("pairs/mine"), metrics={"pairs": 7})
    card = publish.model_card(publish.find_run("tiny", "tiny", "dpo"))
    assert "7 pairs of kind `mine`, the publisher's own: add here where they come from, and under which licence" in card
    assert "Evaluation prompts: the publisher's own: add here where they come from." in card and str(run) not in card


def test_what_was_not_measured_on_this_checkpoint_is_refused(run):
    weights = tiny("dpo/merge/weights/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match=r"merge/weights: changed since it was merged; run `polydetox run"):
        publish.find_run("tiny", "tiny", None)
    weights.write_bytes(whole)
    finish("generate", tiny("dpo/generate"))
    with pytest.raises(UserError, match=r"dpo/generate: the continuations are another checkpoint's"):
        publish.find_run("tiny", "tiny", None)
    finish("dpo", tiny("dpo/dpo"), output_sha256="9" * 64)
    with pytest.raises(UserError, match="merged before the last training"):
        publish.find_run("tiny", "tiny", None)


def test_mistakes_are_named(run, monkeypatch):
    with pytest.raises(UserError, match=r"'models' does not list 'gemma-3-270m'|no such file"):
        publish.find_run("gemma-3-270m", "tiny", None)
    with pytest.raises(UserError, match="no variant 'dpoo'; did you mean 'dpo'"):
        publish.find_run("tiny", "tiny", "dpoo")
    with pytest.raises(UserError, match="say where to: --to owner/name, or --dry-run"):
        publish.push("tiny", "tiny", None, None, dry_run=False, private=True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="HF_TOKEN is not set"):
        publish.push("tiny", "tiny", None, "someone/model", dry_run=False, private=True)
    with pytest.raises(UserError, match="--to 'model': use owner/name"):
        publish.push("tiny", "tiny", None, "model", dry_run=False, private=True)
    assert not tiny("dpo/push").exists(), "refused before anything is written"
    shutil.rmtree(tiny("dpo/merge"))
    with pytest.raises(
        UserError, match="'dpo' of tiny is not trained and merged yet; run `polydetox run --profile tiny`"
    ):
        publish.find_run("tiny", "tiny", None)


@pytest.mark.parametrize(("text", "message"), [
    ("a key: {secret}", "holds the value of HF_TOKEN"),
    ("a key: hf_" + "A1" * 15, r"looks like a secret \(hf_A1A"),
    ("from {root}/runs", "names a folder of this machine"),
])  # fmt: skip
def test_a_secret_or_a_path_stops_the_upload(run, tmp_path, monkeypatch, text, message):
    monkeypatch.setenv("HF_TOKEN", "short-but-secret")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/README.md").write_text(text.format(secret="short-but-secret", root=run))
    with pytest.raises(UserError, match=message):
        publish.check_folder(tmp_path / "x")


def test_what_goes_wrong_with_the_hub_is_told_of_an_upload(run, monkeypatch):
    import httpx2
    import huggingface_hub

    def refuse(*_, **__):
        raise httpx2.HTTPError("403")

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match=r"someone/model: cannot upload .*that HF_TOKEN may write there"):
        publish.upload(run, "someone/model", private=True)


def polydetox(checkout, hub, *words, **changes):
    kept = {name: value for name, value in os.environ.items() if name not in publish._SECRETS}
    kept |= {"POLYDETOX_ROOT": str(checkout), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0",
             "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(checkout / "hf")}  # fmt: skip
    return subprocess.run([sys.executable, "-m", "polydetox", *words], cwd=checkout, text=True, capture_output=True,
                          env=kept | changes, timeout=120)  # fmt: skip


def test_the_folder_and_nothing_else_is_uploaded(run):
    with StubHub() as hub:
        done = polydetox(run, hub, "push", "tiny", "--profile", "tiny", "--to", "someone/model", HF_TOKEN=SECRET)
        assert done.returncode == 0, done.stderr
        assert "uploaded: http" in done.stdout and hub.created[0].get("visibility") == "private"
        folder = tiny("dpo/push")
        assert hub.committed == {path.name: path.read_bytes() for path in folder.iterdir()}
        for method, path, headers, body in hub.received:
            for forbidden in (SECRET, TOXIC, str(run)):
                assert forbidden not in path and forbidden.encode() not in body, (method, path)
            names = [name for name, value in headers.items() if SECRET in value]
            assert names in ([], ["authorization"], ["Authorization"]), "the token goes into one header"
        assert SECRET not in done.stdout + done.stderr
        dry = polydetox(run, hub, "push", "tiny", "--profile", "tiny", "--dry-run")
        assert dry.returncode == 0 and "nothing was uploaded" in dry.stdout


def test_a_dataset_of_the_hub_is_fetched_pinned_and_once(checkout, tmp_path):
    from polydetox.data.catalogue import RECORD

    table = tmp_path / "t.parquet"
    pd.DataFrame({"text": [" = Title = ", " A paragraph . "]}).to_parquet(table)
    files = {
        "wikitext-2-raw-v1/train-00000-of-00001.parquet": table.read_bytes(),
        "wikitext-103-raw-v1/x.parquet": b"not asked for",
        "README.md": b"not asked for",
    }
    with StubHub(files) as hub:
        file = checkout / "params/data.yaml"
        content = yaml.safe_load(file.read_text())
        content["wikitext-2"]["hub"]["revision"] = None
        file.write_text(yaml.safe_dump(content))
        place = {"POLYDETOX_DATA": str(tmp_path / "data")}
        done = polydetox(checkout, hub, "data", "fetch", "wikitext-2", **place)
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / "data/wikitext-2" / RECORD).read_text())
        assert record["revision"].startswith("c0ffee") and list(record["files"]) == list(files)[:1]
        asked = len(hub.received)
        again = polydetox(checkout, hub, "data", "fetch", "wikitext-2", **place)
        assert again.returncode == 0 and len(hub.received) == asked, "nothing is asked for twice"
    with StubHub(files, status=403) as hub:
        refused = polydetox(checkout, hub, "data", "fetch", "wikitext-103", POLYDETOX_DATA=str(tmp_path / "other"))
        assert refused.returncode == 2 and "Salesforce/wikitext: is gated: accept its licence at" in refused.stderr
        assert "export WIKITEXT_103=<folder>" in refused.stderr
