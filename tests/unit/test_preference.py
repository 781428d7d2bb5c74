"""Preference pairs, DPO and merging, on tiny models of three families."""

from __future__ import annotations

import json
import math
import shutil
import sys
import types
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from notebook_cells import definitions, dpo_cells, make_trainer, merge, run_cell, run_cells, split_pairs, train_dpo
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked, declaration
from polydetox.data.pairs import check_inputs
from polydetox.models import checkpoints
from polydetox.models.checkpoints import load_causal_lm, load_tokenizer
from polydetox.training import dpo, shared
from tiny import FAMILIES, tiny_tokenizer


def scored(rows):
    return pd.DataFrame(rows, columns=["prompt_id", "prompt", "continuation", "toxicity"])


def test_on_policy_pairs_by_hand():
    table = scored([
        ("a", "A", " kind", 0.1), ("a", "A", " cruel", 0.9), ("a", "A", " odd", 0.5), ("a", "A", " kind", 0.1),
        ("a", "A", "  ", 0.0), ("a", "A", " dull", np.nan), ("a", "A", " mean", 0.75),
        ("b", "B", " x", 0.4), ("b", "B", " y", 0.5),
    ])  # fmt: skip
    on_policy_pairs = definitions("pairs").on_policy_pairs
    found = on_policy_pairs(table, margin=0.2, pairs_per_prompt=3)
    assert found[["chosen", "rejected"]].values.tolist() == [[" kind", " cruel"], [" odd", " mean"]]
    assert set(found["prompt_id"]) == {"a"}, "b's two continuations differ by less than the margin"
    assert len(on_policy_pairs(table, margin=0.0)) == 2


def test_split_is_by_prompt():
    table = pd.DataFrame({"prompt": [f"p{number // 3}" for number in range(60)], "chosen": "x", "rejected": "y"})
    train, held_out = split_pairs(table, 0.1, seed=0)
    assert len(train) == 54 and len(held_out) == 6
    assert not set(train["prompt"]) & set(held_out["prompt"])
    with pytest.raises(UserError, match="only 1 prompt"):
        split_pairs(table.head(2), 0.1, seed=0)


def relabelled(table, labels, seed=0):
    """The pairs of ``dpo.ipynb`` after the cell that decides which side is chosen."""
    return run_cell("dpo", "dpo-labels", np=np, pairs=table, settings=settings(labels=labels, seed=seed))["pairs"]


def test_placebos_change_the_sides_of_the_pairs_and_nothing_else():
    table = pd.DataFrame({"prompt_id": ["a", "b", "c"], "prompt": ["A", "B", "C"], "chosen": ["xx", "yyy", "zz"],
                          "rejected": ["x", "yyyy", "ZZ"]})  # fmt: skip
    pd.testing.assert_frame_equal(relabelled(table, "given"), table)
    longer = relabelled(table, "longer")
    assert longer[["prompt_id", "chosen", "rejected"]].values.tolist() == [["a", "xx", "x"], ["b", "yyyy", "yyy"]]
    swapped = relabelled(table, "swapped")
    assert swapped["chosen"].tolist() == table["rejected"].tolist()
    assert swapped["rejected"].tolist() == table["chosen"].tolist()
    many = pd.DataFrame({"prompt_id": "p", "prompt": "P", "chosen": [f"good {number}" for number in range(1000)],
                         "rejected": [f"bad {number}" for number in range(1000)]})  # fmt: skip
    shuffled = relabelled(many, "shuffled")
    assert (np.sort(shuffled[["chosen", "rejected"]]) == np.sort(many[["chosen", "rejected"]])).all()
    # 1000 tosses of a fair coin: the standard deviation is 16
    assert 420 < (shuffled["chosen"] != many["chosen"]).sum() < 580
    pd.testing.assert_frame_equal(shuffled, relabelled(many, "shuffled"))
    assert not shuffled.equals(relabelled(many, "shuffled", seed=1))


def test_simpo_loss_by_hand():
    # 2 * (-1 - -3 - 0.5) = 3; without a margin between the completions only the target is left
    asked = settings(loss="simpo", beta=2.0, gamma_beta_ratio=0.5)
    simpo_loss = run_cell("dpo", "dpo-loss", torch=torch, settings=asked)["own_losses"]["simpo"]
    loss = simpo_loss(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -2.0]))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-3)), math.log1p(math.exp(1))])

    from trl.experimental.cpo import CPOTrainer

    trls = types.SimpleNamespace(loss_type="simpo", alpha=0.0, beta=2.0, simpo_gamma=1.0, label_smoothing=0.0,
                                 accelerator=types.SimpleNamespace(device="cpu"))  # fmt: skip
    chosen, rejected = -torch.rand(5), -torch.rand(5)
    expected, _, _ = CPOTrainer.cpo_loss(trls, chosen, rejected)
    assert torch.allclose(simpo_loss(chosen, rejected), expected)


