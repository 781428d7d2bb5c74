"""Texts as rows of tokens, of which the first are given and the rest are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from polydetox.training.shared import LengthBuckets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def with_end(rows: Sequence[Row], truncated: Sequence[bool], end: int, max_length: int) -> list[Row]:
    """Samples that ended by themselves with the end-of-sequence token, which belongs to what was drawn.

    The oracle's verdict on such a text is R of that token; a head that never met it would guess whether to end.
    ``truncated`` says by ``row`` which samples the limit of new tokens cut off.
    """
    return [
        row if truncated[row.row] or len(row.ids) >= max_length else row._replace(ids=[*row.ids, end]) for row in rows
    ]


def collate(batch: Sequence[Row], padding: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right: ``input_ids, attention_mask`` (rows, tokens), ``start, label, row`` (rows,)."""
    length = max(len(row.ids) for row in batch)
    ids = torch.full((len(batch), length), padding)
    mask = torch.zeros(len(batch), length, dtype=torch.long)
    for place, row in enumerate(batch):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        mask[place, : len(row.ids)] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "start": torch.tensor([row.start for row in batch]),
        "label": torch.tensor([row.label for row in batch]),
        "row": torch.tensor([row.row for row in batch]),
    }


def learnt(inputs: dict[str, Any]) -> torch.Tensor:
    """Which positions predict a token that is learnt (rows, tokens - 1): those from the last given token on."""
    place = torch.arange(1, inputs["input_ids"].shape[1], device=inputs["input_ids"].device)
    return (place >= inputs["start"].unsqueeze(-1)) & (inputs["attention_mask"][:, 1:] == 1)


def batches_of(rows: Sequence[Row], batch_size: int, seed: int, first: int, count: int) -> list[Row]:
    """The rows of ``count`` batches of an endless stream of epochs, from batch ``first`` on.

    Rows that share a batch have about the same length. A batch that an epoch does not fill is left out of it, unless
    there is no other, so that the place in the stream depends on the number of a batch alone.
    """
    size = min(batch_size, len(rows))
    in_an_epoch = len(rows) // size
    sampler = LengthBuckets([len(row.ids) for row in rows], size, seed)
    orders: dict[int, list[int]] = {}
    chosen = []
    for batch in range(first, first + count):
        epoch, place = divmod(batch, in_an_epoch)
        if epoch not in orders:
            sampler.set_epoch(epoch)
            orders[epoch] = list(sampler)
        chosen += [rows[number] for number in orders[epoch][place * size : (place + 1) * size]]
    return chosen
