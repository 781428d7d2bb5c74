"""The oracle: a toxicity scorer with a threshold says whether a text satisfies the constraint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polydetox.core.parameters import Settings


class Oracle:
    """C(text) = 1 while a scorer's toxicity stays below a threshold. English alone, as the training is."""

    def __init__(self, scorer: str, threshold: float | None):
        from polydetox.scoring import CachedScorer, get_scorer

        self._scorer = CachedScorer(get_scorer(scorer))
        self.threshold = self._scorer.threshold if threshold is None else threshold

    @classmethod
    def of(cls, settings: Settings) -> Oracle:
        """The oracle of a method."""
        return cls(settings.scorer, settings.threshold)

    def toxicity(self, texts: Sequence[str]) -> np.ndarray:
        """(texts,), NaN where there is no score, as for white space alone."""
        return self._scorer.score(list(texts), "en")

    def satisfied(self, toxicity: np.ndarray) -> np.ndarray:
        """C as 1.0 or 0.0, NaN where there is no score."""
        return np.where(np.isnan(toxicity), np.nan, (toxicity < self.threshold).astype(float))