PAIRS = pd.DataFrame({
    "prompt_id": [f"p{number}" for number in range(8)],
    "prompt": ["The neighbours", "Nobody says", "La capital", "Der Nachbar", "A word", "About it", "Francia", "Laut"],
    "chosen": [" are loud again"] * 8,
    "rejected": [" grandes del mundo"] * 8,
})  # fmt: skip


def settings(**changes):
    values = {"max_steps": 6, "eval_steps": 2, "warmup_steps": 1, "learning_rate": 1e-3, "held_out_share": 0.25,
              "lora_rank": 4}  # fmt: skip
    return checked("dpo", **(values | changes))


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    """Reference log-probabilities are cached below runs/."""
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))


def sequence_log_probability(model, tokenizer, prompt, completion):
    ids = torch.tensor([tokenizer(prompt + completion + tokenizer.eos_token)["input_ids"]])
    start = len(tokenizer(prompt)["input_ids"])
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].log_softmax(-1)
    return logits.gather(-1, ids[0, 1:, None])[start - 1 :, 0].sum()


@pytest.mark.parametrize(("family", "mixed"), [*((family, False) for family in FAMILIES), ("llama", True)])
def test_full_training_learns_the_preference_and_reports_the_papers_loss(
    tiny_checkpoints, tmp_path, monkeypatch, family, mixed
):
    monkeypatch.setattr(dpo, "mixed_precision", lambda: mixed)
    weights = tiny_checkpoints[family]
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    log, figures = train_dpo(weights, train, held_out, settings(), tmp_path)
    assert figures["pairs_train"] == 6 and figures["pairs_held_out"] == 2
    assert figures["held_out_loss"] < math.log(2) and figures["held_out_accuracy"] == 1.0
    assert set(log["split"]) == {"train", "held_out"}
    assert not (tmp_path / "checkpoints").exists()

    # TRL's reported loss is that of Rafailov et al. (2023), eq. 7, with both models read back from disk.
    tokenizer = load_tokenizer(weights)
    tuned, base = load_causal_lm(tmp_path / "weights", torch.float32), load_causal_lm(weights, torch.float32)
    losses = []
    for row in held_out.itertuples():
        chosen, rejected = (
            float(sequence_log_probability(tuned, tokenizer, row.prompt, text))
            - float(sequence_log_probability(base, tokenizer, row.prompt, text))
            for text in (row.chosen, row.rejected)
        )
        losses.append(math.log1p(math.exp(-0.1 * (chosen - rejected))))
    # In float32 nothing but summation order differs; products in bfloat16 have eight bits of mantissa.
    assert figures["held_out_loss"] == pytest.approx(np.mean(losses), rel=1e-2 if mixed else 1e-5)
    assert not list((tmp_path / "weights").glob("*.bin")), "no pickle"


LOSSES = get_args(declaration("dpo").model_fields["loss"].annotation)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_the_preference(tiny_checkpoints, tmp_path, loss):
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    log, figures = train_dpo(tiny_checkpoints["llama"], train, held_out, settings(loss=loss), tmp_path)
    held = log[log["split"] == "held_out"].pivot(index="step", columns="metric", values="value")
    assert held["loss"][6] == figures["held_out_loss"] < held["loss"][0]
    assert held["reward_margin"][6] > held["reward_margin"][0]
    if loss == "kto":  # which knows no pairs
        assert figures["held_out_accuracy"] is None
    else:
        assert figures["held_out_accuracy"] == held["reward_accuracy"][6] == 1.0


def test_held_out_figures_are_of_pairs_whatever_the_batches(tiny_checkpoints, tmp_path):
    held_out = PAIRS[:3].assign(rejected=PAIRS["prompt"][3:6].to_list())
    found = []
    for batch_size in (2, 4):  # two batches, of two pairs and of one; and all in one
        trainer = make_trainer(tiny_checkpoints["llama"], PAIRS[3:], held_out, settings(batch_size=batch_size),
                               tmp_path / str(batch_size))  # fmt: skip
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        found.append(trainer.evaluate())
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        assert found[0][f"eval_{name}"] == pytest.approx(found[1][f"eval_{name}"], rel=1e-4), name
    right = 3 * found[0]["eval_rewards/accuracies"]
    assert right == pytest.approx(round(right)), "a fraction of three pairs"


