"""The residual stream: directions and standings by hand, and the notebook on tiny models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from notebook_cells import definitions, run_cell, run_cells
from polydetox.core.errors import UserError
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
