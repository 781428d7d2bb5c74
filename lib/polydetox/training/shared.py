"""Batches of like length, precision, the checkpoint to resume from, and the layers of an adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from polydetox.core.errors import UserError
from polydetox.models.checkpoints import device

_BATCHES_SORTED = 8  # so many batches are filled at random, then sorted by length among themselves
_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


class LengthBuckets(torch.utils.data.Sampler[int]):
    """A new random order of the rows in each epoch, in which those that share a batch have about the same length.

    They are shuffled, each run of a few batches is sorted by length and cut into batches, and the batches are
    shuffled, so that training meets no lengths in order. The order depends on the seed and the epoch alone.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self._lengths = torch.tensor(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called through accelerate's data loader before each epoch, of a resumed training as well."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        order = torch.randperm(len(self), generator=generator)
        buckets = []
        for run in order.split(self._batch_size * _BATCHES_SORTED):
            buckets += run[self._lengths[run].argsort(stable=True)].split(self._batch_size)
        # A batch that is not full stays last: anywhere else it would shift the batches after it.
        full = [bucket for bucket in buckets if len(bucket) == self._batch_size]
        rest = [bucket for bucket in buckets if len(bucket) < self._batch_size]
        shuffled = [full[place] for place in torch.randperm(len(full), generator=generator).tolist()]
        yield from torch.cat([*shuffled, *rest]).tolist()


def mixed_precision() -> bool:
    """Whether this device multiplies bfloat16 faster than float32."""
    if device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device().type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def check_four_bit() -> None:
    """Refuse QLoRA where its weights cannot be had or trained: bitsandbytes, and a GPU."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            "method 'qlora' needs bitsandbytes: pip install --no-deps -r requirements-gpu.txt, or method: lora"
        ) from None
    # On a CPU it computes, but for evaluation it packs the weights in a way that has no gradient.
    if not torch.cuda.is_available():
        raise UserError("method 'qlora' needs an NVIDIA GPU; use method: lora")


def last_checkpoint(checkpoints: str | Path) -> str | None:
    """The newest whole checkpoint; one that was being written when a run stopped is removed."""
    found = {int(folder.name.rsplit("-", 1)[1]): folder for folder in Path(checkpoints).glob("checkpoint-*")}
    for step in sorted(found, reverse=True):
        try:
            json.loads((found[step] / "trainer_state.json").read_text("utf-8"))
            return str(found[step])
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(found[step])
    return None


def linear_layers(model: PreTrainedModel, *, embeddings: bool) -> list[str]:
    """The names of every linear layer but the output layer, and of the input embedding where asked.

    The published code adapts the output layer of Llama and Aya as well; TRL refuses that, since it multiplies by the
    layer's own weight, so that its adapter would never be trained. A name is the last part of the module paths, as
    PEFT matches them, where all modules of that name are meant, else the whole path. GPT-2's ``Conv1D`` counts as
    linear.
    """
    from transformers.pytorch_utils import Conv1D

    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    # Mamba's kernels read the weight of this layer itself, past an adapter, so that PEFT refuses it.
    unseen = {"out_proj"} if model.config.model_type in _MAMBA else set()
    meant: dict[str, bool] = {}  # by path
    for name, module in model.named_modules():
        # Linear, Linear4bit and Linear8bitLt; a subclass with another forward is no matrix product that can be adapted,
        # but for Falcon's, which only rounds otherwise.
        linear = isinstance(module, Conv1D) or type(module).__name__.startswith(("Linear", "FalconLinear"))
        wanted = (linear and module is not output) or (embeddings and module is embedding)
        meant[name] = wanted and name.rsplit(".", 1)[-1] not in unseen
    leaves = {name: name.rsplit(".", 1)[-1] for name in meant}
    others = {leaves[name] for name, wanted in meant.items() if not wanted}
    return sorted({name if leaves[name] in others else leaves[name] for name, wanted in meant.items() if wanted})
