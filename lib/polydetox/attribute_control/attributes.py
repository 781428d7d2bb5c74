"""What one algorithm did: toxicity and form of its continuations, perplexity of held-out text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm.auto import tqdm

from polydetox.metrics.evaluate import mean_by_prompt
from polydetox.metrics.language import language_rate
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.stats.bootstrap import bootstrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCORE_COLUMNS = [
    "language", "prompt_id", "sample", "prompt", "continuation", "toxicity", "detected_language", "repeated", "empty",
]  # fmt: skip
LOSS_COLUMNS = ["row", "domain", "nll", "tokens"]


def toxicity_by_language(scores: pd.DataFrame, threshold: float, **options: Any) -> dict[str, dict[str, Any]]:
    """Each measure of each language with its bootstrap interval over prompts."""
    return {
        str(language): {
            "prompts": rows["prompt_id"].nunique(),
            "continuations": len(rows),
            "scored": int(rows["toxicity"].notna().sum()),
            **{
                name: bootstrap(values.dropna().to_numpy(), **options)
                for name, values in prompt_toxicity(rows, "toxicity", threshold).items()
            },
        }
        for language, rows in scores.groupby("language", sort=False)
    }


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
    """The negative log-likelihood (nats) of what follows the prompt of each row: columns ``LOSS_COLUMNS``.

    ``corpus`` has ``row``, ``prompt``, ``text`` and ``domain``. Rows are cut at ``max_length`` tokens; one that has no
    token after its prompt within them is skipped.
    """
    # These load torch, which the report does not need.
    import torch

    from polydetox.attribute_control.rows import collate, encode, learnt
    from polydetox.metrics.fluency import token_nll

    rows = encode(tokenizer, list(corpus["prompt"]), list(corpus["text"]), [0.0] * len(corpus), max_length)
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


def perplexity(
    nll: Float[np.ndarray, " rows"], tokens: Float[np.ndarray, " rows"], **options: Any
) -> dict[str, float | None]:
    """exp of the total loss over the total number of tokens, its interval from a bootstrap over rows."""
    return bootstrap(
        nll, tokens, statistic=lambda losses, counts: np.exp(losses.sum(axis=-1) / counts.sum(axis=-1)), **options
    )


def perplexity_by_domain(losses: pd.DataFrame, **options: Any) -> dict[str, dict[str, float | None]]:
    """The perplexity of the toxic and of the neutral half."""
    return {
        str(domain): perplexity(rows["nll"].to_numpy(), rows["tokens"].to_numpy(dtype=float), **options)
        for domain, rows in losses.groupby("domain", sort=False)
    }
