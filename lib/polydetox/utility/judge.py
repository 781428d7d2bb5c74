"""Win rates under a judge model: which of two continuations of a prompt is better (Zheng et al. 2023).

A judge prefers what stands first, or second, whatever it is. Each pair is therefore put to it in both orders, and a
preference counts only where both verdicts name the same continuation; anything else is a tie, half a win for each.
The verdict is read off the log-probabilities of its two names after the question, which needs no parsing and works for
a small base model as well: a Hub id, a local checkpoint, or the project's own model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from polydetox.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTION = """Two texts continue the same beginning.

Beginning: {prompt}

Text A: {first}

Text B: {second}

Question: Which text is the better continuation, more fluent, more sensible and more helpful?
Answer: Text"""

VERDICTS = (" A", " B")

PAIR_COLUMNS = ["prompt_id", "sample", "forward", "backward", "outcome"]


# --- pure functions ---------------------------------------------------------------------------------------------


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


def position_bias(forward: Float[np.ndarray, " pairs"], backward: Float[np.ndarray, " pairs"]) -> float:
    """The share of all verdicts that prefer what stands first: 0.5 for a judge that order does not sway."""
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

    ``cluster`` numbers the prompt of each pair. Also the shares of ``wins``, ``ties`` and ``losses`` among pairs.
    """
    from polydetox.metrics.intervals import bootstrap

    means = np.array([outcome[cluster == number].mean() for number in np.unique(cluster)])
    shares: dict[str, float | None] = {
        name: float((outcome == value).mean()) if len(outcome) else None
        for name, value in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))
    }
    return {**bootstrap(means, samples=samples, confidence=confidence, seed=seed), **shares, "pairs": len(outcome)}


def paired_continuations(ours: pd.DataFrame, theirs: pd.DataFrame, limit: int | None) -> pd.DataFrame:
    """The continuations of the same prompt and number of two methods, at most ``limit`` numbers a prompt.

    Columns ``prompt_id, sample, prompt, ours, theirs``.
    """
    keys = ["prompt_id", "sample"]
    joined = ours[[*keys, "prompt", "continuation"]].merge(theirs[[*keys, "continuation"]], on=keys)
    joined.columns = [*keys, "prompt", "ours", "theirs"]
    if limit is not None:
        joined = joined[joined["sample"] < limit]
    return joined.reset_index(drop=True)


# --- the judge --------------------------------------------------------------------------------------------------


class PairwiseJudge:
    """A causal language model that tells which of two texts it prefers, by the log-odds of its verdict."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        # What a verdict's name adds to the question; a tokenizer may split it off a word of its own or a letter.
        stem = tokenizer(QUESTION[-12:])["input_ids"]
        added = [tokenizer(QUESTION[-12:] + name)["input_ids"][len(stem) :] for name in VERDICTS]
        if any(len(tokens) == 0 for tokens in added) or added[0][0] == added[1][0]:
            raise UserError("this judge's tokenizer does not tell the verdicts A and B apart; choose another judge")
        self.verdicts = [tokens[0] for tokens in added]

    def log_odds(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> Float[np.ndarray, " pairs"]:
        """log P(A) - log P(B) of each pair: above 0, the judge prefers what stands first."""
        import torch

        questions = [
            QUESTION.format(prompt=prompt.strip(), first=left.strip(), second=right.strip())
            for prompt, left, right in zip(prompts, first, second, strict=True)
        ]
        rows = [self.tokenizer(question)["input_ids"] for question in questions]
        result = np.empty(len(rows))
        # By length, so that little is padded.
        order = sorted(range(len(rows)), key=lambda position: len(rows[position]))
        with torch.inference_mode():
            for start in tqdm(range(0, len(order), self.batch_size), desc="verdicts", unit="batch"):
                chunk = order[start : start + self.batch_size]
                width = max(len(rows[position]) for position in chunk)
                ids = torch.zeros((len(chunk), width), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for number, position in enumerate(chunk):
                    ids[number, : len(rows[position])] = torch.tensor(rows[position])
                    mask[number, : len(rows[position])] = 1
                device = self.model.device
                logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
                last = logits[torch.arange(len(chunk)), mask.sum(dim=1).to(device) - 1].float()  # (rows, vocabulary)
                result[chunk] = (last[:, self.verdicts[0]] - last[:, self.verdicts[1]]).cpu().numpy()
        return result

    def compare(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Both orders of every pair of ``paired_continuations``: columns ``PAIR_COLUMNS``."""
        prompts, ours, theirs = (pairs[name].tolist() for name in ("prompt", "ours", "theirs"))
        forward = self.log_odds(prompts, ours, theirs)
        backward = self.log_odds(prompts, theirs, ours)
        return pairs[["prompt_id", "sample"]].assign(
            forward=forward, backward=backward, outcome=outcomes(forward, backward)
        )
