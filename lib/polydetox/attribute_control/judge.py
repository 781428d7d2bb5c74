"""Win rates under a judge model: which of two continuations of a prompt is better (Zheng et al. 2023).

A judge prefers what stands first, or second, whatever it is. Each pair is therefore put to it in both orders, and
counted by two rules. By the strict one a preference counts only where both verdicts name the same continuation;
anything else is a tie, half a win for each. A weak judge, for which the place outweighs the text, says nothing by that
rule; by the other one the log-odds of both orders are averaged, so that what a place is worth cancels, and their sign
decides (Wang et al. 2024).
The verdict is read off the log-probabilities of its two names after the question, which needs no parsing and works for
a small base model as well: a Hub id, a local checkpoint, or the project's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from polydetox.core.errors import UserError
from polydetox.metrics.fluency import common_prefix, padded
from polydetox.models.texts import context_length, encode_prompts
from polydetox.stats.bootstrap import bootstrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def outcomes(
    forward: Float[np.ndarray, " pairs"], backward: Float[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """What the first of each two gets: 1.0 for a win, 0.5 for a tie, 0.0 for a loss.

    ``forward`` is the log-odds for what stands first with our text first, ``backward`` the same with our text second.
    Our text wins where both orders prefer it (``forward > 0`` and ``backward < 0``) and loses where both prefer the
    other; a preference that turns with the order, or none, is a tie.
    """
    win = (forward > 0) & (backward < 0)
    loss = (forward < 0) & (backward > 0)
    return np.where(win, 1.0, np.where(loss, 0.0, 0.5))


def averaged_outcomes(
    forward: Float[np.ndarray, " pairs"], backward: Float[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """The same as :func:`outcomes` by the mean of both orders: the sign of ``forward - backward``.

    With log-odds ``b + d`` in one order and ``b - d`` in the other, b for what a place is worth and d for the texts,
    the difference is 2 d. Only an exact balance is a tie.
    """
    return (np.sign(forward - backward) + 1.0) / 2.0


def position_bias(forward: Float[np.ndarray, " pairs"], backward: Float[np.ndarray, " pairs"]) -> float:
    """The fraction of all verdicts that prefer what stands first: 0.5 for a judge that order does not sway."""
    verdicts = np.concatenate([forward, backward])
    return float(np.where(verdicts > 0, 1.0, np.where(verdicts < 0, 0.0, 0.5)).mean())


def win_rate(
    outcome: Float[np.ndarray, " pairs"],
    cluster: Int[np.ndarray, " pairs"],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float | None]:
    """The mean outcome over prompts, each prompt's pairs averaged first, with its bootstrap interval over prompts.

    ``cluster`` numbers the prompt of each pair. Also the fractions of ``wins``, ``ties`` and ``losses`` among pairs.
    """
    means = np.array([outcome[cluster == number].mean() for number in np.unique(cluster)])
    fractions: dict[str, float | None] = {
        name: float((outcome == value).mean()) if len(outcome) else None
        for name, value in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))
    }
    return {**bootstrap(means, samples=samples, confidence=confidence, seed=seed), **fractions, "pairs": len(outcome)}


def verdict_tokens(
    tokenizer: PreTrainedTokenizerBase, question: str, names: tuple[str, str]
) -> tuple[list[int], int, int]:
    """What two verdicts have in common after the end of a question, and the token in which each first differs.

    Some tokenizers write a space as a token of its own; what is common to both leaves their odds as they are.
    """
    stem = question[-12:]
    before = tokenizer(stem)["input_ids"]
    first, second = (tokenizer(stem + name)["input_ids"] for name in names)
    shared = common_prefix(first, second)
    if shared < len(before) or first[: len(before)] != before or shared == min(len(first), len(second)):
        raise UserError(
            f"this model's tokenizer does not tell {names[0]!r} and {names[1]!r} apart; choose another model"
        )
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


def win_rates(pairs: pd.DataFrame, rule: Rule = outcomes, **options: Any) -> list[dict[str, Any]]:
    """The win rate of every method against every other one, both ways, with intervals.

    ``rule`` makes outcomes of the log-odds of both orders: :func:`outcomes` or :func:`averaged_outcomes`.
    """
    found = []
    for (method, opponent), rows in pairs.groupby(["method", "opponent"], sort=False):
        cluster = pd.factorize(rows["prompt_id"])[0]
        outcome = rule(rows["forward"].to_numpy(dtype=float), rows["backward"].to_numpy(dtype=float))
        for name, other, values in ((method, opponent, outcome), (opponent, method, 1.0 - outcome)):
            found.append({"method": name, "opponent": other, **win_rate(values, cluster, **options)})
    return found