# Of the log-ratios of the sides of a pair, summed over tokens, and their numbers of tokens.
FORMULAS = {
    "cdpo": lambda x, y, m, n: 0.8 * np.log1p(np.exp(-0.5 * (x - y))) + 0.2 * np.log1p(np.exp(0.5 * (x - y))),
    "ipo": lambda x, y, m, n: (x / m - y / n - 1.0) ** 2,
    "hinge": lambda x, y, m, n: np.maximum(0.0, 1.0 - 0.5 * (x - y)),
}


@pytest.mark.parametrize("loss", FORMULAS)
def test_a_loss_is_its_formula(tiny_checkpoints, tmp_path, monkeypatch, loss):
    monkeypatch.setattr(dpo, "mixed_precision", lambda: False)
    weights = tiny_checkpoints["llama"]
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    asked = settings(loss=loss, beta=0.5, label_smoothing=0.2, max_steps=2, learning_rate=1e-4)
    _, figures = train_dpo(weights, train, held_out, asked, tmp_path)
    tokenizer = load_tokenizer(weights)
    tuned, base = load_causal_lm(tmp_path / "weights", torch.float32), load_causal_lm(weights, torch.float32)
    ratios, tokens = [], []
    for row in held_out.itertuples():
        for text in (row.chosen, row.rejected):
            after, before = (sequence_log_probability(model, tokenizer, row.prompt, text) for model in (tuned, base))
            whole = tokenizer(row.prompt + text + tokenizer.eos_token)["input_ids"]
            ratios.append(float(after) - float(before))
            tokens.append(len(whole) - len(tokenizer(row.prompt)["input_ids"]))
    (x, y), (m, n) = np.reshape(ratios, (-1, 2)).T, np.reshape(tokens, (-1, 2)).T
    assert np.abs(x - y).max() > 1e-3, "the training has changed something"
    # Sums of log-probabilities in float32 differ by some 1e-5, whatever the loss.
    assert figures["held_out_loss"] == pytest.approx(FORMULAS[loss](x, y, m, n).mean(), rel=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_kto_is_its_formula_on_the_sides_of_the_pairs(tiny_checkpoints, tmp_path, monkeypatch, method):
    """1 - sigmoid(beta (x - z)) of a chosen completion, 1 - sigmoid(beta (z - x)) of a rejected one; x: log-ratio."""
    monkeypatch.setattr(dpo, "mixed_precision", lambda: False)
    weights, (train, held_out) = tiny_checkpoints["llama"], split_pairs(PAIRS, 0.25, seed=0)
    asked = settings(loss="kto", beta=0.5, method=method, learning_rate=1e-3)
    trainer = make_trainer(weights, train, held_out, asked, tmp_path)
    tokenizer, rows = load_tokenizer(weights), list(trainer.eval_dataset)
    texts = {(tokenizer.decode(row["completion_ids"], skip_special_tokens=True).strip(), row["label"]) for row in rows}
    assert texts == {("are loud again", True), ("grandes del mundo", False)} and len(rows) == 2 * len(held_out)
    assert all(len(trainer.train_dataset[name]) == 2 * len(train) for name in ("completion_ids", "label"))
    before = [rows[-1], *rows[:-1]]  # all of them are one batch
    assert [row["KL_completion_ids"] for row in rows] == [row["completion_ids"] for row in before]

    generator = torch.Generator().manual_seed(1)
    base = load_causal_lm(weights, torch.float32)
    with torch.no_grad():
        for _, value in sorted(trainer.model.named_parameters()):
            if value.requires_grad:
                value.add_(0.02 * torch.randn(value.shape, generator=generator))

    def ratio(prompt, completion):
        ids = torch.tensor([prompt + completion])
        with torch.inference_mode():
            sides = [model(input_ids=ids).logits[0, :-1].log_softmax(-1) for model in (trainer.model, base)]
        tokens = [side.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0].sum() for side in sides]
        return float(tokens[0] - tokens[1])

    trainer.model.eval()
    x = np.array([ratio(row["prompt_ids"], row["completion_ids"]) for row in rows])
    z = max(0.0, np.mean([ratio(row["prompt_ids"], row["KL_completion_ids"]) for row in rows]))
    sign = np.where([row["label"] for row in rows], 1.0, -1.0)
    assert (z > 0.0) == (method == "lora"), "once it counts, once it is cut off at 0"
    found = trainer.evaluate()
    assert found["eval_kl"] == pytest.approx(z, abs=1e-5)
    assert found["eval_loss"] == pytest.approx(np.mean(1 - 1 / (1 + np.exp(-0.5 * sign * (x - z)))), rel=1e-5)
    margin = 0.5 * (x[sign > 0].mean() - x[sign < 0].mean())
    assert found["eval_rewards/margins"] == pytest.approx(margin, abs=0.5 * 2**-17)  # beta times a sum's last bit


