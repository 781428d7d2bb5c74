"""The special tokens that a tokenizer writes before and after a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from polydetox.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens a tokenizer writes before and after each text."""
    plain, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    for before in range(len(whole) - len(plain) + 1):
        if whole[before : before + len(plain)] == plain:
            return before, len(whole) - before - len(plain)
    raise UserError(f"{tokenizer.name_or_path}: which special tokens its tokenizer adds to a text cannot be seen")


def leave_open(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer write no special token after a text; those before it (BOS) stay as they are.

    Some are saved so that every text ends with EOS. What a model writes after that has nothing to do with the text.
    """
    if not affixes(tokenizer)[1]:
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Post-processors have no attributes; their pickled state is the JSON of tokenizer.json.
        processor = backend.post_processor
        processor.__setstate__(json.dumps(_open(json.loads(processor.__getstate__()))).encode())
        backend.post_processor = processor
    if affixes(tokenizer)[1]:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer ends every text with a special token, after which a model does "
            "not continue the text; save it without (add_eos_token=False)"
        )


def open_with_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer that has a BOS token put it in front of every text, as the paper's code had it."""
    from tokenizers.processors import Sequence, TemplateProcessing

    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] == [bos]:
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{tokenizer.name_or_path}: its kind of tokenizer takes no template; set 'bos: tokenizer'")
    opening = TemplateProcessing(single=[tokenizer.bos_token, "$A"], special_tokens=[(tokenizer.bos_token, bos)])
    backend.post_processor = Sequence([*filter(None, [backend.post_processor]), opening])


def _open(processor: dict[str, Any]) -> dict[str, Any]:
    """A post-processor, as in tokenizer.json, without the special tokens after the last text."""
    if processor["type"] == "Sequence":
        return processor | {"processors": [_open(part) for part in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        opened = dict(processor)
        for name in ("single", "pair"):
            last = max(place for place, part in enumerate(processor[name]) if "Sequence" in part)
            opened[name] = processor[name][: last + 1]
        return opened
    return processor
