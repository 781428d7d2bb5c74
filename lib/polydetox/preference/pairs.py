"""Preference pairs from a model's own continuations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from polydetox.core.artifacts import Stage, write_parquet
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings
from polydetox.data.pairs import PAIR_COLUMNS, rtp_lx_pairs, toxicity_pairwise
from polydetox.data.prompts import training_prompts


def make_pairs(settings: Settings, stage: Stage) -> pd.DataFrame:
    """The English preference pairs of one kind; on-policy ones are sampled and scored here.

    All scored continuations of the training prompts are kept in ``continuations.parquet``: the probe learns from them.
    Returns ``prompt_id, prompt, chosen, rejected``, and for on-policy pairs the toxicity of both sides.
    """
    if settings.kind != "on-policy":
        if settings.kind == "rtp-lx":
            pairs, skipped = rtp_lx_pairs(settings.folder, settings.held_out_prompts)
        else:
            pairs, skipped = toxicity_pairwise(settings.folder)
        stage.skips(skipped)
        return pairs.head(settings.limit) if settings.limit else pairs
    from polydetox.generation import Sampling, generate
    from polydetox.models.checkpoints import weights_of
    from polydetox.scoring import CachedScorer, get_scorer

    weights = weights_of(settings.checkpoint, stage)
    sampling = Sampling(n=settings.n, temperature=settings.temperature, top_p=settings.top_p,
                        max_new_tokens=settings.max_new_tokens, seed=settings.seed)  # fmt: skip
    continuations = generate(weights, training_prompts(), sampling, stage.folder / "parts",
                             engine=settings.engine, dtype=settings.dtype)  # fmt: skip
    scorer = CachedScorer(get_scorer(settings.scorer))
    stage.scores_with(scorer)
    scored = continuations.assign(toxicity=scorer.score(continuations["continuation"].tolist(), "en"))
    write_parquet(stage.folder / "continuations.parquet", scored)
    pairs = on_policy_pairs(scored, settings.margin, settings.pairs_per_prompt)
    if pairs.empty:
        raise UserError(
            f"no two continuations of a prompt differ by 'margin' {settings.margin} in toxicity; lower it, or raise 'n'"
        )
    return pairs.head(settings.limit) if settings.limit else pairs


def pair_metrics(pairs: pd.DataFrame, settings: Settings) -> dict[str, Any]:
    """What the report says of a set of pairs; the fields of on-policy pairs are None for other kinds."""
    on_policy = settings.kind == "on-policy"
    return {
        "kind": settings.kind,
        "pairs": len(pairs),
        "prompts": int(pairs["prompt"].nunique()),
        "continuations": settings.n * len(training_prompts()) if on_policy else None,
        "margin": settings.margin if on_policy else None,
        "scorer": settings.scorer if on_policy else None,
        "chosen_mean": float(pairs["chosen_toxicity"].mean()) if on_policy else None,
        "rejected_mean": float(pairs["rejected_toxicity"].mean()) if on_policy else None,
    }


def on_policy_pairs(scored: pd.DataFrame, margin: float, pairs_per_prompt: int = 1) -> pd.DataFrame:
    """Pair the least with the most toxic continuations of each prompt.

    ``scored`` has a row a continuation: ``prompt_id, prompt, continuation, toxicity``. Of each prompt the i-th least
    toxic is chosen against the i-th most toxic, for i up to ``pairs_per_prompt``, as long as their toxicity differs
    by ``margin`` or more. Empty and unscored continuations take no part, repeated ones once.

    Returns ``prompt_id, prompt, chosen, rejected, chosen_toxicity, rejected_toxicity``.
    """
    rows = []
    visible = scored[scored["continuation"].str.strip() != ""].dropna(subset=["toxicity"])
    for prompt_id, group in visible.drop_duplicates(["prompt_id", "continuation"]).groupby("prompt_id", sort=False):
        ranked = group.sort_values("toxicity", kind="stable")
        for position in range(min(pairs_per_prompt, len(ranked) // 2)):
            chosen, rejected = ranked.iloc[position], ranked.iloc[-1 - position]
            if rejected["toxicity"] - chosen["toxicity"] >= margin:
                rows.append((prompt_id, chosen["prompt"], chosen["continuation"], rejected["continuation"],
                             chosen["toxicity"], rejected["toxicity"]))  # fmt: skip
    return pd.DataFrame(rows, columns=[*PAIR_COLUMNS, "chosen_toxicity", "rejected_toxicity"])


def split_pairs(pairs: pd.DataFrame, held_out_share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split pairs into training and held-out ones by prompt, so that no prompt is on both sides.

    At least one prompt is held out and one stays.
    """
    prompts = pairs["prompt"].unique()
    if len(prompts) < 2:
        raise UserError(
            f"only {len(prompts)} prompt(s) with a preference pair; lower the pairs' 'margin' or raise their 'n'"
        )
    count = min(len(prompts) - 1, max(1, round(held_out_share * len(prompts))))
    held_out = set(np.random.default_rng(seed).permutation(prompts)[:count])
    mask = pairs["prompt"].isin(held_out)
    return pairs[~mask].reset_index(drop=True), pairs[mask].reset_index(drop=True)
