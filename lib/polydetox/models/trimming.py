"""Trim a multilingual vocabulary to the languages in use.

A small multilingual model is mostly its embedding: of Gemma 3 270M's weights, 168 of 268 million are the rows of
262,144 tokens. Keeping the rows that 17 languages use makes training and sampling several times cheaper and leaves
every kept token's logit as it was (the softmax is then over the kept tokens only).

The kept tokens are closed under the merges of the byte-pair encoding: with each token, every token on the way to
it. A text whose tokens are all kept is then tokenised exactly as before, since its merges are all still there and
no new ones are; any other text falls back on shorter tokens and at last on bytes, which always stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydetox.core.artifacts import atomic_folder
from polydetox.core.errors import UserError
from polydetox.core.languages import UNSPACED
from polydetox.models.texts import context_length

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNUSED = re.compile(r"<unused\d+>|\[unused\d+\]|<reserved_\d+>")


def frequent_texts(language: str, words: int) -> list[str]:
    """The most frequent words of a language as they stand in a text: after a space and at a start, also capitalised."""
    from wordfreq import top_n_list

    texts = []
    for word in top_n_list(language, words):
        for form in dict.fromkeys((word, word.capitalize())):
            texts.append(form)
            if language not in UNSPACED:
                texts.append(f" {form}")
    return texts


class MergeTable:
    """The merges of a byte-pair encoding, applied the way the tokenizer applies them."""

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]):
        self.vocabulary = vocabulary
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}

    def derivation(self, token: str) -> set[str]:
        """Every token on the way from single characters to ``token``, itself included."""
        pieces = list(token)
        seen = {piece for piece in pieces if piece in self.vocabulary}
        while len(pieces) > 1:
            candidates = [
                (rank, position)
                for position in range(len(pieces) - 1)
                if (rank := self.ranks.get((pieces[position], pieces[position + 1]))) is not None
            ]
            if not candidates:
                break
            _, position = min(candidates)
            pieces[position : position + 2] = [pieces[position] + pieces[position + 1]]
            seen.add(pieces[position])
        return seen


def expected_probability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: dict[str, list[str]]
) -> Float[torch.Tensor, " vocabulary"]:
    """How much the model expects each token on texts of these languages, every language with the same weight.

    The next-token distribution, averaged over the positions of a language's texts and then over languages.
    """
    languages = []
    for language in texts:
        total = torch.zeros(model.config.get_text_config().vocab_size)
        for logits in next_token_logits(model, tokenizer, texts[language]):
            total += logits.softmax(dim=-1).sum(dim=0)
        languages.append(total / total.sum())
    return torch.stack(languages).mean(dim=0)


# Texts a forward pass: over a full vocabulary, logits are large.
_BATCH = 16


def next_token_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Iterator[Float[torch.Tensor, "positions vocabulary"]]:
    """The logits at every position of the texts, a batch of texts at a time."""
    with torch.inference_mode():
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            ids = [ids[: context_length(model.config)] for ids in tokenizer(batch)["input_ids"]]
            inputs = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt").to(model.device)
            logits = model(**inputs).logits  # (texts, positions, vocabulary)
            counted = inputs["attention_mask"].bool()
            if int(counted.sum(dim=-1).min()) > 1:
                counted[:, 0] = False  # nobody samples a text from its beginning-of-sequence token alone
            yield logits[counted].float().cpu()


def tokens_to_keep(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], also: Iterable[int] = ()) -> list[int]:
    """The ids of the tokens that ``texts`` use and of ``also``, closed under the merges, in ascending order.

    Always kept: bytes, special and added tokens except the numbered unused ones, and every token of one character
    that ``texts`` or ASCII contain.
    """
    specification = _specification(tokenizer)
    vocabulary = specification["model"]["vocab"]
    names = {identifier: token for token, identifier in vocabulary.items()}
    table = MergeTable(vocabulary, _merges(specification))
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
        keep |= {vocabulary[piece] for piece in table.derivation(names[identifier])}
    return sorted(keep | used)


def _specification(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The serialised fast tokenizer; only byte-pair encodings over characters can be trimmed."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("vocabulary trimming needs a fast tokenizer; remove 'trim:' from the profile")
    specification = json.loads(tokenizer.backend_tokenizer.to_str())
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
    return [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else (merge[0], merge[1])  # type: ignore[misc]
        for merge in specification["model"]["merges"]
    ]


def trim_tokenizer(tokenizer: PreTrainedTokenizerBase, keep: Sequence[int]) -> PreTrainedTokenizerBase:
    """A tokenizer of the kept tokens, numbered anew in their old order."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    specification = _specification(tokenizer)
    new = {old: position for position, old in enumerate(keep)}
    model = specification["model"]
    vocabulary = {token: new[identifier] for token, identifier in model["vocab"].items() if identifier in new}
    model["merges"] = [
        list(pair)
        for pair in _merges(specification)
        if pair[0] in vocabulary and pair[1] in vocabulary and "".join(pair) in vocabulary
    ]
    model["vocab"] = vocabulary
    specification["added_tokens"] = [
        {**entry, "id": new[entry["id"]]} for entry in specification["added_tokens"] if entry["id"] in new
    ]
    for special in ((specification.get("post_processor") or {}).get("special_tokens") or {}).values():
        special["ids"] = [new[identifier] for identifier in special["ids"]]
    special_tokens = {
        name: token for name, token in tokenizer.special_tokens_map.items() if name != "additional_special_tokens"
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(specification, ensure_ascii=False)),
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **special_tokens,
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


def kept_probability(
    logits: Float[torch.Tensor, "positions vocabulary"], keep: Int[torch.Tensor, " kept"]
) -> Float[torch.Tensor, " positions"]:
    """The share of the next-token probability that falls on the kept tokens, for each position."""
    logits = logits.float()
    return torch.exp(torch.logsumexp(logits[:, keep], dim=-1) - torch.logsumexp(logits, dim=-1))


def mean_kept_probability(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: dict[str, list[str]],
    keep: Int[torch.Tensor, " kept"],
) -> pd.Series:
    """The mean share of next-token probability on the kept tokens, for each language over its texts' positions."""
    shares = {}
    for language in texts:
        logits = next_token_logits(model, tokenizer, texts[language])
        shares[language] = _mean(kept_probability(row, keep) for row in logits)
    return pd.Series(shares)


def _mean(parts: Iterable[Float[torch.Tensor, " positions"]]) -> float:
    """The mean over the positions of all parts together."""
    total, count = 0.0, 0
    for part in parts:
        total += float(part.double().sum())
        count += len(part)
    return total / count


def save_trimmed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keep: Sequence[int], folder: Path
) -> PreTrainedTokenizerBase:
    """Write a normal checkpoint with the kept tokens only. ``model`` is trimmed in place; returns its tokenizer."""
    trimmed = trim_tokenizer(tokenizer, keep)
    trim_model(model, keep)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        trimmed.save_pretrained(temporary)
    return trimmed
