"""The residual stream: directions, standings and what is subtracted by hand, and the notebooks on tiny models."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from notebook_cells import definitions, run_cell, run_cells
from polydetox.core.artifacts import write_json
from polydetox.core.errors import UserError
from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.decoding import hooked
from polydetox.mechanism.probe import Probe
from polydetox.mechanism.representations import explained, standing
from published import model, tokenizer, words


def test_the_principal_direction_and_what_it_explains():
    rows = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 2.0]])
    direction = definitions("residual").principal_direction(rows)
    np.testing.assert_allclose(np.abs(direction), [1.0, 0.0], atol=1e-12)
    assert explained(rows, direction) == pytest.approx(18 / 22)
    assert explained(rows, np.array([0.0, 5.0])) == pytest.approx(4 / 22), "whatever its length"
    assert np.isnan(explained(np.zeros((2, 2)), direction))


def test_standing_is_in_standard_deviations_of_the_vocabulary():
    logits = torch.tensor([[1.0, 1.0, 5.0, 5.0], [0.0, 0.0, 0.0, 4.0]])  # means 3 and 1, deviations 2 and sqrt(3)
    assert standing(logits, [2, 3]) == pytest.approx((1.0 + 1.0 / 3**0.5) / 2)
    assert standing(10 * logits - 7, [2, 3]) == pytest.approx(standing(logits, [2, 3]))


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What the notebook is given: a base model, one whose last MLP writes along one direction more, and sources."""
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    moved = model("e-mGPT")
    with torch.no_grad():
        moved.transformer.h[-1].mlp.c_proj.bias[0] += 2.0
    for name, saved in (("base", model("e-mGPT")), ("moved", moved)):
        saved.save_pretrained(tmp_path / name)
        tokenizer("e-mGPT", template=False).save_pretrained(tmp_path / name)
    (tmp_path / "prompts").mkdir()
    for language, start in (("en", 10), ("de", 500)):  # prompts of two to seven words
        lines = [words(list(range(start + 10 * row, start + 11 * row + 2))) for row in range(6)]
        (tmp_path / "prompts" / f"{language}.txt").write_text("\n".join(lines), "utf-8")
    table = pd.DataFrame({"layer": [0, 1], "neuron": [2, 3], "actual": True})
    table.to_parquet(tmp_path / "sources.parquet")
    return {"checkpoint": str(tmp_path / "base"), "tuned": str(tmp_path / "moved"), "languages": ["en", "de"],
            "sources": str(tmp_path / "sources.parquet"), "prompts_source": "own",
            "prompts_folder": str(tmp_path / "prompts"), "promoted_tokens": 3,
            "output_folder": str(tmp_path / "stage")}  # fmt: skip


def test_a_shift_along_one_direction_is_found_and_explained_whole_in_every_language(given, tmp_path):
    space = run_cells("residual", **given, prompt_limit=6)
    shift = pd.read_parquet(tmp_path / "stage" / "shift.parquet")
    layers = shift["layer"].max() + 1
    last = shift[shift["layer"] == layers - 1]
    assert list(last["language"]) == ["en", "de"] and list(last["prompts"]) == [3, 3]
    np.testing.assert_allclose(last["shift"], 1.0, atol=1e-4)
    np.testing.assert_allclose(last["cosine"], 1.0, atol=1e-4)
    assert (last[["base", "random"]] < 0.9).all(axis=None)
    assert (shift.loc[shift["layer"] < layers - 1, "relative"] == 0).all(), "nothing moved there"
    np.testing.assert_allclose(np.abs(space["directions"][-1]["shift"][0]), 1.0, atol=1e-4)


def test_the_lens_at_the_last_layer_is_the_model_s_own_prediction(given, tmp_path):
    space = run_cells("residual", **given, prompt_limit=2)
    found = pd.read_parquet(tmp_path / "stage" / "lens.parquet").set_index(["side", "language", "layer", "group"])
    last = found.index.get_level_values("layer").max()
    prompts = list(space["prompts"]["de"]["prompt"])
    for side, name in (("before", "base"), ("after", "moved")):
        read = type(space["language_model"]).from_pretrained(tmp_path / name)
        with torch.inference_mode():
            ends = [read(space["tokenizer"](text, return_tensors="pt")["input_ids"]).logits[0, -1] for text in prompts]
        for group, ids in space["tokens"].items():
            value = found.loc[(side, "de", last, group), "standing"]
            assert value == pytest.approx(standing(torch.stack(ends), ids), abs=1e-4)


