"""The two trainings of attribute control: of the NADO head on samples, and of the model towards what the head allows.

Both are transformers' ``Trainer`` with a loss of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from polydetox.attribute_control.adapters import adapter_options
from polydetox.attribute_control.body import Body, Features
from polydetox.attribute_control.head import NadoHead
from polydetox.attribute_control.nado import (
    consistency_loss,
    head_bce,
    regularised_loss,
    target_log_probabilities,
    token_kl,
)
from polydetox.attribute_control.rows import Row, batches_of, collate, learnt
from polydetox.core.parameters import Settings
from polydetox.models.checkpoints import device, on_one_device
from polydetox.preference.dpo import mixed_precision


def _arguments(folder: Path, seed: int, **named: Any) -> TrainingArguments:
    on_cpu = device().type == "cpu"
    return on_one_device(TrainingArguments(
        output_dir=str(folder), seed=seed, data_seed=seed, lr_scheduler_type="constant_with_warmup",
        save_strategy="no", logging_steps=1, report_to="none", remove_unused_columns=False, disable_tqdm=True,
        use_cpu=on_cpu, bf16=mixed_precision(), dataloader_pin_memory=not on_cpu, **named,
    ))  # fmt: skip


class _Bar(TrainerCallback):
    """One progress bar for a training; the Trainer's own shows a table of every step in a notebook."""

    def __init__(self, title: str):
        self._title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(total=state.max_steps, desc=self._title, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


class _RowTrainer(Trainer):
    """Takes its rows in the order in which they are given, and averages the parts of its loss for the log."""

    title = "train"

    def __init__(self, *, rows: Sequence[Row], padding: int, arguments: TrainingArguments, model: torch.nn.Module):
        super().__init__(model=model, args=arguments, train_dataset=list(rows), callbacks=[_Bar(self.title)],
                         data_collator=lambda batch: collate(batch, padding))  # fmt: skip
        self.remove_callback(PrinterCallback)
        self._parts: dict[str, list[float]] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        return torch.utils.data.SequentialSampler(rows)

    def _note(self, **parts: torch.Tensor) -> None:
        for name, value in parts.items():
            self._parts.setdefault(name, []).append(float(value.detach()))

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._parts.items()}
            self._parts.clear()
        super().log(logs, *rest)


# --- the model --------------------------------------------------------------------------------------------------


