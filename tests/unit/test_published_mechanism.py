"""With the published settings, the notebooks of the mechanism compute on tiny models what the published code does."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from notebook_cells import run_cells
from polydetox.mechanism.probe import Probe
from published import MECHANISM, model, tokenizer, words

PROMPTS = [row[row.index(0) + 1 :] for row in MECHANISM["prompts"]]  # without padding and BOS
# How the published code decodes while it records activations, and a token, often in what the models write, that would
# end a text.
DECODING = {"bos": "always", "stop_at_end": False}
END = 1652


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves a model with its tokenizer, whose EOS may be another one; returns what a notebook is given of it."""
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))

    def save(name, end=None):
        tokens = tokenizer("e-mGPT", template=False)
        if end is not None:
            tokens.eos_token = words([end]).strip()
        model(name).save_pretrained(tmp_path / name)
        tokens.save_pretrained(tmp_path / name)
        return {"checkpoint": str(tmp_path / name), "dtype": "float32", "output_folder": str(tmp_path / "stage")}

    return save


@pytest.fixture
def prompts(tmp_path):
    """The recorded prompts as a set of prompts."""
    rows = [json.dumps({"Prompt": words(ids)}) for ids in PROMPTS]
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "RTP_LX_EN.json").write_text("\n".join(rows), "utf-8")
    return {"prompts_source": "rtp-lx", "prompts_folder": str(tmp_path / "prompts")}


def sources_file(tmp_path, actual):
    """What the notebook value_vectors writes of the recorded sources, the actual ones being given."""
    table = pd.DataFrame(MECHANISM["sources"], columns=["layer", "neuron"])
    table.assign(actual=actual, matched=table["neuron"]).to_parquet(tmp_path / "sources.parquet")
    return str(tmp_path / "sources.parquet")


def test_sources_are_those_of_the_published_code(saved, prompts, tmp_path):
    weight = np.array(MECHANISM["probe"], np.float32)
    Probe(weight, 0.0, np.ones_like(weight)).save(tmp_path / "probe.safetensors")
    space = run_cells("value_vectors", **saved("e-mGPT", END), **prompts, **DECODING, final_norm=False,
                      probe=str(tmp_path / "probe.safetensors"))  # fmt: skip
    assert [list(neuron) for neuron in space["neurons"]] == MECHANISM["sources"]
    assert space["best"].tolist() == MECHANISM["promoted"]
    expected = np.array(MECHANISM["activations"]["base"])
    np.testing.assert_allclose(space["sources"]["activation"], expected, atol=1e-5)
    assert (space["actual"] == (expected > 0)).all()
    np.testing.assert_allclose(space["means"][space["neurons"]], expected, atol=1e-5)


@pytest.mark.parametrize(("name", "recorded"), [("e-mGPT", "base"), ("e-mGPT-dpo", "tuned")])
def test_activations_are_those_of_the_published_code(saved, prompts, tmp_path, name, recorded):
    space = run_cells("activations", **saved(name, END), **prompts, **DECODING, sources=sources_file(tmp_path, True))
    found = space["activations"]["en"][:, : len(MECHANISM["sources"])]
    np.testing.assert_allclose(found.mean(axis=0), MECHANISM["activations"][recorded], atol=1e-5)
    if recorded == "base":
        by_prompt = np.array(MECHANISM["activations_by_prompt"])
        np.testing.assert_allclose(found[: len(by_prompt)], by_prompt, atol=1e-5)


def test_interventions_are_those_of_the_published_code(saved, prompts, tmp_path):
    """On the four nearest value vectors and the first eight prompts."""
    recorded = MECHANISM["interventions"]
    space = run_cells("intervene", until="intervene-score", **saved("e-mGPT"), **prompts, bos="always", prompt_limit=8,
                      offsets=[float(offset) for offset in recorded], neutral_offset=0.0, random_baseline=False,
                      new_tokens=10, scorer="lexicon",
                      sources=sources_file(tmp_path, np.arange(len(MECHANISM["sources"])) < 4))  # fmt: skip
    for offset, rows in recorded.items():
        table = space["continuations"][space["continuations"]["offset"] == float(offset)]
        found = space["tokenizer"](list(table["continuation"]), add_special_tokens=False)["input_ids"]
        assert found == [row[1 + len(ids) :] for row, ids in zip(rows, PROMPTS, strict=False)]


def test_retrieval_cosines_are_those_of_the_published_code(saved, tmp_path):
    """The other language has every third word replaced."""
    (tmp_path / "parallel").mkdir()
    others = [[number if place % 3 else (number + 1) % 2000 for place, number in enumerate(ids)] for ids in PROMPTS]
    for language, texts in (("en", PROMPTS), ("zh", others)):
        (tmp_path / "parallel" / f"{language}.txt").write_text("\n".join(map(words, texts)), "utf-8")
    space = run_cells("retrieval", **saved("e-mGPT"), languages=["zh"], folder=str(tmp_path / "parallel"),
                      depths="hidden_states")  # fmt: skip
    assert space["tables"]["zh"]["aligned_cosine"].tolist() == pytest.approx(MECHANISM["retrieval"], abs=1e-5)
    assert space["tables"]["zh"]["layer"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("epoch", ["last", "best"])
def test_the_probe_is_that_of_the_published_code(saved, tmp_path, epoch):
    """On halves of the prompts, labelled by their last word; a step an epoch, so that no order is to be matched."""
    halves = [half for ids in PROMPTS for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :])]
    texts = pd.DataFrame({"text": map(words, halves), "label": [half[-1] % 2 for half in halves]})
    texts.to_csv(tmp_path / "texts.csv", index=False)
    space = run_cells("probe", **saved("e-mGPT"), texts=str(tmp_path / "texts.csv"), validation_fraction=0.2,
                      final_norm=True, bias=False, epoch=epoch, learning_rate=0.02, batch_size=100)  # fmt: skip
    np.testing.assert_allclose(space["probe"].weight, MECHANISM["trained_probe"][epoch], atol=1e-5)
    assert space["probe"].bias == 0.0
