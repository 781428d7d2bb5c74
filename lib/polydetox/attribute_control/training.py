"""What the trainings of attribute control share: batches of texts, and a Trainer of a given loss.

The losses, the NADO head's backbone and the iterations are in the notebook regularise.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from polydetox.core.artifacts import atomic_path, input_hash, library_versions, read_json, resume_key, write_json
from polydetox.models.checkpoints import Arguments, device, on_one_device, provenance
from polydetox.training.shared import linear_layers, mixed_precision

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase

Loss = Callable[[Any, dict[str, torch.Tensor]], tuple[torch.Tensor, dict[str, torch.Tensor]]]


# --- batches of texts -------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """The tokens of one text; those before ``start`` are given."""

    row: int  # which text
    ids: list[int]
    start: int
    label: float  # of the oracle for a sample; of a row of the corpus its lambda


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    texts: Sequence[str],
    labels: Sequence[float],
    max_length: int,
) -> list[Row]:
    """Tokenise texts that begin with their prompts; texts of which no token is left to learn are dropped.

    The given part ends where the tokens of the text cease to be those of the prompt alone, since the last token of a
    prompt may grow into the next word. At least one token is given, else the first could not be predicted.
    """
    rows = []
    whole = tokenizer(list(texts))["input_ids"]
    given = tokenizer(list(prompts))["input_ids"]
    for number, (ids, prompt, label) in enumerate(zip(whole, given, labels, strict=True)):
        ids = ids[:max_length]
        start = next((place for place, pair in enumerate(zip(ids, prompt, strict=False)) if pair[0] != pair[1]),
                     min(len(ids), len(prompt)))  # fmt: skip
        start = max(start, 1)
        if start < len(ids):
            rows.append(Row(number, ids, start, float(label)))
    return rows


def collate(batch: Sequence[Row], padding: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right: ``input_ids, attention_mask`` (rows, tokens), ``start, label, row`` (rows,)."""
    ids = pad_sequence([torch.tensor(row.ids) for row in batch], batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(row.ids) for row in batch])
    facts = {name: torch.tensor([getattr(row, name) for row in batch]) for name in ("start", "label", "row")}
    mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(-1)).long()
    return {"input_ids": ids, "attention_mask": mask, **facts}


def learnt(inputs: dict[str, Any]) -> torch.Tensor:
    """Which positions predict a token that is learnt (rows, tokens - 1): those from the last given token on."""
    place = torch.arange(1, inputs["input_ids"].shape[1], device=inputs["input_ids"].device)
    return (place >= inputs["start"].unsqueeze(-1)) & (inputs["attention_mask"][:, 1:] == 1)


# --- models -----------------------------------------------------------------------------------------------------


def adapter_options(model: PreTrainedModel, rank: int, alpha: int, task: str = "CAUSAL_LM") -> LoraConfig:
    """An adapter of every linear layer of a model but the output layer, to be merged after the training."""
    from peft import LoraConfig

    backbone: Any = model.base_model
    return LoraConfig(r=rank, lora_alpha=alpha, task_type=task,
                      target_modules=linear_layers(backbone, embeddings=False))  # fmt: skip


def last_hidden_state(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """What the output layer of a causal language model reads (rows, tokens, hidden)."""
    output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True,
                   use_cache=False, logits_to_keep=1)  # fmt: skip
    return output.hidden_states[-1]


class Features:
    """The last hidden states of texts under a model that does not change, computed once.

    Where ``file`` is given, they are kept there for the next process that needs them.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[Row], padding: int, batch_size: int,
                 file: Path | None = None):  # fmt: skip
        self._states: dict[int, torch.Tensor] = {}
        if file and file.is_file():
            self._states = {int(name): state for name, state in load_file(file).items()}
            return
        ordered = sorted(rows, key=lambda row: len(row.ids))
        with torch.no_grad():
            for first in range(0, len(ordered), batch_size):
                batch = ordered[first : first + batch_size]
                inputs = {name: value.to(device()) for name, value in collate(batch, padding).items()}
                for row, state in zip(batch, last_hidden_state(model, inputs).cpu(), strict=True):
                    self._states[row.row] = state[: len(row.ids)].clone()
        if file:
            with atomic_path(file) as temporary:
                save_file({str(row): state for row, state in self._states.items()}, temporary)

    def hidden(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The hidden states of a batch (rows, tokens, hidden); zero where it is padded."""
        states = [self._states[int(row)] for row in inputs["row"]]
        length = inputs["input_ids"].shape[1]
        padded = torch.stack([torch.nn.functional.pad(state, (0, 0, 0, length - len(state))) for state in states])
        return padded.to(inputs["input_ids"].device)