class Regulariser:
    """The closest distribution that the constraint allows, at the positions of a batch: log q, given log p.

    ``features`` are the head's hidden states of the corpus under a frozen body; without them the body is asked.
    """

    def __init__(self, head: NadoHead, body: Body, features: Features | None, alpha: float, direction: str):
        self.head = head.requires_grad_(False).to(device())
        self._body, self._features = body, features
        self._alpha = alpha
        self.direction = direction

    @torch.no_grad()
    def target(self, log_p: torch.Tensor, inputs: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
        """log q (positions, vocabulary) for log p of the marked ``positions`` (rows, tokens - 1) of a batch."""
        held = positions.any(dim=-1)  # rows without a marked position need no hidden states
        inputs, positions = {name: value[held] for name, value in inputs.items()}, positions[held]
        states = self._features.of(inputs) if self._features else self._body.hidden(inputs)
        head_logits = self.head(states[:, :-1][positions], self._body.embedding)
        return target_log_probabilities(log_p, head_logits.float(), self._alpha)


class RegularisedTrainer(_RowTrainer):
    """Next-token loss plus lambda times the KL between the target and the model (Meng et al. 2024).

    lambda is each row's ``label``; without a regulariser this is plain fine-tuning.
    """

    title = "model"

    def __init__(self, *, regulariser: Regulariser | None, **named: Any):
        super().__init__(**named)
        self._regulariser = regulariser

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        positions = learnt(inputs)
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        log_p = output.logits[:, :-1][positions].float().log_softmax(dim=-1)  # (positions, vocabulary)
        tokens = inputs["input_ids"][:, 1:][positions]
        weights = inputs["label"].unsqueeze(-1).expand_as(positions)[positions]
        kl = torch.zeros_like(weights)
        # Rows whose lambda is 0 need no target.
        held = weights > 0
        if self._regulariser and bool(held.any()):
            chosen = positions & (inputs["label"] > 0).unsqueeze(-1)
            ours = log_p[held]
            log_q = self._regulariser.target(ours.detach(), inputs, chosen)
            kl = kl.masked_scatter(held, token_kl(log_q, ours, self._regulariser.direction))
        loss = regularised_loss(log_p, tokens, kl, weights)
        self._note(
            next_token=loss.detach() - (weights * kl).mean().detach(),
            kl=kl[held].mean() if bool(held.any()) else kl.sum(),
        )
        return (loss, output) if return_outputs else loss


def train_model(
    model: PreTrainedModel,
    rows: Sequence[Row],
    regulariser: Regulariser | None,
    settings: Settings,
    padding: int,
    folder: Path,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Train a model on batches of rows in their order; returns it, an adapter merged, and the log of its steps."""
    tuned: Any = model
    if settings.tuning == "lora":
        from peft import get_peft_model

        tuned = get_peft_model(model, adapter_options(model, settings))
    arguments = _arguments(
        folder, settings.seed, learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=min(settings.batch_size, len(rows)), num_train_epochs=1,
    )  # fmt: skip
    trainer = RegularisedTrainer(regulariser=regulariser, model=tuned, rows=rows, padding=padding, arguments=arguments)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "next_token" in entry]
    if settings.tuning == "lora":
        tuned = tuned.merge_and_unload()
    return tuned.eval(), log


@torch.inference_mode()
def text_loss(model: PreTrainedModel, rows: Sequence[Row], padding: int, batch_size: int) -> float:
    """Mean next-token loss of the learnt tokens, in nats a token."""
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for first in range(0, len(ordered), batch_size):
        inputs = {
            name: value.to(model.device)
            for name, value in collate(ordered[first : first + batch_size], padding).items()
        }
        positions = learnt(inputs)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed_precision()):
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).logits
        log_p = logits[:, :-1][positions].float().log_softmax(-1)
        total -= float(log_p.gather(-1, inputs["input_ids"][:, 1:][positions].unsqueeze(-1)).sum())
        count += int(positions.sum())
    return total / max(count, 1)


# --- the head ---------------------------------------------------------------------------------------------------


class _HeadOnBody(torch.nn.Module):
    """What the head's trainer trains: the head, and with it the adapter of its body where that has one."""

    def __init__(self, head: NadoHead, body: Body):
        super().__init__()
        self.head = head
        if body.adapted:
            self.body = body


class HeadTrainer(_RowTrainer):
    """Binary cross-entropy against the oracle's labels plus the consistency of neighbouring positions.

    ``features`` are the samples' hidden states under a frozen body, ``sampler`` those under the model that drew them,
    with its output layer: from them come the p of the consistency term.
    """

    title = "head"

    def __init__(
        self, *, head: NadoHead, body: Body, features: Features | None, sampler: NextToken,
        settings: Settings, **named: Any,
    ):  # fmt: skip
        super().__init__(model=_HeadOnBody(head, body), **named)
        self._body, self._features, self._sampler, self._settings = body, features, sampler, settings

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        head, embedding = model.head, self._body.embedding
        positions = learnt(inputs)
        states = self._features.of(inputs) if self._features else self._body.hidden(inputs)
        chosen = head.of_tokens(states[:, :-1], inputs["input_ids"][:, 1:], embedding).float()
        bce = head_bce(chosen, inputs["label"], positions)
        loss, consistency = bce, torch.zeros(())
        if self._settings.consistency_weight:
            # Where a learnt token was read and another one follows.
            inner = (positions[:, :-1] & positions[:, 1:]).nonzero()
            count = max(1, round(self._settings.consistency_share * len(inner)))
            at = inner[torch.randperm(len(inner), device=inner.device)[:count]]
            if len(at):
                log_p = self._sampler.log_probabilities(inputs, at[:, 0], at[:, 1] + 1)
                following = head(states[at[:, 0], at[:, 1] + 1], embedding).float()
                consistency = consistency_loss(log_p, following, chosen[at[:, 0], at[:, 1]])
                loss = bce + self._settings.consistency_weight * consistency
        self._note(bce=bce, consistency=consistency)
        return (loss, {"logits": chosen}) if return_outputs else loss


class NextToken:
    """log p of a model that does not change, at single positions of texts; ``features`` are its states of them."""

    def __init__(self, model: PreTrainedModel, features: Features, row: Row, padding: int):
        self._model = model
        self._features = features
        self._plain = self._output_layer_is_all(row, padding)

    @torch.inference_mode()
    def _output_layer_is_all(self, row: Row, padding: int) -> bool:
        """Whether the logits are the output layer's, and nothing is done to them afterwards (as softcapping)."""
        inputs = {name: value.to(self._model.device) for name, value in collate([row], padding).items()}
        logits = self._model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        states = self._features.of(inputs)
        own = self._model.get_output_embeddings()(states)
        return bool((own.float() - logits.float()).abs().max() <= 0.02 * logits.float().abs().max())

    @torch.no_grad()
    def log_probabilities(self, inputs: dict[str, Any], rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """log p of the next token (positions, vocabulary) after the tokens ``places`` of the batch's ``rows``."""
        if self._plain:
            logits = self._model.get_output_embeddings()(self._features.of(inputs)[rows, places])
        else:
            logits = self._model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
                                 use_cache=False).logits[rows, places]  # fmt: skip
        return logits.float().log_softmax(dim=-1)


def train_head(
    head: NadoHead,
    body: Body,
    sampler: PreTrainedModel,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    settings: Settings,
    padding: int,
    folder: Path,
) -> dict[str, float]:
    """Train a head (and its body's adapter) on labelled samples; returns its losses, and how it judges held-out ones.

    ``auc`` is the ROC-AUC of R after the whole text against the oracle, ``auc_half`` after half of it.
    """
    import numpy as np

    everything = [*rows, *held_out]
    size = min(settings.head_batch_size, len(rows))
    features = None if body.adapted else Features(body.model, everything, padding, settings.head_batch_size)
    # In the first iteration the untuned model, which is the head's body, is also what was sampled.
    drawn_from = features if sampler is body.model else None
    if drawn_from is None:
        drawn_from = Features(sampler, everything, padding, settings.head_batch_size)
    next_token = NextToken(sampler, drawn_from, everything[0], padding)
    arguments = _arguments(
        folder, settings.seed, learning_rate=settings.head_learning_rate, weight_decay=settings.head_weight_decay,
        warmup_steps=0, max_grad_norm=1.0, per_device_train_batch_size=size, num_train_epochs=1,
    )  # fmt: skip
    steps = settings.head_epochs * (len(rows) // size)
    ordered = batches_of(rows, size, settings.seed, 0, steps)
    trainer = HeadTrainer(head=head.requires_grad_(True), body=body, features=features, sampler=next_token,
                          settings=settings, rows=ordered, padding=padding, arguments=arguments)  # fmt: skip
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "bce" in entry]
    last = log[-max(1, len(log) // 4) :]
    figures = {name: float(np.mean([entry[name] for entry in last])) for name in ("bce", "consistency")}
    return {"steps": len(log), **figures, **_judge(head.eval(), body, features, held_out, padding, size)}


@torch.inference_mode()
def _judge(
    head: NadoHead, body: Body, features: Features | None, rows: Sequence[Row], padding: int, batch_size: int
) -> dict[str, float]:
    """Held-out cross-entropy, and ROC-AUC after the whole and after half of each text; NaN for labels of one kind."""
    from sklearn.metrics import roc_auc_score

    whole, half, labels, losses = [], [], [], []
    for first in range(0, len(rows), batch_size):
        inputs = {
            name: value.to(device()) for name, value in collate(rows[first : first + batch_size], padding).items()
        }
        positions = learnt(inputs)
        states = features.of(inputs) if features else body.hidden(inputs)
        logits = head.of_tokens(states[:, :-1], inputs["input_ids"][:, 1:], body.embedding).float()
        for row, marked, label in zip(logits, positions, inputs["label"], strict=True):
            own = row[marked]
            whole.append(float(own[-1]))
            half.append(float(own[len(own) // 2]))
            labels.append(float(label))
            losses.append(float(head_bce(own[None], label[None], torch.ones_like(own[None], dtype=torch.bool))))
    both = len(set(labels)) == 2
    return {
        "held_out_bce": sum(losses) / len(losses) if losses else float("nan"),
        "auc": float(roc_auc_score(labels, whole)) if both else float("nan"),
        "auc_half": float(roc_auc_score(labels, half)) if both else float("nan"),
    }
