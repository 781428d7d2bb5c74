"""On the token ids of the published code, DPO's log-probabilities, loss, gradient and first steps are its own.

That code puts BOS in front for every tokenizer that has one; here the tokenizer's template does.
"""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from published import model, recorded, tokenizer, words
from trl import DPOConfig

from polydetox.preference.trainer import PairTrainer

TOKENIZERS = {"mGPT": (0, 0), "bloom": (1, 2), "llama": (1, 2)}  # BOS and EOS


def pairs_of(values: dict) -> pd.DataFrame:
    """The recorded pairs as texts: without BOS and EOS, which are not in the texts."""
    texts = []
    for pair in values["pairs"]:
        prompt = pair["prompt"][1:]
        sides = {side: words(pair[side][len(pair["prompt"]) : -1]) for side in ("chosen", "rejected")}
        texts.append({"prompt": words(prompt), **sides})
    return pd.DataFrame(texts)


@pytest.fixture(params=TOKENIZERS)
def case(request):
    """The name of a model, its tokenizer, the recorded values and their pairs as texts."""
    values = recorded("dpo")[request.param]
    tokens = tokenizer(*TOKENIZERS[request.param], template=True)
    return request.param, tokens, values, pairs_of(values)


def trainer_of(name: str, tokens, pairs: pd.DataFrame, folder) -> PairTrainer:
    """The policy is the model plus noise, the reference the model."""
    policy, generator = model(name), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, value in sorted(policy.named_parameters()):
            value.add_(0.01 * torch.randn(value.shape, generator=generator))
    tokens.pad_token = tokens.eos_token
    config = DPOConfig(output_dir=str(folder), beta=0.1, max_length=256, report_to="none", use_cpu=True, bf16=False)
    return PairTrainer(model=policy, ref_model=model(name), args=config, processing_class=tokens, train=pairs,
                       held_out=pairs, reference_cache=folder / "cache")  # fmt: skip


def batch_of(trainer: PairTrainer) -> dict[str, torch.Tensor]:
    return trainer.data_collator(list(trainer.train_dataset))


def test_token_ids_are_those_of_the_published_code(case, tmp_path):
    name, tokens, values, pairs = case
    for found, pair in zip(trainer_of(name, tokens, pairs, tmp_path).train_dataset, values["pairs"], strict=True):
        assert found["prompt_ids"] == pair["prompt"]
        assert found["prompt_ids"] + found["chosen_ids"] == pair["chosen"]
        assert found["prompt_ids"] + found["rejected_ids"] == pair["rejected"]


def test_loss_and_gradient_are_those_of_the_published_code(case, tmp_path):
    name, tokens, values, pairs = case
    trainer = trainer_of(name, tokens, pairs, tmp_path)
    batch = batch_of(trainer)
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


def test_log_probabilities_are_those_of_the_published_code(case, tmp_path):
    name, tokens, values, pairs = case
    trainer = trainer_of(name, tokens, pairs, tmp_path)
    batch = batch_of(trainer)
    for role, network in (("policy", trainer.model), ("reference", trainer.ref_model)):
        with torch.no_grad():
            chosen, rejected = trainer.compute_ref_log_probs(network, batch)
        assert chosen.tolist() == pytest.approx(values["log_probabilities"][f"{role}_chosen"], rel=1e-5)
        assert rejected.tolist() == pytest.approx(values["log_probabilities"][f"{role}_rejected"], rel=1e-5)


def test_five_steps_of_rmsprop_are_those_of_the_published_code(case, tmp_path):
    name, tokens, values, pairs = case
    trainer = trainer_of(name, tokens, pairs, tmp_path)
    batch, losses = batch_of(trainer), []
    optimizer = torch.optim.RMSprop(trainer.model.parameters(), lr=1e-3)
    for _ in range(5):
        loss = trainer.compute_loss(trainer.model, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == pytest.approx(values["losses_of_five_steps"], rel=1e-3, abs=1e-5)