# --- the trainer ------------------------------------------------------------------------------------------------


class _Bar(ProgressCallback):
    """A progress bar alone; the Trainer's own shows a table of every step in a notebook."""

    def on_log(self, *args: Any, **named: Any) -> None:
        """Show nothing."""


def trainer_arguments(kind: Callable[..., Arguments], **options: Any) -> Arguments:
    """A Trainer's arguments, of their class ``kind``, on one device and in its precision."""
    on_cpu = device().type == "cpu"
    return on_one_device(kind(
        use_cpu=on_cpu, bf16=mixed_precision(), dataloader_pin_memory=not on_cpu, data_seed=options["seed"],
        disable_tqdm=True, report_to="none", **options,
    ))  # fmt: skip


class LossTrainer(Trainer):
    """transformers' Trainer of a given loss, on rows in their order, ``batch_size`` of them a step.

    ``loss(model, batch)`` returns the loss of a batch of :func:`collate` and the parts of it that are logged.
    ``options`` are transformers' ``TrainingArguments``.
    """

    def __init__(self, model: torch.nn.Module, rows: Sequence[Row], loss: Loss, *, padding: int, batch_size: int,
                 **options: Any):  # fmt: skip
        self._scratch = tempfile.TemporaryDirectory()  # a Trainer wants a folder, in which nothing is kept
        arguments = trainer_arguments(
            TrainingArguments, output_dir=self._scratch.name, lr_scheduler_type="constant_with_warmup",
            per_device_train_batch_size=batch_size, num_train_epochs=1, save_strategy="no", logging_steps=1,
            remove_unused_columns=False, train_sampling_strategy="sequential", **options,
        )  # fmt: skip
        super().__init__(model=model, args=arguments, train_dataset=list(rows), callbacks=[_Bar()],
                         data_collator=lambda batch: collate(batch, padding))  # fmt: skip
        self.remove_callback(PrinterCallback)
        self._loss = loss
        self._parts: dict[str, list[float]] = {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, parts = self._loss(model, inputs)
        for name, value in parts.items():
            self._parts.setdefault(name, []).append(float(value.detach()))
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._parts.items()}
            self._parts.clear()
        super().log(logs, *rest)

    def steps(self, *parts: str) -> pd.DataFrame:
        """Train, and return the named parts of the loss: a row a step (from 1), a column each."""
        self.train()
        log = [entry for entry in self.state.log_history if parts[-1] in entry]
        return pd.DataFrame(log, columns=["step", *parts]).set_index("step")


# --- iterations -------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of this process since it was made: of the wall clock, and of the CPU on all its threads.

    What an earlier process has kept in the file ``spent`` is added.
    """

    def __init__(self, spent: Path | None = None) -> None:
        earlier = read_json(spent) if spent and spent.is_file() else {"seconds": 0.0, "cpu_seconds": 0.0}
        self._wall = time.perf_counter() - earlier["seconds"]
        self._cpu = time.process_time() - earlier["cpu_seconds"]

    def read(self) -> dict[str, float]:
        """What has passed: ``seconds`` and ``cpu_seconds``."""
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


def resumable(folder: Path, weights: Path, table: pd.DataFrame, *depends_on: Any) -> Path:
    """A folder for what a stopped training resumes from, emptied where that depended on something else.

    It depends on the weights and the texts of the training, the libraries, and whatever JSON can hold.
    """
    versions = library_versions()
    own = [versions[name] for name in ("torch", "transformers", "trl")]
    key = resume_key([input_hash(provenance(weights)), table.to_json(), own, *depends_on])
    if not (folder / "key.json").is_file() or read_json(folder / "key.json") != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / "key.json", key)
    return folder


def side_by_side(calls: Sequence[Callable[[], None]]) -> None:
    """Run functions of a notebook at once, each in a process with a GPU of its own, and wait for all of them."""
    with ExitStack() as stack:
        running = []
        for number, call in enumerate(calls):
            pool = ProcessPoolExecutor(1, get_context("spawn"), _take_device, (number,))
            running.append(stack.enter_context(pool).submit(_call, cloudpickle.dumps(call)))
        for job in running:
            job.result()


def _take_device(number: int) -> None:
    """Let this process see one GPU alone, and end when the process that started it is gone."""
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",") if name]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[number] if number < len(devices) else ""
    parent: Any = parent_process()
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _call(pickled: bytes) -> None:
    cloudpickle.loads(pickled)()
