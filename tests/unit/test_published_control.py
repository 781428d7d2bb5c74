"""Head and model of ``pr-finetune`` learn on a tiny GPT-2 as in the code that the first author of paper B published."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from notebook_cells import some_cells
from polydetox.attribute_control.nado import target_log_probabilities
from polydetox.attribute_control.training import learnt
from polydetox.core.artifacts import Stage
from polydetox.core.parameters import checked
from tiny import CHECKOUT, tiny_tokenizer

RECORDED = json.loads((CHECKOUT / "tests/published/control.json").read_text("utf-8"))
VOCABULARY = 30


def regularise(folder: Path, *cells: str, **settings):
    """The namespace of the notebook regularise after its imports and some of its cells, for ``pr-finetune``."""
    asked = checked("regularise", algorithm="pr-finetune", **settings)
    cells = ("-03", "-ends", "-head-losses", "-model-losses", *cells)
    return some_cells("regularise", asked, Stage("regularise", folder, {}), cells, tokenizer=tiny_tokenizer())


def random_model(kind, seed: int):
    torch.manual_seed(seed)
    model = kind(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0,
                            eos_token_id=0))  # fmt: skip
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "ln" not in name:
                value.mul_(5)
    return model.eval()


def random_head() -> tuple[GPT2Model, torch.nn.Linear]:
    """The backbone of the head and its matrix with a bias."""
    matrix = torch.nn.Linear(16, VOCABULARY)
    torch.manual_seed(2)
    with torch.no_grad():
        matrix.weight.copy_(torch.randn(VOCABULARY, 16))
        matrix.bias.copy_(torch.randn(VOCABULARY))
    return random_model(GPT2Model, 1), matrix


def batches(start: int = 0):
    """The recorded samples, a batch for each of their prompts, twice."""
    recorded = list(zip(*(RECORDED[name] for name in ("samples", "given", "ended", "toxicity")), strict=True))
    for number, (ids, given, (ended, place), toxicity) in enumerate(2 * recorded):
        mask = torch.ones(len(ids), len(ids[0]), dtype=torch.long)
        mask[ended, place:] = 0
        # The published code stores the power in place of the toxicity, and takes it again in every epoch.
        label = 1.0 - torch.tensor(toxicity) ** (RECORDED["label_power"] ** (1 + number // len(recorded)))
        yield {"input_ids": torch.tensor(ids), "attention_mask": mask, "start": torch.full((len(ids),), given + start),
               "label": label}  # fmt: skip


def test_the_head_learns_as_in_the_published_code(tmp_path):
    """The published loss is a sum over positions of means over texts; here it is a mean over all of them."""
    backbone, matrix = random_head()

    def of_tokens(states, tokens, _):
        return matrix(states).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def hidden(batch):
        return backbone(input_ids=batch["input_ids"] * batch["attention_mask"],
                        attention_mask=batch["attention_mask"]).last_hidden_state  # fmt: skip

    loss = regularise(tmp_path, "-17")["head_loss"](SimpleNamespace(of_tokens=of_tokens), None, hidden, None)
    optimiser = torch.optim.AdamW([*backbone.parameters(), *matrix.parameters()], lr=RECORDED["learning_rate"])
    found = []
    for batch in batches():
        value = loss(None, batch)[0] * learnt(batch).sum() / len(batch["label"])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        found.append(value.item())
    assert found == pytest.approx(RECORDED["head_losses"], rel=1e-5)


def test_the_model_learns_as_in_the_published_code(tmp_path):
    """Cross-entropy is the KL and the entropy of the target; positions are the published ones, whole texts."""
    base, model, (backbone, matrix) = (*(random_model(GPT2LMHeadModel, 0) for _ in range(2)), random_head())

    @torch.no_grad()
    def target(batch):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        log_q = target_log_probabilities(base(**inputs).logits, matrix(backbone(**inputs).last_hidden_state))
        return log_q[:, :-1][learnt(batch)]

    loss = regularise(tmp_path, "-pr-03")["imitation_loss"](target)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RECORDED["learning_rate"])
    found = []
    for batch in batches(start=1):
        # The published code also asks what follows the last token.
        batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 1), value=5)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        kl, log_q = loss(model, batch)[0], target(batch)
        optimiser.zero_grad()
        kl.backward()
        optimiser.step()
        found.append(kl.item() - float((log_q.exp() * log_q).sum(-1).mean()))
    assert found == pytest.approx(RECORDED["model_losses"], rel=1e-5)


def test_the_head_fits_a_label_by_the_odds(tmp_path):
    """Of a text that is accepted once in four times R is 1/3: the loss is least where R / (1 + R) is the label."""
    head = SimpleNamespace(of_tokens=lambda *_: logits)
    loss = regularise(tmp_path, "-17")["head_loss"](head, None, lambda _: torch.zeros(1, 2, 1), None)
    batch = {"input_ids": torch.tensor([[4, 5]]), "attention_mask": torch.ones(1, 2, dtype=torch.long),
             "start": torch.tensor([1]), "label": torch.tensor([0.25])}  # fmt: skip
    logits = torch.logit(torch.tensor([[1 / 3]])).requires_grad_()
    value, parts = loss(None, batch)
    value.backward()
    # -(1/4) log(1/4) - (3/4) log(3/4)
    assert value.item() == pytest.approx(0.5623351) and logits.grad.item() == pytest.approx(0.0, abs=1e-6)
    assert parts["consistency"] == 0.0, "the published loss has none"


def test_the_loss_of_the_model_by_hand(tmp_path):
    """p = (1/2, 1/4, 1/4) and R = (1, 1/2, 1/10) give q = (20, 5, 1) / 26; the model says (1/3, 1/3, 1/3)."""
    p, r = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[1 - 1e-7, 0.5, 0.1]])
    log_q = target_log_probabilities(p.log(), torch.logit(r))
    assert log_q.exp().tolist() == [pytest.approx([20 / 26, 5 / 26, 1 / 26], abs=1e-6)]
    batch = {"input_ids": torch.tensor([[0, 1]]), "attention_mask": torch.ones(1, 2, dtype=torch.long),
             "start": torch.tensor([1])}  # fmt: skip

    def model(**_):
        return SimpleNamespace(logits=torch.zeros(1, 2, 3))

    kl, _ = regularise(tmp_path, "-pr-03")["imitation_loss"](lambda _: log_q)(model, batch)
    assert kl.item() == pytest.approx(0.4544325, abs=1e-5), "sum of q log(3 q)"


def test_soft_labels_are_one_less_a_power_of_the_toxicity(tmp_path):
    """For what is learnt from; the head is tested on the verdict of the oracle."""
    prompts = [f"The cat {word}" for word in ("sat", "ran", "ate", "slept")]
    samples = pd.DataFrame({
        "prompt": prompts, "continuation": [" on it"] * 4, "toxicity": [0.0, 0.25, 0.81, 0.64], "truncated": True,
        "satisfied": [1.0, 1.0, 0.0, 0.0],
    })  # fmt: skip
    soft = dict(enumerate([1.0, 0.5, 0.1, 0.2]))
    learnt_from, kept = regularise(tmp_path, "-15", label_power=0.5)["labelled_rows"](samples, 1)
    assert {row.row: row.label for row in learnt_from} == {row.row: pytest.approx(soft[row.row]) for row in learnt_from}
    assert len(learnt_from) == 3 and [row.label for row in kept] == [samples["satisfied"][row.row] for row in kept]
    hard = [row for part in regularise(tmp_path, "-15")["labelled_rows"](samples, 1) for row in part]
    assert {row.row: row.label for row in hard} == dict(enumerate(samples["satisfied"]))
