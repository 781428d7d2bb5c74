"""ProFS: the subspace of hand-made differences, and what the notebook's edit leaves of value vectors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from notebook_cells import run_cell, run_cells
from polydetox import preflight, publish, workflow
from polydetox.core.artifacts import read_json
from polydetox.core.errors import UserError
from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.representations import pooled
from polydetox.models.checkpoints import load_causal_lm, load_tokenizer
from polydetox.preference.profs import check_rank
from tiny import TEXTS, tiny_tokenizer


def toxic_subspace(chosen, rejected, rank):
    return run_cell("profs", "profs-subspace", torch=torch)["toxic_subspace"](chosen, rejected, rank)


def test_the_planted_directions_are_found_and_what_all_texts_share_is_not():
    e = torch.eye(5)
    chosen = 10 * e[4].repeat(4, 1)
    # Sides differ by 3 along the first axis, by 1 along the second; and most, by 7, along the common direction.
    rejected = chosen + torch.stack([3 * e[0], -3 * e[0], e[1], -e[1]]) + 7 * e[4]
    subspace, explained = toxic_subspace(chosen, rejected, 1)
    assert torch.allclose(subspace.abs(), e[:1], atol=1e-6)
    assert explained == pytest.approx(18 / 20)  # of 2 * 3^2 + 2 * 1^2
    subspace, explained = toxic_subspace(chosen, rejected, 2)
    assert torch.allclose(subspace.abs(), e[:2], atol=1e-6) and explained == pytest.approx(1.0)


def test_the_subspace_holds_most_of_the_differences():
    """Against the eigenvectors of the second moments, in float64."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 12, 7, generator=generator) + 1.0
    subspace, explained = toxic_subspace(chosen, rejected, 3)
    first, second = chosen.double().numpy(), rejected.double().numpy()
    common = np.linalg.eigh(first.T @ first)[1][:, -1:]
    differences = (first - second) @ (np.eye(7) - common @ common.T)
    values, vectors = np.linalg.eigh(differences.T @ differences)
    largest = vectors[:, -3:]
    np.testing.assert_allclose(subspace.T @ subspace, largest @ largest.T, atol=1e-5)
    assert explained == pytest.approx(values[-3:].sum() / values.sum(), abs=1e-5)


