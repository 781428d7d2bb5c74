"""TRL's trainers of pairs and of their sides one by one; for pairs, batches of like length and a cache of the reference
model's log-probabilities."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import trl.trainer.utils
from datasets import Dataset, concatenate_datasets
from trl import DPOTrainer, KTOTrainer

from polydetox.core import paths
from polydetox.core.artifacts import (
    atomic_folder,
    input_hash,
    library_versions,
    read_parquet,
    resume_key,
    write_parquet,
)
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings
from polydetox.models.checkpoints import device, provenance
from polydetox.training.shared import LengthBuckets, last_checkpoint, mixed_precision

LOG_COLUMNS = ["step", "split", "metric", "value"]
REFERENCE_COLUMNS = ["pair", "chosen", "rejected"]
_INPUTS = ["prompt_ids", "chosen_ids", "rejected_ids"]
_METRICS = {"loss": "loss", "rewards/margins": "reward_margin", "rewards/accuracies": "reward_accuracy"}


def bookkeeping(
    weights: Path, train: pd.DataFrame, held_out: pd.DataFrame, settings: Settings, folder: Path
) -> dict[str, Any]:
    """Arguments of TRL's configuration that say nothing of the method: resuming, and what suits the device.

    TRL's own checkpoints are kept below ``folder/checkpoints`` while training runs, in a folder named by all that they
    depend on, so that other settings start again. Reference log-probabilities are computed beforehand where training
    goes over the pairs at least once: held-out pairs are evaluated many times, and another run finds them in the cache.
    """
    a_step = settings.batch_size * settings.gradient_accumulation_steps
    a_step *= 2 if "label" in train else 1  # of unpaired data, as many completions as pairs have
    steps = settings.max_steps or math.ceil(len(train) / a_step) * math.ceil(settings.epochs)
    if settings.eval_steps > steps:  # the best checkpoint is chosen by the held-out loss
        raise UserError(f"dpo: eval_steps {settings.eval_steps} is more than the {steps} steps of this training; lower "
                        "eval_steps")  # fmt: skip
    key = resume_key({
        "weights": input_hash(provenance(weights)), "train": train.to_json(), "held_out": held_out.to_json(),
        "settings": settings.model_dump(exclude={"output_folder"}),
    })  # fmt: skip
    for stale in (folder / "checkpoints").glob("*"):
        if stale.name != key:
            shutil.rmtree(stale)
    checkpoints, on_cpu = folder / "checkpoints" / key, device().type == "cpu"
    all_pairs = settings.max_steps * a_step >= len(train) if settings.max_steps else settings.epochs >= 1
    return {
        "output_dir": str(checkpoints),
        "eval_on_start": last_checkpoint(checkpoints) is None,
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping counts on
        "save_strategy": "steps",
        "save_steps": settings.eval_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "precompute_ref_log_probs": all_pairs,
        # TRL's defaults suit a GPU. On a CPU, bfloat16 is emulated unless it has the instructions, and recomputing
        # activations only costs time. Weights stay in float32 either way: the matrix products alone are mixed.
        "use_cpu": on_cpu,
        "bf16": mixed_precision(),
        "gradient_checkpointing": not on_cpu and settings.method != "full",
        "dataloader_pin_memory": not on_cpu,
    }


def keep_weights(trainer: PairTrainer | UnpairedTrainer, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Save what ``trainer`` holds after training, its best checkpoint or the last one, as ``folder/weights``.

    That is a whole checkpoint after full fine-tuning, else an adapter. TRL's own checkpoints are removed. Returns the
    training log, the figures of the best step (with the lowest held-out loss), and the step that was kept.
    """
    log = training_log(trainer.state.log_history)
    best = best_step(log)
    with atomic_folder(folder / "weights") as temporary:
        trainer.save_model(str(temporary))
        assert trainer.processing_class is not None
        trainer.processing_class.save_pretrained(temporary)
        (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing here reads
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    steps, is_best = trainer.state.global_step, trainer.args.load_best_model_at_end
    return log, {"steps": steps, **best, "kept_step": best["best_step"] if is_best else steps}


def training_log(history: list[dict[str, Any]]) -> pd.DataFrame:
    """TRL's log as a table in long form: ``step, split`` (train or held_out), ``metric, value``."""
    rows = []
    for entry in history:
        split, prefix = ("held_out", "eval_") if "eval_loss" in entry else ("train", "")
        rows += [(entry["step"], split, metric, float(entry[prefix + key]))
                 for key, metric in _METRICS.items() if prefix + key in entry]  # fmt: skip
    return pd.DataFrame(rows, columns=LOG_COLUMNS).drop_duplicates(["step", "split", "metric"], keep="last")


def best_step(log: pd.DataFrame) -> dict[str, Any]:
    """The step after which the held-out loss was lowest, with that loss and accuracy."""
    rows = log[(log["split"] == "held_out") & (log["step"] > 0)]
    held_out = rows.pivot(index="step", columns="metric", values="value")
    losses = held_out["loss"].dropna()
    if losses.empty:
        raise UserError("dpo: the training diverged, its held-out loss is not a number; lower learning_rate")
    best = int(losses.idxmin())
    ranked = held_out.get("reward_accuracy")  # None where the sides of a pair are trained on one by one
    accuracy = None if ranked is None else float(ranked[best])
    return {"best_step": best, "held_out_loss": float(losses[best]), "held_out_accuracy": accuracy}


def reference_cache(weights: Path, settings: Settings) -> Path:
    """The folder of reference log-probabilities for this model, in the precision in which training computes them."""
    versions = library_versions()
    return paths.runs() / "cache/reference" / resume_key([
        input_hash(provenance(weights)), settings.method, settings.max_length, device().type, mixed_precision(),
        *(versions[name] for name in ("torch", "transformers", "trl")),
    ])  # fmt: skip


def _token_ids(dataset: Dataset) -> Iterator[tuple[list[int], list[int], list[int]]]:
    return zip(*(dataset[name] for name in _INPUTS), strict=True)


def pair_keys(dataset: Dataset) -> list[str]:
    """A name for each pair, made of its tokens."""
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:32] for row in _token_ids(dataset)]


