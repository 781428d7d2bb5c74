"""The models of the synthetic multilingual setting as a tidy table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polydetox.core.artifacts import read_json, read_parquet
from polydetox.results.collect import Results

MEASURES = [
    "before", "after", "relative_drop", "kept_before", "kept_after", "kept_drop", "well_formed_before",
    "well_formed_after", "accuracy", "centred_accuracy", "direction_cosine", "tone_effect",
]  # fmt: skip
PREDICTORS = {"accuracy": "retrieval accuracy", "direction_cosine": "cosine of directions"}
OF_MODEL = ["configuration", "size", "alignment", "seed", "parameters"]


def folders(results: Results) -> list[Path]:
    """Where the finished models of :func:`measurements` are."""
    return [run.folder for run in results.stages if run.stage == "world_transfer" and run.done]


def measurements(results: Results) -> pd.DataFrame:
    """Every model and language that was measured, a row each: ``OF_MODEL``, ``language`` and ``MEASURES``."""
    tables = []
    for folder in folders(results):
        metrics = read_json(folder / "metrics.json")
        table = read_parquet(folder / "languages.parquet", ["language", *MEASURES])
        # Readers know a size by its parameters, not by the profile's name for it.
        size = f"{metrics['parameters'] / 1e6:.1f} M parameters"
        shown = {**metrics, "configuration": folder.parent.name, "size": size}
        tables.append(table.assign(**{name: shown[name] for name in OF_MODEL}))
    columns = [*OF_MODEL, "language", *MEASURES]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