def test_kto_trains_on_unpaired_data_and_weighs_both_labels_the_same(tiny_checkpoints, tmp_path):
    rows = [(row.prompt, side, good) for row in PAIRS.itertuples() for side, good in
            ((row.chosen, True), (row.rejected, False), (" " + row.prompt, False))]  # fmt: skip
    data = pd.DataFrame(rows, columns=["prompt", "completion", "label"])
    train, held_out = split_pairs(data, 0.25, seed=0)
    space = dpo_cells(tiny_checkpoints["llama"], train, held_out, settings(loss="kto"), tmp_path, "5c1e0a05")
    trainer = space["trainer"]
    assert (trainer.desirable_weight, trainer.undesirable_weight) == pytest.approx((1.5, 0.75))
    assert sorted(trainer.train_dataset["label"]) == sorted(train["label"])
    log, figures = train_dpo(tiny_checkpoints["llama"], train, held_out, settings(loss="kto"), tmp_path)
    held = log[(log["split"] == "held_out") & (log["metric"] == "loss")].set_index("step")["value"]
    assert figures["held_out_loss"] == held[6] < held[0] and figures["pairs_train"] == len(train)


def test_kto_of_pairs_has_no_weights(tiny_checkpoints, tmp_path):
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    trainer = make_trainer(tiny_checkpoints["llama"], train, held_out, settings(loss="kto"), tmp_path)
    assert (trainer.desirable_weight, trainer.undesirable_weight) == (1.0, 1.0)


def test_the_notebook_refuses_unpaired_data_for_a_loss_of_pairs(tmp_path):
    file = tmp_path / "pairs.parquet"
    pd.DataFrame({"prompt_id": ["a"], "prompt": ["A"], "completion": [" b"], "label": [True]}).to_parquet(file)
    with pytest.raises(UserError, match="dpo: 'loss: sigmoid' needs pairs, and these data are unpaired"):
        run_cells("dpo", until="32e677ea", pairs=str(file), output_folder=str(tmp_path / "dpo"))


