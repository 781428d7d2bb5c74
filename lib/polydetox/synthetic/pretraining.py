"""Words as tokens, rows of documents, and what a stopped pretraining continues from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from polydetox.core.artifacts import atomic_path
from polydetox.synthetic.phrasebook import Phrasebook

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EQUALS = "="  # between a text and its translation
MIXED = "&"  # before a text of two languages: without it a text keeps to its own
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]


def make_tokenizer(phrasebook: Phrasebook, languages: Sequence[str]) -> PreTrainedTokenizerFast:
    """A vocabulary of whole words, with a beginning-of-sequence token before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = sorted(set().union(*(phrasebook.words[language] for language in languages)) | {EQUALS, MIXED})
    vocabulary = {word: number for number, word in enumerate([*SPECIALS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def packed(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], block: int) -> Int[np.ndarray, "rows block"]:
    """Documents one after the other, each with its end, cut into rows of ``block`` tokens."""
    ids = tokenizer(list(texts))["input_ids"]
    stream = np.concatenate([[*row, tokenizer.eos_token_id] for row in ids])
    rows = len(stream) // block
    return stream[: rows * block].reshape(rows, block)


class TrainingState:
    """The losses of a training so far, with all that a stopped one continues from, in one file.

    ``parts`` are the model, the optimizer and the schedule; a file of another ``key`` is not read.
    """

    def __init__(self, file: Path, key: str, **parts: Any):
        import torch

        self.file, self.key, self.parts = file, key, parts
        self.losses: list[float] = []
        stored: dict[str, Any] = torch.load(file, weights_only=True) if file.is_file() else {"key": None}
        if stored["key"] == key:
            self.losses = stored["losses"]
            for name, part in parts.items():
                part.load_state_dict(stored[name])

    def save(self) -> None:
        """Write the file, in place of the one before."""
        import torch

        states = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_path(self.file) as temporary:
            torch.save({"key": self.key, "losses": self.losses, **states}, temporary)