def gemma(vocabulary: int):
    """A tiny model with a norm after each MLP, whose gain differs by direction and is zero in one."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 16, "vocab_size": vocabulary}  # fmt: skip
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma3TextConfig(**sizes, **tokens))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_feedforward_layernorm.weight.normal_(0.0, 2.0)[3] = -1.0
    return model


@pytest.fixture
def pairs(tmp_path):
    sides = {"chosen": [f"{n} {TEXTS[n % 5]}" for n in range(10)],
             "rejected": [f"{TEXTS[n % 4][:20]} {n} indeed" for n in range(10)]}  # fmt: skip
    table = pd.DataFrame({"prompt_id": range(10), "prompt": "A prompt", **sides})
    table.to_parquet(tmp_path / "pairs.parquet")
    return table, str(tmp_path / "pairs.parquet")


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama", "gemma3"])
def test_an_edited_layer_writes_nothing_into_its_subspace(family, tiny_checkpoints, pairs, tmp_path, checkout):
    if family == "gemma3":
        tokenizer, folder = tiny_tokenizer(), tmp_path / "gemma"
        gemma(len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        folder = tiny_checkpoints[family]
    space = run_cells("profs", checkpoint=str(folder), pairs=pairs[1], output_folder=str(tmp_path / "out"),
                      dtype="float32", first_layer=0.5, rank=3, pair_limit=8)  # fmt: skip
    base, edited = (load_causal_lm(path, torch.float32) for path in (folder, tmp_path / "out/weights"))
    old, new = MLPs(base), MLPs(edited)
    first = round(0.5 * len(old))
    for layer in range(first, len(old)):
        states = (space["states"][side][:, layer] for side in ("chosen", "rejected"))
        subspace, _ = toxic_subspace(*states, 3)
        before, after = old.value_vectors(layer), new.value_vectors(layer)
        scale = (before @ subspace.T).abs().max()
        assert scale > 0 and (after @ subspace.T).abs().max() < 1e-4 * scale
        # Of the stored vectors only the part that is written into the subspace is gone.
        seen = subspace * old.gain(layer)
        others = torch.linalg.svd(seen).Vh[3:]  # (hidden - rank, hidden), orthogonal to it
        assert torch.allclose(new.matrix(layer) @ others.T, old.matrix(layer) @ others.T, atol=1e-4)
        assert family == "gemma3" or torch.allclose(seen, subspace)
    names = {name for name, weight in edited.state_dict().items() if not torch.equal(weight, base.state_dict()[name])}
    assert len(names) == len(old) - first, "no other weight is changed"
    assert read_json(tmp_path / "out/metrics.json")["edited"] == len(old) - first
    assert (space["layers"]["left"] < 1e-4).all() and space["layers"]["removed"].between(0, 1, "neither").all()


def test_pairs_are_chosen_whole_and_their_completions_cut(tiny_checkpoints, pairs, tmp_path, checkout):
    space = run_cells("profs", until="profs-states", checkpoint=str(tiny_checkpoints["llama"]), pairs=pairs[1],
                      output_folder=str(tmp_path / "out"), dtype="float32", pair_limit=4, max_length=5)  # fmt: skip
    table, chosen = pairs[0], space["pairs"]
    assert len(chosen) == 4 and chosen.equals(table.loc[chosen.index])
    model, tokenizer = space["model"], load_tokenizer(tiny_checkpoints["llama"])
    ids = torch.tensor([tokenizer(chosen["rejected"].iloc[1])["input_ids"][:5]])
    with torch.inference_mode():
        wanted = model(ids, output_hidden_states=True).hidden_states[1][0].mean(dim=0)
    assert torch.allclose(space["states"]["rejected"][1, 0], wanted, atol=1e-5)
    whole = pooled(model, tokenizer, list(chosen["rejected"]), "layers")
    assert not np.allclose(whole, space["states"]["rejected"])


def test_a_rank_that_cannot_be_is_refused(tiny_checkpoints, pairs, tmp_path, checkout):
    check_rank("profs", 31, 31, 32)
    with pytest.raises(UserError, match=r"profs: rank 32: .*32 directions"):
        check_rank("profs", 32, None, 32)
    with pytest.raises(UserError, match=r"rank 11: differences of 10 pairs .*'pair_limit'"):
        run_cells("profs", checkpoint=str(tiny_checkpoints["llama"]), pairs=pairs[1], rank=11,
                  output_folder=str(tmp_path / "out"))  # fmt: skip


def problems(checkout, **settings) -> str:
    """What is found before a run of the tiny profile with a variant that is edited with these settings."""
    file = checkout / "params/profiles/tiny.yaml"
    edited = {"pairs": "on-policy", "tuning": "profs", "ablation": "tuning", "profs": settings}
    changes = {"variants": {"dpo": {"pairs": "on-policy"}, "edited": edited}, "mechanism": None}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    return "\n".join(map(str, preflight.problems(workflow.load("tiny"))))


def test_mistakes_are_named_before_a_run(checkout, tmp_path):
    from transformers import AutoConfig

    assert problems(checkout) == ""
    with pytest.raises(UserError, match="'edited' of tiny is not trained"):
        publish.find_run("tiny", "tiny", "edited")
    assert "tiny.yaml: profs: rank 5: differences of 4 pairs" in problems(checkout, rank=5, pair_limit=4)
    assert "rank 32: the model's hidden states have 32 directions" in problems(checkout, rank=32)
    AutoConfig.for_model("stablelm").save_pretrained(tmp_path / "other")
    model = checkout / "params/models/tiny.yaml"
    model.write_text(yaml.safe_dump(yaml.safe_load(model.read_text()) | {"path": str(tmp_path / "other")}))
    assert "model type 'stablelm': its MLP is not known" in problems(checkout)
