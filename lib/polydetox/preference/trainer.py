"""TRL's DPO trainer with batches of pairs of like length, and reference log-probabilities that are computed once."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets
from trl import DPOTrainer

from polydetox.core.artifacts import read_parquet, write_parquet
from polydetox.preference.buckets import LengthBuckets

REFERENCE_COLUMNS = ["pair", "chosen", "rejected"]


def pair_keys(dataset: Dataset) -> list[str]:
    """A name for each pair, made of its tokens."""
    columns = zip(dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:32] for row in columns]


def pair_lengths(dataset: Dataset) -> list[int]:
    """How many tokens the longer text of each pair has."""
    columns = zip(dataset["prompt_ids"], dataset["chosen_ids"], dataset["rejected_ids"], strict=True)
    return [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in columns]


def _dataset(pairs: pd.DataFrame) -> Dataset:
    return Dataset.from_pandas(pairs[["prompt", "chosen", "rejected"]], preserve_index=False)


class PairTrainer(DPOTrainer):
    """``DPOTrainer`` with length buckets and, where reference log-probabilities are precomputed, a cache of them.

    ``train`` and ``held_out`` are tables of ``prompt, chosen, rejected``. ``reference_cache`` is a folder of Parquet
    files of ``pair, chosen, rejected``: the summed log-probabilities of the completions under the reference model. It
    must be named by that model and by what else they depend on. Runs that split the same pairs by another seed, or
    train with another learning rate, find theirs there. Each run adds a file of its own, so that runs on several hosts
    lose nothing.

    ``reference_free_loss`` replaces TRL's loss: a function of the mean log-probabilities of the tokens of the chosen
    and of the rejected completions, (pairs,) each, to the losses of the pairs. The reward of a completion is then beta
    times that mean, and there is no reference model.
    """

    def __init__(
        self,
        *,
        train: pd.DataFrame,
        held_out: pd.DataFrame,
        reference_cache: Path,
        reference_free_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        **named: Any,
    ):
        self._reference_cache = reference_cache  # read while the parent class is set up
        self._reference_free_loss = reference_free_loss
        if reference_free_loss is not None:
            named["args"].precompute_ref_log_probs = True  # so that TRL keeps no reference model; nothing is computed
        datasets = {"train_dataset": _dataset(train), "eval_dataset": _dataset(held_out)}
        super().__init__(**datasets, **named)
        # TRL puts a 4-bit model's adapter into bfloat16, which cannot hold steps as small as the paper's learning rate.
        assert self.model is not None
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthBuckets:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthBuckets(pair_lengths(dataset), size, self.args.data_seed or self.args.seed)

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        if self._reference_free_loss is None:
            return super()._compute_loss(model, inputs, return_outputs)
        ids, mask = inputs["input_ids"], inputs["completion_mask"]  # (2 pairs, tokens), the chosen ones first
        outputs = model(input_ids=ids, attention_mask=inputs["attention_mask"], use_cache=False, fused_lm_head=True,
                        labels=ids.masked_fill(mask == 0, -100))  # fmt: skip
        means = outputs.log_probs.sum(1) / mask[:, 1:].sum(1)  # (2 pairs,)
        chosen, rejected = means.chunk(2)
        margins = self.accelerator.gather(self.beta * (chosen - rejected).detach())
        metrics = self._metrics["train" if model.training else "eval"]
        metrics["rewards/margins"].append(margins.mean().item())
        metrics["rewards/accuracies"].append((margins > 0).float().mean().item())
        loss = self._reference_free_loss(chosen, rejected).mean()
        return (loss, outputs) if return_outputs else loss

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if self._reference_free_loss is not None:
            return dataset
        cache = self._reference_cache
        keys = pair_keys(dataset)
        place = {key: row for row, key in enumerate(keys)}
        earlier = cache.with_name(f"{cache.name}.parquet")  # the one file of earlier releases
        files = [*sorted(cache.glob("*.parquet")), *([earlier] if earlier.is_file() else [])]
        parts = [read_parquet(file, REFERENCE_COLUMNS) for file in files]
        known = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=REFERENCE_COLUMNS)
        missing = place.keys() - set(known["pair"])
        if missing:
            lengths = pair_lengths(dataset)
            # By length, so that batches have little padding.
            order = sorted((place[key] for key in missing), key=lambda row: (lengths[row], row))
            computed = super()._precompute_ref_logps(dataset.select(order), name, batch_size)
            fresh = pd.DataFrame({
                "pair": pair_keys(computed), "chosen": computed["ref_chosen_logps"],
                "rejected": computed["ref_rejected_logps"],
            })  # fmt: skip
            known = fresh if known.empty else pd.concat([known, fresh], ignore_index=True)
            if self.accelerator.is_main_process:
                write_parquet(cache / f"{uuid.uuid4().hex}.parquet", fresh)
        table = known.drop_duplicates("pair").set_index("pair").loc[keys]
        columns = {"ref_chosen_logps": table["chosen"].tolist(), "ref_rejected_logps": table["rejected"].tolist()}
        return concatenate_datasets([dataset, Dataset.from_dict(columns)], axis=1)