def test_one_prompt_is_too_few(given):
    with pytest.raises(UserError, match="prompt_limit: 1: no prompt in en"):
        run_cells("residual", **given, prompt_limit=1)


def summary_cells(shift, lens):
    """The cells of the chapter that show residual streams, on these tables; their sentences and the table."""
    space = vars(definitions("summary_mechanism"))
    space |= {"shift": shift, "lens": lens, "results": type("Results", (), {"comparisons": ["one"]})}
    for cell in ("mechanism-shift-figure", "mechanism-shift-table", "mechanism-lens-figure"):
        space = run_cell("summary_mechanism", cell, **space)
    return run_cell("summary_mechanism", "mechanism-residual-sentences", **space)


def test_the_chapter_says_what_was_found_and_reads_where_nothing_was():
    shift = pd.DataFrame([("dpo", language, layer, 3, 0.25 * (1 + layer), 0.1, 0.01, 0.2, cosine)
                          for language, cosine in (("en", 1.0), ("de", 0.75)) for layer in (0, 1)],
                         columns=["comparison", "language", "layer", "prompts", "shift", "base", "random", "relative",
                                  "cosine"])  # fmt: skip
    lens = pd.DataFrame([("dpo", side, language, layer, group, value + layer)
                         for side, value in (("before", 1.0), ("after", 0.5)) for language in ("en", "de")
                         for layer in (0, 1) for group in ("sources", "random")],
                        columns=["comparison", "side", "language", "layer", "group", "standing"])  # fmt: skip
    space = summary_cells(shift, lens)
    assert "0.50 of the squared change lies along the direction found on English" in space["moved"][0]
    assert "0.75 (German) to 0.75 (German)" in space["moved"][0]
    assert "the tokens of the sources of dpo from 2.00 to 1.50 standard deviations" in space["favoured"][0]
    space = summary_cells(*[pd.DataFrame({"comparison": []})] * 2)
    assert (space["moved"], space["favoured"]) == ([], [])


@pytest.mark.parametrize("final_norm", [False, True])
def test_exactly_the_direction_times_amount_and_length_is_subtracted(final_norm):
    read = model("e-mGPT").eval()
    direction, mlps = np.eye(read.config.hidden_size)[3], MLPs(read)
    given = {"final_norm": final_norm, "length": 2.0, "directions": {("probe", 0): direction}}
    cells = definitions("intervene", language_model=read, mlps=mlps, ends=np.ones((1, 1, len(direction))), **given)
    plan = pd.DataFrame({"direction": ["unchanged", "probe"], "number": 0, "subtracted": [0.0, 0.25]})
    entered, ids = [], torch.tensor([[10, 11, 12], [10, 11, 12]])
    where = read.lm_head if final_norm else mlps.final_norm
    where.register_forward_hook(lambda _, inputs, __: entered.append(inputs[0].clone()))
    with torch.inference_mode():
        read(input_ids=ids)
        with hooked(2, cells.subtraction(plan)):
            read(input_ids=ids)
    (plain, changed), taken = entered, torch.from_numpy(0.5 * direction).float()
    assert torch.equal(changed[0], plain[0]), "nothing was subtracted from the first text"
    torch.testing.assert_close(plain[1] - changed[1], taken.expand_as(plain[1]), atol=1e-5, rtol=0)


@pytest.fixture
def probed(given, tmp_path):
    """What the section on directions is given besides: a probe, and the texts that it was trained on."""
    features = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    features[:3, 5] += 10
    save_file({"values": features}, tmp_path / "features.safetensors")
    labels = pd.DataFrame({"part": [*["train"] * 5, "test"], "label": [1, 1, 1, 0, 0, 0]})
    labels.to_parquet(tmp_path / "labels.parquet")
    write_json(tmp_path / "metrics.json", {"final_norm": False})
    Probe(features[0], 0.0, np.ones(64, np.float32)).save(tmp_path / "probe.safetensors")
    kept = ("checkpoint", "sources", "prompts_source", "prompts_folder", "output_folder")
    return {**{name: given[name] for name in kept}, "languages": ["en"], "offsets": [0.0], "neutral_offset": 0.0,
            "scorer": "lexicon", "new_tokens": 4, "directions": 2, "dtype": "float32"}  # fmt: skip