def test_kto_refuses_the_published_codes_tokens():
    given = {"settings": settings(loss="kto", inputs="trl-0.8.6"), "check_inputs": check_inputs}
    with pytest.raises(UserError, match="'inputs: trl'"):
        run_cell("dpo", "32e677ea", **given)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_simpo_reports_its_formula_and_keeps_no_reference(tiny_checkpoints, tmp_path, monkeypatch, method):
    monkeypatch.setattr(dpo, "mixed_precision", lambda: False)
    weights = tiny_checkpoints["llama"]
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    asked = settings(loss="simpo", beta=2.0, gamma_beta_ratio=0.8, method=method, max_steps=2)
    trainer = make_trainer(weights, train, held_out, asked, tmp_path)
    assert trainer.ref_model is None and "ref_chosen_logps" not in trainer.train_dataset.column_names
    assert not (tmp_path / "runs/cache/reference").exists()
    found = trainer.evaluate()
    tokenizer, model = load_tokenizer(weights), load_causal_lm(weights, torch.float32)
    means = []
    for row in held_out.itertuples():
        for text in (row.chosen, row.rejected):
            whole = tokenizer(row.prompt + text + tokenizer.eos_token)["input_ids"]
            tokens = len(whole) - len(tokenizer(row.prompt)["input_ids"])
            means.append(float(sequence_log_probability(model, tokenizer, row.prompt, text)) / tokens)
    chosen, rejected = np.array(means).reshape(-1, 2).T
    expected = np.log1p(np.exp(-(2.0 * chosen - 2.0 * rejected - 1.6))).mean()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["eval_rewards/margins"] == pytest.approx(2.0 * (chosen - rejected).mean(), rel=1e-4)
    assert found["eval_rewards/accuracies"] == pytest.approx((chosen > rejected).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_merges_to_the_same_logits(tiny_checkpoints, tmp_path, family):
    """All three tie their embedding (Llama's config here does not): adapting it must not leak into the output."""
    weights = tiny_checkpoints[family]
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    train_dpo(weights, train, held_out, settings(method="lora", learning_rate=1e-2), tmp_path / "dpo")
    assert (tmp_path / "dpo/weights/adapter_config.json").is_file()
    merged, difference = merge(weights, tmp_path / "dpo/weights", tmp_path / "merged")
    assert difference < 1e-3
    tokenizer = load_tokenizer(merged)
    ids = torch.tensor([tokenizer("The neighbours are")["input_ids"]])
    with torch.inference_mode():
        after = load_causal_lm(merged, torch.float32)(ids).logits
        before = load_causal_lm(weights, torch.float32)(ids).logits
    assert float((after - before).abs().max()) > 1e-3, "the adapter changes something"


def test_linear_layers_leave_the_output_layer_out(tiny_checkpoints):
    from transformers import FalconConfig, FalconForCausalLM

    llama = load_causal_lm(tiny_checkpoints["llama"], torch.float32)
    names = shared.linear_layers(llama, embeddings=True)
    assert names == ["down_proj", "embed_tokens", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert "embed_tokens" not in shared.linear_layers(llama, embeddings=False)
    gpt2 = load_causal_lm(tiny_checkpoints["gpt2"], torch.float32)
    assert shared.linear_layers(gpt2, embeddings=False) == ["c_attn", "c_fc", "c_proj"]
    # Falcon's linear layers are of a class of its own.
    falcon = FalconForCausalLM(FalconConfig(vocab_size=16, hidden_size=16, num_attention_heads=2, num_hidden_layers=1))
    assert shared.linear_layers(falcon, embeddings=False) == [
        "dense",
        "dense_4h_to_h",
        "dense_h_to_4h",
        "query_key_value",
    ]


def test_a_published_adapter_is_merged_into_the_whole_model_it_was_made_from(checkout, tiny_checkpoints, tmp_path):
    """Evaluate-only: the model file names an adapter, which was trained on the untrimmed vocabulary."""
    from peft import LoraConfig, get_peft_model

    from polydetox.models.checkpoints import weights_of
    from polydetox.workflow import load

    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)
    adapted = get_peft_model(load_causal_lm(tiny_checkpoints["llama"], torch.float32), settings)
    adapted.save_pretrained(tmp_path / "adapter")
    file = checkout / "params/models/tiny.yaml"
    file.write_text(file.read_text() + f"tuned: {{path: {tmp_path / 'adapter'}}}\n")
    asked = load("tiny").resolved("merge", model="tiny", variant="published")
    assert asked["checkpoint"] == "runs/checkpoints/tiny", (
        "not the trimmed one, from which the profile's own variants start"
    )
    base, tuned = weights_of("tiny"), weights_of(asked["tuned"])
    assert base == tiny_checkpoints["llama"] and tuned == tmp_path / "adapter"
    merged, difference = merge(base, tuned, tmp_path / "merged")
    assert difference < 1e-4
    ids = torch.tensor([[2, 300, 301]])
    with torch.inference_mode():
        after = load_causal_lm(merged, torch.float32)(ids).logits
        before = load_causal_lm(base, torch.float32)(ids).logits
    assert not torch.allclose(after, before, atol=1e-3)
    with pytest.raises(UserError, match="the adapter does not fit the base model"):
        merge(tiny_checkpoints["gpt2"], tuned, tmp_path / "other")


def test_qlora_is_refused_where_it_cannot_be_run(tiny_checkpoints, tmp_path, monkeypatch):
    arguments = tiny_checkpoints["llama"], PAIRS, PAIRS, settings(method="qlora"), tmp_path
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install --no-deps -r requirements-gpu.txt"):
        train_dpo(*arguments)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace())
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="needs an NVIDIA GPU"):
            train_dpo(*arguments)


@pytest.fixture
def four_bits_on_a_cpu(monkeypatch):
    """A CPU trains in four bits as long as the weights are not packed for evaluation; slowly, so users are refused."""
    modules = pytest.importorskip("bitsandbytes.nn.modules", reason="bitsandbytes is not installed (the extra gpu)")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    monkeypatch.setattr(shared, "check_four_bit", lambda: None)
    load = checkpoints.load_causal_lm
    monkeypatch.setattr(
        checkpoints,
        "load_causal_lm",
        lambda weights, dtype, **options: load(weights, dtype, **options | {"device_map": "cpu"}),
    )


