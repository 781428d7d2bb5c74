"""The figures of the papers' tables, which the report sets beside its own."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from polydetox.core import paths
from polydetox.core.errors import UserError

PAPER = "Li, Yong and Bach (2024)"

# The metrics of results.collect that the paper's table has, under the same names or its own.
PAPER_COLUMNS = {
    "emt": "emt",
    "toxprob": "toxprob",
    "avgtox": "avgtox",
    "perplexity": "ppl",
    "token_distinct_1": "dist1",
    "token_distinct_2": "dist2",
    "token_distinct_3": "dist3",
}


def paper_table(name: str) -> pd.DataFrame:
    """One table of the papers, as ``book/reference/<name>.csv`` holds it."""
    file = paths.root() / "book" / "reference" / f"{name}.csv"
    if not file.is_file():
        raise UserError(f"{paths.relative(file)}: no such file; restore it from the repository")
    return pd.read_csv(file)


def paper_models() -> list[dict[str, Any]]:
    """The models of the paper's Table 2: ``title``, and ``before`` and ``after`` by metric."""
    table = paper_table("table2_detox")
    models = []
    for (model, size), rows in table.groupby(["model", "params_b"], sort=False):
        sides = rows.set_index("dpo")
        models.append({
            "title": f"{model} {size:g}B",
            "keys": {_key(str(model)), _key(f"{model}{size:g}B")},
            **{side: {metric: float(sides.loc[side, column]) for metric, column in PAPER_COLUMNS.items()}
               for side in ("before", "after")},
        })  # fmt: skip
    return models


def paper_model(reference: str | None) -> dict[str, Any] | None:
    """The row of the paper's Table 2 that a model file's ``reference`` names; None where there is none."""
    if reference is None:
        return None
    matches = [model for model in paper_models() if _key(reference) in model["keys"]]
    # A family's bare name stands for a model only where the table has one of that family.
    return matches[0] if len(matches) == 1 else None


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