def test_directions_are_subtracted_and_nothing_subtracted_leaves_the_text(probed, tmp_path):
    space = run_cells("intervene", **probed, subtract=[0.0, 3.0], probe=str(tmp_path / "probe.safetensors"))
    table = pd.read_parquet(tmp_path / "stage" / "directions.parquet").set_index("direction")
    assert table.groupby(["direction", "number"]).size().eq(6).all()
    assert dict(table.groupby("direction").size()) == {
        "unchanged": 6, "probe": 6, "mean difference": 6, "random": 12, "shuffled labels": 12}  # fmt: skip
    plain = space["continuations"].query("group == 'sources'")["continuation"]
    assert list(table.loc["unchanged", "continuation"]) == list(plain)
    assert (table.loc["probe", "continuation"].to_numpy() != plain.to_numpy()).any()
    features = space["load_file"](tmp_path / "features.safetensors")["values"]
    for name, wanted in (("probe", features[0]), ("mean difference", features[:3].mean(0) - features[3:5].mean(0))):
        np.testing.assert_allclose(space["directions"][name, 0], wanted / np.linalg.norm(wanted), atol=1e-6)
    assert not np.allclose(space["directions"]["random", 0], space["directions"]["random", 1])
    read = type(space["language_model"]).from_pretrained(tmp_path / "base", dtype=torch.float32)
    ends: list[torch.Tensor] = []
    read.transformer.ln_f.register_forward_pre_hook(lambda _, inputs: ends.append(inputs[0][0, -1]))
    for text in space["english"]:
        read(space["tokenizer"](text, return_tensors="pt")["input_ids"])
    assert space["length"] == pytest.approx(float(torch.stack(ends).square().sum(dim=1).mean().sqrt()), rel=1e-4)


def test_by_default_no_direction_is_subtracted_and_no_probe_read(probed, tmp_path):
    space = run_cells("intervene", **probed)
    assert space["measured"] == [] and not (tmp_path / "stage" / "directions.parquet").exists()
    with pytest.raises(UserError, match="a file that it reads is not named"):
        run_cells("intervene", **probed, subtract=[0.0, 1.0])


def subtracted(lower):
    """Toxicity of four prompts in two languages, unchanged and with each direction ``lower`` by so much."""
    rows = [
        (("de", "en")[prompt % 2], f"p{prompt}", name, amount, 0.1 * prompt + 0.5 - lower[name] * amount, 0.2, 9.0)
        for name in lower
        for amount in ([0.0] if name == "unchanged" else [1.0, 2.0])
        for prompt in range(4)
    ]
    columns = ["language", "prompt_id", "direction", "subtracted", "toxicity", "repeated", "perplexity"]
    return pd.DataFrame(rows, columns=columns)


def test_the_chapter_claims_of_a_direction_what_its_intervals_hold():
    results = SimpleNamespace(samples=50, seed=0, confidence=0.95, models=["one"])
    cells = definitions("summary_mechanism", results=results)
    lower = {"unchanged": 0.0, "probe": 0.1, "mean difference": 0.05, "random": 0.05, "shuffled labels": 0.075}
    rows = pd.DataFrame(cells.direction_rows("one", subtracted(lower))).assign(place="after")
    last = rows.set_index(["direction", "subtracted"]).loc[("probe", 2.0)]
    assert last["unchanged_before"] == pytest.approx(0.65) and last["unchanged_drop"] == pytest.approx(0.2)
    assert last["random_drop"] == pytest.approx(0.1) and last["random_drop_low"] == pytest.approx(0.1)
    assert np.isnan(rows.set_index("direction").loc["random", "random_drop"]).all(), "not against itself"
    space = run_cell("summary_mechanism", "mechanism-directions-table", **vars(cells), subtracted=rows)
    said = run_cell("summary_mechanism", "mechanism-direction-sentences", **space)["directed"]
    assert "2 times the length of the residual stream after the final norm, takes the average" in said[0]
    assert "below that with random directions (0.550) and below that with directions of shuffled labels" in said[0]
    assert "not distinguishable from that with random directions (0.550) and above that with directions" in said[1]
    space = run_cell("summary_mechanism", "mechanism-directions-table", **vars(cells), subtracted=pd.DataFrame())
    assert run_cell("summary_mechanism", "mechanism-direction-sentences", **space)["directed"] == []
