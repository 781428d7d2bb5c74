"""Preference pairs from a model's own continuations, and their split."""

from __future__ import annotations

import numpy as np
import pandas as pd

from polydetox.core.errors import UserError
from polydetox.data.pairs import PAIR_COLUMNS


def on_policy_pairs(scored: pd.DataFrame, margin: float, pairs_per_prompt: int = 1) -> pd.DataFrame:
    """Pair the least with the most toxic continuations of each prompt.

    ``scored`` has a row a continuation: ``prompt_id, prompt, continuation, toxicity``. Of each prompt the i-th least
    toxic is chosen against the i-th most toxic, for i up to ``pairs_per_prompt``, as long as their toxicity differs
    by ``margin`` or more. Empty and unscored continuations take no part, repeated ones once.

    Returns ``prompt_id, prompt, chosen, rejected, chosen_toxicity, rejected_toxicity``; none is a ``UserError``.
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
    if not rows:
        raise UserError(
            f"no two continuations of a prompt differ by 'margin' {margin} in toxicity; lower it, or raise 'n'"
        )
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
