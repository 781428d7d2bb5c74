"""How algorithms of attribute control are measured: their continuations, held-out text, and win rates under a judge.

A judge prefers what stands first, or second, whatever it is. Each pair of texts is therefore put to it in both orders,
and counted by two rules: a preference that turns with the order is a tie (Zheng et al. 2023), or the log-odds of both
orders are averaged, so that what a place is worth cancels (Wang et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from polydetox.core.errors import UserError
from polydetox.metrics.evaluate import mean_by_prompt
from polydetox.metrics.language import language_rate
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.models.texts import context_length, encode_prompts
from polydetox.stats.bootstrap import Interval, bootstrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCORE_COLUMNS = [
    "language", "prompt_id", "sample", "prompt", "continuation", "toxicity", "detected_language", "repeated", "empty",
]  # fmt: skip

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


# --- continuations and held-out text ----------------------------------------------------------------------------


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


def form_by_language(scores: pd.DataFrame, **options: Any) -> dict[str, dict[str, Any]]:
    """Whether the continuations of each language are still text of it, with bootstrap intervals over prompts.

    A model can look harmless because its text leaves the prompt's language or repeats itself: ``language_rate`` is
    the fraction of continuations in the prompt's language, of those whose language is detected, and ``repeated`` the
    mean fraction of a continuation's words that repeat an earlier one.
    """
    return {
        str(language): {
            "language_rate": bootstrap(language_rate(rows, str(language)).dropna().to_numpy(), **options),
            "repeated": bootstrap(mean_by_prompt(rows, "repeated").dropna().to_numpy(), **options),
        }
        for language, rows in scores.groupby("language", sort=False)
    }


def corpus_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: pd.DataFrame,
    *,
    max_length: int,
    batch_size: int,
) -> pd.DataFrame:
    """The negative log-likelihood (nats) of what follows the prompt of each row: ``row, domain, nll, tokens``.

    Rows are cut at ``max_length`` tokens; one that has no token after its prompt within them is skipped.
    """
    # These load torch, which the report does not need.
    import torch

    from polydetox.attribute_control.training import collate, encode, learnt
    from polydetox.metrics.fluency import token_nll

    rows = encode(tokenizer, corpus["prompt"], corpus["text"], [0.0] * len(corpus), max_length)
    rows.sort(key=lambda row: len(row.ids))  # so that little is padded
    found: list[tuple[int, float, int]] = []  # row, negative log-likelihood and tokens
    with torch.inference_mode():
        for begin in tqdm(range(0, len(rows), batch_size), desc="held-out text", unit="batch"):
            batch = rows[begin : begin + batch_size]
            inputs = {name: value.to(model.device) for name, value in collate(batch, 0).items()}
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            targets = inputs["input_ids"][:, 1:].masked_fill(~learnt(inputs), -100)
            nll, tokens = token_nll(logits[:, :-1], targets)
            found += zip((row.row for row in batch), nll.tolist(), tokens.tolist(), strict=True)
    losses = pd.DataFrame(found, columns=["position", "nll", "tokens"]).sort_values("position")
    known = corpus.iloc[losses["position"]][["row", "domain"]].reset_index(drop=True)
    return known.assign(nll=losses["nll"].to_numpy(), tokens=losses["tokens"].to_numpy())


def perplexity(nll: Float[np.ndarray, " rows"], tokens: Float[np.ndarray, " rows"], **options: Any) -> Interval:
    """exp of the total loss over the total number of tokens, its interval from a bootstrap over rows."""
    return bootstrap(
        nll, tokens, statistic=lambda losses, counts: np.exp(losses.sum(axis=-1) / counts.sum(axis=-1)), **options
    )


def perplexity_by_domain(losses: pd.DataFrame, **options: Any) -> dict[str, Interval]:
    """The perplexity of the toxic and of the neutral half."""
    return {
        str(domain): perplexity(rows["nll"].to_numpy(), rows["tokens"].to_numpy(dtype=float), **options)
        for domain, rows in losses.groupby("domain", sort=False)
    }


# --- win rates --------------------------------------------------------------------------------------------------


def outcomes(
    forward: Float[np.ndarray, " pairs"], backward: Float[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """What the first of each two gets: 1.0 where both orders prefer it, 0.0 where both prefer the other, else 0.5.

    ``forward`` is the log-odds for what stands first with our text first, ``backward`` the same with our text second.
    """
    return np.where((forward > 0) & (backward < 0), 1.0, np.where((forward < 0) & (backward > 0), 0.0, 0.5))


def averaged_outcomes(
    forward: Float[np.ndarray, " pairs"], backward: Float[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """The same as :func:`outcomes` by the mean of both orders: the sign of ``forward - backward``.

    With log-odds b + d and b - d, b for what a place is worth and d for the texts, that is 2 d.
    """
    return (np.sign(forward - backward) + 1.0) / 2.0


def position_bias(forward: Float[np.ndarray, " pairs"], backward: Float[np.ndarray, " pairs"]) -> float:
    """The fraction of all verdicts that prefer what stands first: 0.5 for a judge that order does not sway."""
    verdicts = np.concatenate([forward, backward])
    return float(np.where(verdicts > 0, 1.0, np.where(verdicts < 0, 0.0, 0.5)).mean())


def win_rate(outcome: Float[np.ndarray, " pairs"], cluster: Int[np.ndarray, " pairs"], **options: Any) -> Interval:
    """The mean outcome over prompts, each prompt's pairs averaged first, with its bootstrap interval over prompts.

    ``cluster`` numbers the prompt of each pair. Also the fractions of ``wins``, ``ties`` and ``losses`` among pairs.
    """
    means = np.array([outcome[cluster == number].mean() for number in np.unique(cluster)])
    fractions: dict[str, float | None] = {
        name: float((outcome == value).mean()) if len(outcome) else None
        for name, value in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))
    }
    return {**bootstrap(means, **options), **fractions, "pairs": len(outcome)}


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


def win_rates(pairs: pd.DataFrame, rule: Rule = outcomes, **options: Any) -> list[dict[str, Any]]:
    """The win rate of every algorithm against every other one, both ways, with intervals.

    ``rule`` makes outcomes of the log-odds of both orders: :func:`outcomes` or :func:`averaged_outcomes`.
    """
    found = []
    for (algorithm, opponent), rows in pairs.groupby(["algorithm", "opponent"], sort=False):
        cluster = pd.factorize(rows["prompt_id"])[0]
        outcome = rule(rows["forward"].to_numpy(dtype=float), rows["backward"].to_numpy(dtype=float))
        for name, other, values in ((algorithm, opponent, outcome), (opponent, algorithm, 1.0 - outcome)):
            found.append({"algorithm": name, "opponent": other, **win_rate(values, cluster, **options)})
    return found
