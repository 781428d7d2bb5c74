"""Scores of continuations under two scorers and a judge, each loaded once for as many tables as there are.

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
from jaxtyping import Float
from tqdm.auto import tqdm

from polydetox.core.artifacts import input_hash, library_versions, read_parquet, resume_key, write_parquet
from polydetox.core.parameters import Settings
from polydetox.metrics.diversity import published_distinct
from polydetox.metrics.evaluate import TOKEN_DISTINCT
from polydetox.metrics.language import detect
from polydetox.models.checkpoints import load_tokenizer, provenance, weights_of
from polydetox.models.texts import Shortened, shortened
from polydetox.scoring import CachedScorer, get_scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from polydetox.metrics.fluency import Judge

VALUES = ["toxicity", "second_opinion", "perplexity"]
_PROMPTS = 64  # of a shard


class Scoring:
    """Two scorers and a judge, which load their models when a table first needs them."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self.scorers = [CachedScorer(get_scorer(name)) if name else None
                         for name in (settings.scorer, settings.second_scorer)]  # fmt: skip
        self.judge_weights = weights_of(settings.judge) if settings.judge else None
        self._dtype = settings.dtype

    def score(self, continuations: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
        """A table of continuations of one language with the columns ``SCORE_COLUMNS``.

        What a scorer or the judge cannot tell is NaN (None for the language).
        """
        scores = continuations.join(self.values(continuations, language, folder))
        scores["detected_language"] = detect(scores["continuation"].tolist())
        # The judge's tokenizer alone: the model is loaded only where something is still to be judged.
        scores[TOKEN_DISTINCT] = token_diversity(scores, self._tokenizer) if self._tokenizer is not None else np.nan
        return scores

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None if self.judge_weights is None else load_tokenizer(self.judge_weights, closing=True)

    def shortened(self, continuations: pd.DataFrame) -> Shortened:
        """Of which prompts the judge reads a part alone, since a continuation makes them longer than its positions."""
        if self.judge_weights is None:
            return Shortened()
        texts = continuations["prompt"] + continuations["continuation"]
        return shortened(self.judge_weights, continuations["prompt_id"], texts)

    def values(self, continuations: pd.DataFrame, language: str, folder: Path) -> pd.DataFrame:
        """The columns ``VALUES`` for a table of continuations of one language, row by row.

        What a scorer or the judge cannot tell is NaN. Shards that ``folder`` holds are taken from there, the others are
        added; what else it holds belongs to other settings and is removed.
        """
        key = self._key(continuations, language)
        for stale in folder.glob("*"):
            if stale.name != key:
                shutil.rmtree(stale)
        shards = []
        for rows, file in tqdm(self._plan(continuations, folder / key), desc="score", unit="shard"):
            if not file.is_file():
                write_parquet(file, self._score(rows, language).reset_index(drop=True))
            shards.append(read_parquet(file, VALUES).set_index(rows.index))
        return pd.concat(shards).loc[continuations.index]

    def _key(self, continuations: pd.DataFrame, language: str) -> str:
        """Names everything that the values depend on."""
        settings, judge = self._settings, self.judge_weights
        versions = library_versions()
        depends_on = {
            "rows": continuations[["prompt_id", "prompt", "sample", "continuation"]].to_dict("records"),
            "language": language,
            "scorers": [scorer and [scorer.id, scorer.revision] for scorer in self.scorers],
            "judge": judge and [input_hash(provenance(judge)), self._dtype, settings.batch_size, settings.perplexity],
            "judged_samples": settings.judged_samples,
            "versions": {name: versions.get(name) for name in ("polydetox", "torch", "transformers", "tokenizers")},
        }
        return resume_key(depends_on)

    def _plan(self, continuations: pd.DataFrame, folder: Path) -> list[tuple[pd.DataFrame, Path]]:
        """The shards, whole prompts each, and the file of each."""
        number = pd.factorize(continuations["prompt_id"])[0] // _PROMPTS
        shards = continuations.groupby(number, sort=True)
        return [(rows, folder / f"{shard:05d}.parquet") for shard, rows in shards]

    def _score(self, rows: pd.DataFrame, language: str) -> pd.DataFrame:
        texts = rows["continuation"].tolist()
        found: dict[str, Any] = {}
        for column, scorer in zip(VALUES, self.scorers, strict=False):
            found[column] = scorer.score(texts, language) if scorer else np.nan
        if self._judge is None:
            found["perplexity"] = np.nan
        else:
            judged = rows["sample"] < (self._settings.judged_samples or len(rows))
            found["perplexity"] = self._judge.perplexities(
                rows["prompt"].tolist(), rows["continuation"].where(judged, "").tolist()
            )
        return pd.DataFrame(found, index=rows.index)

    @cached_property
    def _judge(self) -> Judge | None:
        from polydetox.metrics.fluency import Judge

        if self.judge_weights is None:
            return None
        return Judge(self.judge_weights, self._dtype, self._settings.batch_size, self._settings.perplexity)


def token_diversity(continuations: pd.DataFrame, tokenizer: Any) -> Float[np.ndarray, "rows 3"]:
    """Distinct n-grams over tokens of each row's prompt, as published; empty continuations are skipped."""
    numbers, prompts = pd.factorize(continuations["prompt_id"])
    texts: list[list[str]] = [[] for _ in prompts]
    for number, text, empty in zip(numbers, continuations["continuation"], continuations["empty"], strict=True):
        if not empty:
            texts[number].append(text)
    return published_distinct(texts, tokenizer)[numbers]
