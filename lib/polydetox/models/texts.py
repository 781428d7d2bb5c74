"""Texts as a causal language model reads them: open at the end, and no longer than its positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydetox.core.errors import UserError
from polydetox.models.checkpoints import load_tokenizer
from polydetox.models.tokenizers import affixes

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase


def context_length(configuration: PreTrainedConfig) -> int | None:
    """How many tokens a model can read at once; None where it states no limit (ALiBi, recurrent states)."""
    text = configuration.get_text_config(decoder=True)
    if getattr(text, "alibi", False):
        return None
    limit = getattr(text, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def context_length_of(weights: Path) -> int | None:
    """The same of a checkpoint."""
    from transformers import AutoConfig

    return context_length(AutoConfig.from_pretrained(weights))


def last_tokens(ids: list[int], room: int | None, opening: int) -> list[int]:
    """The special tokens that open a text and its last tokens, ``room`` in all: what a model continues."""
    if room is None or len(ids) <= room:
        return ids
    return [*ids[:opening], *ids[len(ids) - (room - opening) :]]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], limit: int | None = None, new_tokens: int = 0
) -> list[list[int]]:
    """The token ids of prompts that ``new_tokens`` are to follow.

    Of a prompt that leaves no room for them among ``limit`` positions, the last tokens are kept: :func:`shortened`
    says which.
    """
    if not prompts:
        return []
    opening, _ = affixes(tokenizer)
    room = None if limit is None else limit - new_tokens
    if room is not None and room <= opening:
        raise UserError(
            f"{new_tokens} new tokens leave no room for a prompt in a model of {limit} positions; lower max_new_tokens"
        )
    return [last_tokens(ids, room, opening) for ids in tokenizer(list(prompts))["input_ids"]]


def left_padded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]]) -> BatchEncoding:
    """Rows of token ids as tensors ``input_ids`` and ``attention_mask``, padded on the left."""
    return tokenizer.pad({"input_ids": list(rows)}, padding_side="left", return_tensors="pt")


@dataclass
class Shortened:
    """Texts of more tokens than a model can read, which it was given in part; for a manifest, as ``Skipped`` is."""

    positions: int | None = None
    kept: str = "last"  # tokens of a text
    texts: list[str] = field(default_factory=list)  # their ids

    def __add__(self, other: Shortened) -> Shortened:
        return Shortened(self.positions or other.positions, self.kept, list(dict.fromkeys(self.texts + other.texts)))

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __str__(self) -> str:
        more = f" and {len(self.texts) - 5} more" if len(self.texts) > 5 else ""
        return (f"{len(self.texts)} texts have more tokens than the model's {self.positions} positions; it reads the "
                f"{self.kept} ones ({', '.join(self.texts[:5])}{more})")  # fmt: skip

    def record(self) -> dict[str, Any]:
        """For a manifest."""
        return {"positions": self.positions, "kept": self.kept, "texts": len(self.texts), "ids": self.texts[:100]}


def shortened(
    weights: Path | str, ids: Sequence[Any], texts: Sequence[str], new_tokens: int = 0, kept: str = "last",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Shortened:  # fmt: skip
    """Which of some texts a checkpoint reads in part, if ``new_tokens`` are to follow each.

    ``tokenizer`` is the one that it reads them with, where that is not the checkpoint's as it was saved.
    """
    from transformers import AutoConfig

    configuration = AutoConfig.from_pretrained(weights)
    limit = context_length(configuration)
    # A tokenizer is slow to load, and a token has at least one byte of the normalised text, which has at most twelve
    # times as many as the text itself (U+FDFA under NFKC is 11 times as long).
    longest = max((len(text.encode()) for text in texts), default=0)
    if limit is None or 12 * longest + new_tokens + 16 <= limit:
        return Shortened(limit, kept)
    if tokenizer is None:
        tokenizer = load_tokenizer(Path(weights), closing=configuration.is_encoder_decoder)
    rows = tokenizer(list(texts))["input_ids"]
    long = (str(name) for name, row in zip(ids, rows, strict=True) if len(row) + new_tokens > limit)
    return Shortened(limit, kept, list(dict.fromkeys(long)))