@pytest.mark.parametrize("family", ["bloom", "llama"])  # which the paper trains in four bits
def test_qlora_lowers_the_loss_and_its_adapter_merges_into_the_whole_weights(
    tiny_checkpoints, tmp_path, family, four_bits_on_a_cpu
):
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    asked = settings(method="qlora", max_steps=12, eval_steps=4, batch_size=1, gradient_accumulation_steps=4)
    log, figures = train_dpo(tiny_checkpoints[family], train, held_out, asked, tmp_path)
    losses = log[(log["split"] == "held_out") & (log["metric"] == "loss")].set_index("step")["value"]
    assert losses[0] == pytest.approx(math.log(2), abs=0.02) and losses[12] < losses[4] < losses[0]
    assert figures["method"] == "qlora" and (tmp_path / "weights/adapter_config.json").is_file()
    assert merge(tiny_checkpoints[family], tmp_path / "weights", tmp_path / "merged")[1] < 1e-3


def test_qlora_quantises_the_linear_layers_and_trains_the_adapter_alone(tmp_path, four_bits_on_a_cpu):
    """What is loaded and what is trainable."""
    import bitsandbytes
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    asked = checked("dpo", method="qlora", eval_steps=1)
    space = dpo_cells(tmp_path, PAIRS, PAIRS, asked, tmp_path / "dpo", "5c1e0a02")
    model, adapter = space["model"], space["adapter"]
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}
    assert len(layers) == 2 * 7 and not any("lm_head" in name for name in layers)
    assert {layer.weight.quant_type for layer in layers.values()} == {"nf4"}
    settings = model.config.quantization_config
    assert settings.bnb_4bit_use_double_quant and settings.bnb_4bit_compute_dtype == torch.bfloat16
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (64, 16, 0.05), "the paper's"
    trained = [name for name, weight in get_peft_model(model, adapter).named_parameters() if weight.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained} == set(adapter.target_modules)


def test_a_whole_checkpoint_is_linked_not_copied(tiny_checkpoints, tmp_path):
    shutil.copytree(tiny_checkpoints["llama"], tmp_path / "tuned")
    merged, difference = merge(tiny_checkpoints["llama"], tmp_path / "tuned", tmp_path / "merged")
    assert difference == 0.0 and (merged / "model.safetensors").stat().st_nlink == 2

    for file in (tmp_path / "tuned").glob("*token*"):
        file.unlink()
    alone, _ = merge(tiny_checkpoints["llama"], tmp_path / "tuned", tmp_path / "alone")
    assert load_tokenizer(alone)("The neighbours")["input_ids"]


