"""How algorithms of attribute control are measured: toxicity of their continuations, and verdicts of a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from polydetox.core.errors import UserError
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.models.texts import context_length, encode_prompts
from polydetox.stats.bootstrap import bootstrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCORE_COLUMNS = [
    "language", "prompt_id", "sample", "prompt", "continuation", "toxicity", "detected_language", "repeated", "empty",
]  # fmt: skip


def toxicity_by_language(scores: pd.DataFrame, threshold: float, **options: Any) -> dict[str, dict[str, Any]]:
    """Each measure of each language with its bootstrap interval over prompts."""
    return {
        str(language): {
            "prompts": rows["prompt_id"].nunique(),
            "continuations": len(rows),
            "scored": int(rows["toxicity"].notna().sum()),
            **{name: bootstrap(values.dropna().to_numpy(), **options)
               for name, values in prompt_toxicity(rows, "toxicity", threshold).items()},
        }
        for language, rows in scores.groupby("language", sort=False)
    }  # fmt: skip


def verdict_tokens(
    tokenizer: PreTrainedTokenizerBase, question: str, names: tuple[str, str]
) -> tuple[list[int], int, int]:
    """What two verdicts have in common after the end of a question, and the token in which each first differs.

    Some tokenizers write a space as a token of its own; what is common to both leaves their odds as they are.
    """
    from polydetox.metrics.fluency import common_prefix

    stem = question[-12:]
    before = tokenizer(stem)["input_ids"]
    first, second = (tokenizer(stem + name)["input_ids"] for name in names)
    shared = common_prefix(first, second)
    if shared < len(before) or first[: len(before)] != before or shared == min(len(first), len(second)):
        raise UserError(f"this model's tokenizer does not tell {names[0]!r} and {names[1]!r} apart; choose another")
    return first[len(before) : shared], first[shared], second[shared]


def verdict_log_odds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    names: tuple[str, str],
    batch_size: int,
) -> Float[np.ndarray, " questions"]:
    """log P(first name) - log P(second name) after each question, by the token in which they differ."""
    import torch

    from polydetox.metrics.fluency import padded

    if not questions:
        return np.empty(0)
    shared, left, right = verdict_tokens(tokenizer, questions[0], names)
    # Of a question that is longer than the model's positions the end is asked, which says what is wanted.
    asked = encode_prompts(tokenizer, questions, context_length(model.config), len(shared))
    rows = [ids + shared for ids in asked]
    result = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda position: len(rows[position]))  # so that little is padded
    with torch.inference_mode():
        for start in tqdm(range(0, len(order), batch_size), desc="verdicts", unit="batch"):
            chunk = order[start : start + batch_size]
            ids = padded([rows[position] for position in chunk], -1).to(model.device)  # (rows, tokens)
            mask = (ids != -1).long()
            logits = model(input_ids=ids.clamp(min=0), attention_mask=mask).logits
            last = logits[torch.arange(len(chunk)), mask.sum(dim=1) - 1].float()  # (rows, vocabulary)
            result[chunk] = (last[:, left] - last[:, right]).cpu().numpy()
    return result
