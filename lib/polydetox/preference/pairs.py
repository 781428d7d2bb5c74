"""The split of preference pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from polydetox.core.errors import UserError


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
