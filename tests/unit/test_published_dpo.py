"""On the token ids of the published code, what ``dpo.ipynb`` computes and its first steps are that code's own.

That code puts BOS in front for every tokenizer that has one: with ``inputs: trl-0.8.6`` so does the notebook, with
``inputs: trl`` the tokenizer's template does.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch

from notebook_cells import definitions, make_trainer
from polydetox.core.parameters import checked
from polydetox.training import dpo
from published import RECORDED, model, tokenizer, words


def published_tokens(pairs: pd.DataFrame, tokens: Any, max_prompt_length: int, max_length: int) -> pd.DataFrame:
    """The pairs with the token ids that ``dpo.ipynb`` gives the model with ``inputs: trl-0.8.6``."""
    settings = checked("dpo", max_prompt_length=max_prompt_length, max_length=max_length)
    return definitions("dpo", tokenizer=tokens, settings=settings).with_published_tokens(pairs)


def pairs_of(values: dict) -> pd.DataFrame:
    """The recorded pairs as texts: without BOS and EOS, which are not in the texts."""
    texts = []
    for pair in values["pairs"]:
        sides = {side: words(pair[side][len(pair["prompt"]) : -1]) for side in ("chosen", "rejected")}
        texts.append({"prompt": words(pair["prompt"][1:]), **sides})
    return pd.DataFrame(texts)


@pytest.fixture(params=[(name, inputs) for name in RECORDED for inputs in ("trl", "trl-0.8.6")], ids="-".join)
def case(request, tmp_path, monkeypatch):
    """The trainer of the notebook, the batch of all pairs, and the recorded values.

    The policy is the model plus noise, the reference the model.
    """
    monkeypatch.setattr(dpo, "mixed_precision", lambda: False)
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    (name, inputs), weights = request.param, tmp_path / "model"
    values, tokens = RECORDED[name], tokenizer(name, template=inputs == "trl" or name == "llama")
    model(name).save_pretrained(weights)
    tokens.save_pretrained(weights)
    pairs = pairs_of(values)
    if inputs == "trl-0.8.6":
        pairs = published_tokens(pairs, tokens, 64, 256)
    # Of one step, so that the reference model stays beside the policy.
    settings = checked("dpo", learning_rate=1e-3, weight_decay=0.0, batch_size=1, max_steps=1, eval_steps=1)
    trainer = make_trainer(weights, pairs, pairs, settings, tmp_path)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, value in sorted(trainer.model.named_parameters()):
            value.add_(0.01 * torch.randn(value.shape, generator=generator))
    return trainer, trainer.data_collator(list(trainer.train_dataset)), values


def test_token_ids_are_those_of_the_published_code(case):
    trainer, _, values = case
    for found, pair in zip(trainer.train_dataset, values["pairs"], strict=True):
        assert found["prompt_ids"] == pair["prompt"]
        assert found["prompt_ids"] + found["chosen_ids"] == pair["chosen"]
        assert found["prompt_ids"] + found["rejected_ids"] == pair["rejected"]


def test_loss_and_gradient_are_those_of_the_published_code(case):
    trainer, batch, values = case
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(values["loss"], abs=1e-5)
    norms = {weight: value.grad.norm().item() for weight, value in trainer.model.named_parameters()}
    expected = values["gradient_norms"]
    assert norms.keys() == expected.keys()
    assert list(norms.values()) == pytest.approx([expected[weight] for weight in norms], rel=1e-4, abs=1e-5)
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    assert whole == pytest.approx(values["gradient_norm"], rel=1e-4)


def test_log_probabilities_are_those_of_the_published_code(case):
    trainer, batch, values = case
    for role, network in (("policy", trainer.model), ("reference", trainer.ref_model)):
        with torch.no_grad():
            chosen, rejected = trainer.compute_ref_log_probs(network, batch)
        assert chosen.tolist() == pytest.approx(values["log_probabilities"][f"{role}_chosen"], rel=1e-5)
        assert rejected.tolist() == pytest.approx(values["log_probabilities"][f"{role}_rejected"], rel=1e-5)


def test_five_steps_of_rmsprop_are_those_of_the_published_code(case):
    trainer, batch, values = case
    optimizer, losses = trainer.create_optimizer(), []
    for _ in range(5):
        loss = trainer.compute_loss(trainer.model, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == pytest.approx(values["losses_of_five_steps"], rel=1e-3, abs=1e-5)


def test_a_long_pair_loses_the_beginning_of_its_prompt_and_then_the_end_of_its_completions():
    tokens = tokenizer("bloom", template=False)
    pairs = pd.DataFrame({"prompt": [words(list(range(10, 20)))], "chosen": [words([30, 31])],
                          "rejected": [words([40, 41, 42, 43, 44])]})  # fmt: skip
    whole = published_tokens(pairs, tokens, 4, 17).iloc[0]  # BOS, 10 tokens, 5 more and EOS
    assert whole["prompt_ids"] == [1, *range(10, 20)] and whole["rejected_ids"] == [40, 41, 42, 43, 44, 2]
    shorter = published_tokens(pairs, tokens, 4, 16).iloc[0]
    assert shorter["prompt_ids"] == [16, 17, 18, 19] and shorter["chosen_ids"] == [30, 31, 2]
    shortest = published_tokens(pairs, tokens, 4, 8).iloc[0]
    assert shortest["chosen_ids"] == [30, 31, 2] and shortest["rejected_ids"] == [40, 41, 42, 43]
