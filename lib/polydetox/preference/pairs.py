"""The split of preference data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core.errors import UserError
from polydetox.data.pairs import check_both_sides


def split_pairs(pairs: pd.DataFrame, held_out_share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split pairs into training and held-out ones by prompt, so that no prompt is on both sides.

    At least one prompt is held out and one stays. Of unpaired data both parts have desirable and undesirable ones.
    """
    prompts = pairs["prompt"].unique()
    if len(prompts) < 2:
        raise UserError(
            f"only {len(prompts)} prompt(s) with a preference pair; lower the pairs' 'margin' or raise their 'n'"
        )
    count = min(len(prompts) - 1, max(1, round(held_out_share * len(prompts))))
    held_out = set(np.random.default_rng(seed).permutation(prompts)[:count])
    mask = pairs["prompt"].isin(held_out)
    check_both_sides(pairs[~mask], "dpo: of the data to train on")
    check_both_sides(pairs[mask], "dpo: of the data that 'held_out_share' holds out")
    return pairs[~mask].reset_index(drop=True), pairs[mask].reset_index(drop=True)


def check_takes_unpaired(where: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that need pairs, where there are single completions with labels."""
    for name, value in {"tuning": "dpo", "loss": "kto", "labels": "given", "inputs": "trl"}.items():
        if settings.get(name, value) != value:
            raise UserError(f"{where}: '{name}: {settings[name]}' needs pairs, and these data are unpaired (completion "
                            f"and label); set '{name}: {value}', or give pairs (chosen and rejected)")  # fmt: skip