def pair_lengths(dataset: Dataset) -> list[int]:
    """How many tokens the longer text of each pair has."""
    return [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in _token_ids(dataset)]


# TRL multiplies the output layer by the positions of completions alone only where it has Triton; elsewhere by all, lest
# new shapes be compiled anew. Nothing is compiled here, and on a CPU prompts and padding took a fifth of a step.
trl.trainer.utils._use_triton = lambda device: True


def _trained_in_float32(model: Any) -> None:
    """TRL puts a 4-bit model's adapter into bfloat16, which cannot hold steps as small as the paper's learning rate."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class UnpairedTrainer(KTOTrainer):
    """``KTOTrainer`` on tables of ``prompt, completion, label``; a label says whether the completion was chosen."""

    def __init__(self, *, train: pd.DataFrame, held_out: pd.DataFrame, **named: Any):
        datasets = {"train_dataset": Dataset.from_pandas(train), "eval_dataset": Dataset.from_pandas(held_out)}
        super().__init__(**datasets, **named)
        _trained_in_float32(self.model)


class PairTrainer(DPOTrainer):
    """``DPOTrainer`` with length buckets and, where reference log-probabilities are precomputed, a cache of them.

    ``train`` and ``held_out`` are tables of ``prompt, chosen, rejected``, or of their token ids, ``prompt_ids`` and so
    on. ``reference_cache`` is a folder of Parquet files of ``pair, chosen, rejected``: the summed log-probabilities of
    the completions under the reference model. It must be named by that model and by what else they depend on. Runs that
    split the same pairs by another seed, or train with another learning rate, find theirs there. Each run adds a file
    of its own, so that runs on several hosts lose nothing.

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
        columns = [name for name in _INPUTS if name in train] or ["prompt", "chosen", "rejected"]
        datasets = (Dataset.from_pandas(pairs[columns], preserve_index=False) for pairs in (train, held_out))
        super().__init__(**dict(zip(("train_dataset", "eval_dataset"), datasets, strict=True)), **named)
        _trained_in_float32(self.model)

    def _prepare_dataset(self, dataset: Dataset, *named: Any) -> Dataset:
        return dataset if _INPUTS[0] in dataset.column_names else super()._prepare_dataset(dataset, *named)

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

    def prediction_step(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        found = super().prediction_step(model, inputs, *given, **named)
        for values in self._metrics["eval"].values():  # TRL takes their mean: a pair weighs the same in every batch
            values.extend(values[-1:] * (len(inputs["input_ids"]) // 2 - 1))
        return found

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if self._reference_free_loss is not None:
            return dataset
        keys, lengths = pair_keys(dataset), pair_lengths(dataset)
        place = {key: row for row, key in enumerate(keys)}
        tables = [read_parquet(file, REFERENCE_COLUMNS) for file in sorted(self._reference_cache.glob("*.parquet"))]
        if missing := place.keys() - {key for table in tables for key in table["pair"]}:
            # By length, so that batches have little padding.
            order = sorted((place[key] for key in missing), key=lambda row: (lengths[row], row))
            computed = super()._precompute_ref_logps(dataset.select(order), name, batch_size)
            tables.append(pd.DataFrame({
                "pair": pair_keys(computed), "chosen": computed["ref_chosen_logps"],
                "rejected": computed["ref_rejected_logps"],
            }))  # fmt: skip
            if self.accelerator.is_main_process:
                write_parquet(self._reference_cache / f"{uuid.uuid4().hex}.parquet", tables[-1])
        known = pd.concat(tables, ignore_index=True).drop_duplicates("pair").set_index("pair").loc[keys]
        columns = {"ref_chosen_logps": known["chosen"].tolist(), "ref_rejected_logps": known["rejected"].tolist()}
        return concatenate_datasets([dataset, Dataset.from_dict(columns)], axis=1)
