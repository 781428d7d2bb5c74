"""The figures of the papers' tables, which the report sets beside its own."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from polydetox.core import paths
from polydetox.core.errors import UserError

PAPER = "Li, Yong and Bach (2024)"

_OURS = {"ppl": "perplexity", **{f"dist{order}": f"token_distinct_{order}" for order in (1, 2, 3)}}


def paper_table(name: str) -> pd.DataFrame:
    """One table of the papers, as ``book/reference/<name>.csv`` holds it."""
    file = paths.root() / "book" / "reference" / f"{name}.csv"
    if not file.is_file():
        raise UserError(f"{paths.relative(file)}: no such file; restore it from the repository")
    return pd.read_csv(file)


def paper_models() -> list[dict[str, Any]]:
    """The models of the paper's Table 2: ``title``, ``keys``, and ``before`` and ``after`` by metric as we name it."""
    table = paper_table("table2_detox").rename(columns=_OURS).set_index("dpo")
    return [
        {"title": f"{model} {size:g}B", "keys": {_key(str(model)), _key(f"{model}{size:g}B")},
         **rows.drop(columns=["model", "params_b"]).astype(float).to_dict("index")}
        for (model, size), rows in table.groupby(["model", "params_b"], sort=False)
    ]  # fmt: skip


def paper_model(reference: str | None) -> dict[str, Any] | None:
    """The row of the paper's Table 2 that a model file's ``reference`` names; None where there is none."""
    matches = [model for model in paper_models() if _key(reference or "") in model["keys"]]
    # A family's bare name stands for a model only where the table has one of that family.
    return matches[0] if len(matches) == 1 else None


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
