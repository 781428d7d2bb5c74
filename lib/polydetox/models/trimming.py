"""Trim a multilingual vocabulary to some tokens (``trim.ipynb``): which must stay, and the checkpoint without the rest.

The kept tokens are closed under the merges of the byte-pair encoding: with each token, every token on the way to
it. A text whose tokens are all kept is then tokenised exactly as before, since its merges are all still there and
no new ones are; any other text falls back on shorter tokens and at last on bytes, which always stay.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydetox.core.errors import UserError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNUSED = re.compile(r"<unused\d+>|\[unused\d+\]|<reserved_\d+>")


def derivation(token: str, vocabulary: Mapping[str, int], ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Every token on the way from single characters to ``token``, itself included, as a byte-pair encoding merges."""
    pieces = list(token)
    seen = {piece for piece in pieces if piece in vocabulary}
    while len(pieces) > 1:
        pairs = enumerate(itertools.pairwise(pieces))
        candidates = [(ranks[pair], position) for position, pair in pairs if pair in ranks]
        if not candidates:
            break
        _, position = min(candidates)
        pieces[position : position + 2] = [pieces[position] + pieces[position + 1]]
        seen.add(pieces[position])
    return seen


def tokens_to_keep(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], also: Iterable[int] = ()) -> list[int]:
    """The ids of the tokens that ``texts`` use and of ``also``, closed under the merges, in ascending order.

    Always kept: bytes, special and added tokens except the numbered unused ones, and every token of one character
    that ``texts`` or ASCII contain.
    """
    specification = _specification(tokenizer)
    vocabulary = specification["model"]["vocab"]
    names = {identifier: token for token, identifier in vocabulary.items()}
    ranks = {pair: rank for rank, pair in enumerate(_merges(specification))}
    texts = list(dict.fromkeys(texts))

    keep: set[int] = {identifier for token, identifier in vocabulary.items() if _BYTE.fullmatch(token)}
    added = {entry["id"]: entry["content"] for entry in specification["added_tokens"]}
    keep |= {identifier for identifier, content in added.items() if not _UNUSED.fullmatch(content)}
    keep |= set(tokenizer.all_special_ids)
    characters = set("".join(texts)) | {chr(code) for code in range(32, 127)} | {"▁", "\n", "\t"}
    keep |= {vocabulary[character] for character in characters if character in vocabulary}

    # A model may have more rows than its tokenizer has tokens.
    used: set[int] = set(also) & (names.keys() | added.keys())
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        used.update(encoding.ids)
    for identifier in used - set(added):
        keep |= {vocabulary[piece] for piece in derivation(names[identifier], vocabulary, ranks)}
    return sorted(keep | used)


def _specification(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The serialised fast tokenizer; only byte-pair encodings over characters can be trimmed."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("vocabulary trimming needs a fast tokenizer; remove 'trim:' from the profile")
    specification: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = specification["model"]
    if model["type"] != "BPE" or not model.get("byte_fallback"):
        raise UserError(
            "vocabulary trimming knows byte-pair encodings with byte fallback (Gemma, Llama 2, ...), and this "
            f"tokenizer is {model['type']}{'' if model.get('byte_fallback') else ' without byte fallback'}; remove "
            "'trim:' from the profile"
        )
    return specification


def _merges(specification: dict[str, Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files write them as one string with a space."""
    merges = specification["model"]["merges"]
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges]


def trim_tokenizer(tokenizer: PreTrainedTokenizerBase, keep: Sequence[int]) -> PreTrainedTokenizerBase:
    """A tokenizer of the kept tokens, renumbered in their old order."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    specification = _specification(tokenizer)
    new = {old: position for position, old in enumerate(keep)}
    model = specification["model"]
    vocabulary = {token: new[identifier] for token, identifier in model["vocab"].items() if identifier in new}
    model["merges"] = [list(pair) for pair in _merges(specification)
                       if pair[0] in vocabulary and pair[1] in vocabulary and "".join(pair) in vocabulary]  # fmt: skip
    model["vocab"] = vocabulary
    added = specification["added_tokens"]
    specification["added_tokens"] = [entry | {"id": new[entry["id"]]} for entry in added if entry["id"] in new]
    for special in ((specification.get("post_processor") or {}).get("special_tokens") or {}).values():
        special["ids"] = [new[identifier] for identifier in special["ids"]]
    special_tokens = tokenizer.special_tokens_map
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(specification, ensure_ascii=False)),
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **{name: token for name, token in special_tokens.items() if name != "additional_special_tokens"},
    )


def trim_model(model: PreTrainedModel, keep: Sequence[int]) -> PreTrainedModel:
    """Keep the given rows of the embedding and of the output layer, in place, and renumber the special tokens."""
    rows = torch.tensor(keep)
    new = {old: position for position, old in enumerate(keep)}
    # Of a module's attributes torch only says that they are tensors or modules.
    embedding: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    tied = output is not None and output.weight is embedding.weight
    # Only the weight is replaced: some families scale their embedding in a class of their own.
    embedding.weight = torch.nn.Parameter(embedding.weight.detach()[rows].clone())  # (kept, d_model)
    embedding.num_embeddings = len(keep)
    if embedding.padding_idx is not None:
        embedding.padding_idx = new.get(embedding.padding_idx)
    if output is not None:
        output.weight = embedding.weight if tied else torch.nn.Parameter(output.weight.detach()[rows].clone())
        output.out_features = len(keep)
        if output.bias is not None:
            output.bias = torch.nn.Parameter(output.bias.detach()[rows].clone())
    configuration = model.config.get_text_config()
    configuration.vocab_size = len(keep)
    for settings in (configuration, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(settings, name, None)
            if isinstance(value, list):
                setattr(settings, name, [new[item] for item in value if item in new])
            elif value is not None:
                setattr(settings, name, new.get(value))
    return model
