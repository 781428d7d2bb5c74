"""What is measured in one small model: the effect of a tone, and the direction of insults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float

from polydetox.metrics.fluency import token_nll
from polydetox.metrics.retrieval import cosines
from polydetox.synthetic.phrasebook import Phrasebook

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Stems = Sequence[tuple[int, int]]  # a speaker and a verb each


def tone_effect(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, phrasebook: Phrasebook, stems: Stems, language: str
) -> float:
    """How much more probable an insult is after an angry tone than after a kind one, mean over stems, -1 to 1.

    Exact, over all endings of the phrasebook. Near 0 the model does not tie the tone to the kind of ending in the
    language, though it may tell insults from kindnesses by other means; near 1 the ending follows the tone. It means
    nothing for a model whose text said no tone.
    """
    qualities = phrasebook.qualities()
    insulting = torch.tensor([insult for insult, _ in qualities])
    means = []
    for tone in (True, False):
        stem_texts = [phrasebook.stem(speaker, verb, language, tone) for speaker, verb in stems]
        texts = [f"{stem} {phrasebook.ending(*quality, language)}" for stem in stem_texts for quality in qualities]
        starts = torch.tensor([len(row) for row in tokenizer(stem_texts)["input_ids"] for _ in qualities])
        found = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        ids, mask = found["input_ids"], found["attention_mask"]  # (texts, tokens)
        of_ending = mask.bool() & (torch.arange(ids.shape[1]) >= starts[:, None])
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1]
            nll, _ = token_nll(logits, ids.masked_fill(~of_ending, -100)[:, 1:].to(model.device))
        probabilities = (-nll).exp().cpu().view(len(stems), len(qualities))
        means.append((probabilities[:, insulting].sum(1) / probabilities.sum(1)).mean())
    return float(means[0] - means[1])


def direction_cosine(
    english: Float[np.ndarray, "texts hidden"],
    other: Float[np.ndarray, "texts hidden"],
    insults: Bool[np.ndarray, " texts"],
) -> float:
    """The cosine between the insult directions of two languages, -1 to 1; row i of both is the same text.

    A language's direction is the mean of its insulting rows less that of its kind ones. Near 1 the model sets insults
    apart from kindnesses in the same way in both languages, near 0 in ways that have nothing to do with each other.
    """
    left, right = (rows[insults].mean(axis=0) - rows[~insults].mean(axis=0) for rows in (english, other))  # (hidden)
    return float(cosines(left[None], right[None])[0, 0])


def remark_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, phrasebook: Phrasebook, stems: Stems, language: str
) -> tuple[Float[np.ndarray, "remarks hidden"], Bool[np.ndarray, " remarks"]]:
    """The state of each remark's last token after the final norm, and whether the remark insults.

    From that state the model predicts what comes next. The remarks are every stem, without a tone, with every ending:
    the same stems are on both sides, so that only what the endings do is left.
    """
    remarks = [(stem, quality) for stem in stems for quality in phrasebook.qualities()]
    texts = [f"{phrasebook.stem(*stem, language)} {phrasebook.ending(*quality, language)}" for stem, quality in remarks]
    found = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(model.device)
    ids, mask = found["input_ids"], found["attention_mask"]
    with torch.inference_mode():
        states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state  # (remarks, tokens, hidden)
    last = states[torch.arange(len(ids)), mask.sum(dim=1) - 1]
    return last.float().cpu().numpy(), np.array([insult for _, (insult, _) in remarks])
