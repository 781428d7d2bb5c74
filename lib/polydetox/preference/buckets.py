"""Batches of rows of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

# So many batches are drawn at random, then sorted by length among themselves.
_BATCHES_SORTED = 8


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