def test_a_stopped_training_goes_on_from_its_checkpoint(tiny_checkpoints, tmp_path, monkeypatch):
    weights = tiny_checkpoints["llama"]
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    whole, _ = train_dpo(weights, train, held_out, settings(), tmp_path / "whole")

    import trl

    step = trl.DPOTrainer.training_step
    steps = []

    def stop_at_the_fifth(self, *arguments, **named):
        steps.append(self.state.global_step)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *arguments, **named)

    monkeypatch.setattr(trl.DPOTrainer, "training_step", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(weights, train, held_out, settings(), tmp_path / "stopped")
    # A checkpoint that was half written when the run stopped is not resumed from.
    (checkpoints,) = (tmp_path / "stopped/checkpoints").iterdir()
    (checkpoints / "checkpoint-6").mkdir()
    resumed, figures = train_dpo(weights, train, held_out, settings(), tmp_path / "stopped")
    assert steps[5:] == [4, 5], "goes on after the checkpoint of step 4"
    assert figures["steps"] == 6
    key = ["step", "split", "metric"]
    joined = whole.merge(resumed, on=key)
    assert len(joined) == len(whole)
    assert np.allclose(joined["value_x"], joined["value_y"], rtol=1e-3, atol=1e-5)


def test_the_patience_of_early_stopping_outlives_a_stop(tiny_checkpoints, tmp_path, monkeypatch):
    """Two evaluations without improvement, one before a stop and one after it, end the training."""
    import trl

    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    # A step this large only makes the held-out loss worse.
    worse = settings(learning_rate=3.0, warmup_steps=0, eval_steps=1, max_steps=8, early_stopping_patience=2)
    _, whole = train_dpo(tiny_checkpoints["llama"], train, held_out, worse, tmp_path / "whole")
    assert whole["steps"] < 8, "stopped early"

    step = trl.DPOTrainer.training_step
    seen = []

    def stop_before_the_last(self, *arguments, **named):
        seen.append(self.state.global_step)
        if len(seen) == whole["steps"]:
            raise KeyboardInterrupt
        return step(self, *arguments, **named)

    monkeypatch.setattr(trl.DPOTrainer, "training_step", stop_before_the_last)
    with pytest.raises(KeyboardInterrupt):
        train_dpo(tiny_checkpoints["llama"], train, held_out, worse, tmp_path / "stopped")
    _, resumed = train_dpo(tiny_checkpoints["llama"], train, held_out, worse, tmp_path / "stopped")
    assert resumed["steps"] == whole["steps"]
    assert resumed["best_step"] == whole["best_step"]


def test_a_placebo_keeps_its_last_checkpoint(tiny_checkpoints, tmp_path):
    """With ``keep: last`` a training takes all its steps, though each of them only makes the held-out loss worse."""
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    kept, steps = {}, {}
    for keep in ("best", "last"):
        worse = settings(
            learning_rate=3.0, warmup_steps=0, eval_steps=1, max_steps=4, early_stopping_patience=2, keep=keep
        )
        _, figures = train_dpo(tiny_checkpoints["llama"], train, held_out, worse, tmp_path / keep)
        kept[keep] = figures["kept_step"]
        steps[keep] = figures["steps"], figures["best_step"]
    assert steps == {"best": (3, 1), "last": (4, 1)} and kept == {"best": 1, "last": 4}
    first, last = (load_file(tmp_path / keep / "weights/model.safetensors") for keep in ("best", "last"))
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_a_training_that_diverges_is_an_error():
    log = dpo.training_log([{"step": 1, "eval_loss": float("nan")}, {"step": 2, "eval_loss": float("nan")}])
    with pytest.raises(UserError, match="held-out loss is not a number; lower learning_rate"):
        dpo.best_step(log)


def test_other_settings_do_not_resume_from_old_checkpoints(tiny_checkpoints, tmp_path):
    def checkpoints_of(**changes) -> Path:
        kept = dpo.bookkeeping(tiny_checkpoints["llama"], PAIRS, PAIRS, settings(**changes), tmp_path)
        return Path(kept["output_dir"])

    first = checkpoints_of()
    first.mkdir(parents=True)
    assert checkpoints_of() == first and first.is_dir()
    assert checkpoints_of(learning_rate=2e-3) != first
    assert not first.exists()


def test_a_training_that_is_never_evaluated_is_refused(tiny_checkpoints, tmp_path):
    with pytest.raises(UserError, match="eval_steps 9 is more than the 6 steps"):
        train_dpo(tiny_checkpoints["llama"], PAIRS, PAIRS, settings(eval_steps=9), tmp_path)


def test_prompts_are_cut_to_their_last_tokens(tiny_checkpoints):
    long = "The neighbours are loud again and nobody says a word"
    table = pd.DataFrame({"prompt": [long, "La capital"], "chosen": "x", "rejected": "y"})

    def shortened(limit: int) -> str:
        tokenizer = load_tokenizer(tiny_checkpoints["llama"])
        return run_cell("dpo", "dpo-split", tokenizer=tokenizer, pairs=table, split_pairs=split_pairs,
                        settings=settings(max_prompt_length=limit))["shorten"](long)  # fmt: skip

    assert long.endswith(shortened(3)) and len(shortened(3)) < len(long)
    assert shortened(500) == long


def test_training_log_separates_the_splits():
    history = [
        {"step": 1, "loss": 0.7, "rewards/margins": 0.0, "rewards/accuracies": 0.5},
        {"step": 2, "eval_loss": 0.6, "eval_rewards/margins": 0.1, "eval_rewards/accuracies": 1.0},
        {"step": 2, "train_runtime": 3.0},
    ]
    log = dpo.training_log(history)
    assert len(log) == 6
    assert log[(log["split"] == "held_out") & (log["metric"] == "loss")]["value"].tolist() == [0.6]
    assert json.loads(log.to_json())  # plain values


@pytest.mark.parametrize("method", ["full", "lora"])
def test_reference_log_probabilities_are_computed_once(tiny_checkpoints, tmp_path, monkeypatch, method):
    import trl

    weights = tiny_checkpoints["llama"]
    tokenizer, model = load_tokenizer(weights), load_causal_lm(weights, torch.float32)
    seen = []
    compute = trl.DPOTrainer.compute_ref_log_probs

    def counted(self, model, inputs):
        seen.append(len(inputs["input_ids"]) // 2)
        return compute(self, model, inputs)

    monkeypatch.setattr(trl.DPOTrainer, "compute_ref_log_probs", counted)
    monkeypatch.setattr(dpo, "mixed_precision", lambda: False)
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    trainer = make_trainer(weights, train, held_out, settings(method=method), tmp_path / "a")
    kept = list((tmp_path / "runs/cache/reference").glob("*/*.parquet"))
    assert sum(seen) == 8 and len(kept) == 2, "those of training and held out"
    for row, cached in zip(train.itertuples(), trainer.train_dataset, strict=True):
        expected = sequence_log_probability(model, tokenizer, row.prompt, row.chosen)
        assert cached["ref_chosen_logps"] == pytest.approx(float(expected), rel=1e-5)
        expected = sequence_log_probability(model, tokenizer, row.prompt, row.rejected)
        assert cached["ref_rejected_logps"] == pytest.approx(float(expected), rel=1e-5)

    # Another split and another learning rate find all pairs; other weights or another precision find none.
    train, held_out = split_pairs(PAIRS, 0.25, seed=3)
    make_trainer(weights, train, held_out, settings(method=method, learning_rate=1e-4, seed=3), tmp_path / "b")
    assert sum(seen) == 8
    make_trainer(tiny_checkpoints["gpt2"], train, held_out, settings(method=method), tmp_path / "c")
    assert sum(seen) == 16
    monkeypatch.setattr(dpo, "mixed_precision", lambda: True)
    make_trainer(weights, train, held_out, settings(method=method), tmp_path / "d")
    assert sum(seen) == 24


def test_a_training_that_stops_before_the_last_pair_computes_no_reference_ahead(tiny_checkpoints, tmp_path):
    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    short = settings(max_steps=2, batch_size=1)
    trainer = make_trainer(tiny_checkpoints["llama"], train, held_out, short, tmp_path / "a")
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names
    assert not (tmp_path / "runs/cache/reference").exists()
    for epochs, ahead in ((1, True), (0.5, False)):
        asked = settings(max_steps=None, epochs=epochs, eval_steps=1)
        kept = dpo.bookkeeping(tiny_checkpoints["llama"], train, held_out, asked, tmp_path / "b")
        assert kept["precompute_ref_log_probs"] is ahead


def test_only_tokens_of_completions_meet_the_output_layer(tiny_checkpoints, tmp_path, monkeypatch):
    import trl.trainer.utils

    scored, compute = [], trl.trainer.utils._ChunkedLogProbFunction.apply

    class Counted:
        @staticmethod
        def apply(hidden, *rest):
            scored.append(len(hidden))
            return compute(hidden, *rest)

    train, held_out = split_pairs(PAIRS, 0.25, seed=0)
    trainer = make_trainer(tiny_checkpoints["llama"], train, held_out, settings(), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Counted)
    trainer.compute_loss(trainer.model, batch)
    assert scored == [int(batch["completion_mask"].sum())] and scored[0] < batch["input_ids"].numel()


def test_pairs_of_like_length_share_a_batch():
    lengths = torch.randint(5, 200, (203,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = shared.LengthBuckets(lengths, 4, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(203)) and order == list(sampler)
    batches = [[lengths[place] for place in order[start : start + 4]] for start in range(0, 200, 4)]
    padding = sum(max(batch) * 4 - sum(batch) for batch in batches)
    plain = sum(max(lengths[at : at + 4]) * 4 - sum(lengths[at : at + 4]) for at in range(0, 200, 4))
    assert padding < plain / 4
    means = [sum(batch) for batch in batches]
    assert abs(np.corrcoef(means, range(50))[0, 1]) < 0.4, "no curriculum of lengths"
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_each_epoch_has_a_new_order_that_a_resumed_training_keeps(tiny_checkpoints, tmp_path, monkeypatch):
    import trl

    step = trl.DPOTrainer.training_step
    batches = []  # the token ids of the pairs of each step
    stop_before = None

    def watched(self, model, inputs, *arguments, **named):
        if self.state.global_step == stop_before:
            raise KeyboardInterrupt
        batches.append(sorted(map(tuple, inputs["input_ids"].tolist())))
        return step(self, model, inputs, *arguments, **named)

    monkeypatch.setattr(trl.DPOTrainer, "training_step", watched)
    weights, held_out = tiny_checkpoints["llama"], PAIRS.head(2)
    three_epochs = settings(max_steps=None, epochs=3, batch_size=1)  # of eight steps, a pair a step
    train_dpo(weights, PAIRS, held_out, three_epochs, tmp_path / "whole")
    epochs = [batches[start : start + 8] for start in (0, 8, 16)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2]), "every pair once an epoch"
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]

    whole, batches, stop_before = batches, [], 13
    with pytest.raises(KeyboardInterrupt):
        train_dpo(weights, PAIRS, held_out, three_epochs, tmp_path / "stopped")
    assert batches == whole[:13]
    batches, stop_before = [], None
    train_dpo(weights, PAIRS, held_out, three_epochs, tmp_path / "stopped")
    assert batches == whole[12:], "goes on in the middle of the second epoch"
