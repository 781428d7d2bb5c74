"""Scores of continuations under two scorers and a reference model, each loaded once for all tables.

What a table's values depend on names a folder, in which the values are kept in shards as they come: a stage that was
stopped resumes, and a table whose values are all there is put together without loading anything.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from polydetox.core.artifacts import input_hash, library_versions, read_parquet, resume_key, write_parquet
from polydetox.core.parameters import Settings
from polydetox.models.checkpoints import provenance, weights_of
from polydetox.models.texts import Shortened, shortened
from polydetox.scoring import CachedScorer, get_scorer

if TYPE_CHECKING:
    from polydetox.metrics.fluency import ReferenceModel

VALUES = ["toxicity", "secondary_toxicity", "perplexity"]
_PROMPTS = 64  # of a shard


class Scoring:
    """Two scorers and a reference model, which load their models when a table first needs them."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self.scorers = [CachedScorer(get_scorer(name)) if name else None
                         for name in (settings.scorer, settings.second_scorer)]  # fmt: skip
        self.reference_weights = weights_of(settings.reference_model) if settings.reference_model else None

    @cached_property
    def _reference_model(self) -> ReferenceModel | None:
        from polydetox.metrics.fluency import ReferenceModel

        settings = self._settings
        if self.reference_weights is None:
            return None
        return ReferenceModel(self.reference_weights, settings.dtype, settings.batch_size, settings.perplexity)

    def shortened(self, continuations: pd.DataFrame) -> Shortened:
        """Which prompts the reference model reads in part, as a continuation makes them longer than its positions."""
        if self.reference_weights is None:
            return Shortened()
        texts = continuations["prompt"] + continuations["continuation"]
        return shortened(self.reference_weights, continuations["prompt_id"], texts)

    def values(self, continuations: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
        """The columns ``VALUES`` for a table of continuations of one language, row by row.

        What a scorer or the reference model cannot tell is NaN. Shards (whole prompts) that ``folder`` holds are taken
        from there, the others are added; what else it holds belongs to other settings and is removed.
        """
        key = self._key(continuations, language)
        for stale in folder.glob("*"):
            if stale.name != key:
                shutil.rmtree(stale)
        found = []
        numbers = pd.factorize(continuations["prompt_id"])[0] // _PROMPTS
        for number, rows in tqdm(continuations.groupby(numbers, sort=True), desc="score", unit="shard"):
            file = folder / key / f"{number:05d}.parquet"
            if not file.is_file():
                write_parquet(file, self._score(rows, language))
            found.append(read_parquet(file, VALUES).set_index(rows.index))
        return pd.concat(found).loc[continuations.index]

    def _key(self, continuations: pd.DataFrame, language: str) -> str:
        """Names everything that the values depend on."""
        settings, weights, versions = self._settings, self.reference_weights, library_versions()
        return resume_key({
            "rows": continuations[["prompt_id", "prompt", "sample", "continuation"]].to_dict("records"),
            "language": language,
            "scorers": [scorer and [scorer.id, scorer.revision] for scorer in self.scorers],
            "reference_model": weights and input_hash(provenance(weights)),
            "perplexity": [settings.dtype, settings.batch_size, settings.perplexity, settings.perplexity_samples],
            "versions": {name: versions.get(name) for name in ("polydetox", "torch", "transformers", "tokenizers")},
        })  # fmt: skip

    def _score(self, rows: pd.DataFrame, language: str) -> pd.DataFrame:
        """``VALUES`` of one shard; perplexity of the first continuations of each prompt, as many as are asked."""
        found: dict[str, Any] = {
            column: scorer.score(rows["continuation"].tolist(), language) if scorer else np.nan
            for column, scorer in zip(VALUES, self.scorers, strict=False)
        }
        found["perplexity"] = np.full(len(rows), np.nan)
        if self._reference_model is not None:
            chosen = rows["sample"] < (self._settings.perplexity_samples or len(rows))
            texts = rows["continuation"].where(chosen, "").tolist()
            found["perplexity"] = self._reference_model.perplexities(rows["prompt"].tolist(), texts)
        return pd.DataFrame(found)
