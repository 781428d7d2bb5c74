"""Toxicity scorers: one interface, several sources.

``get_scorer(name).score(texts, language)`` gives one float in [0, 1] a text, or NaN where there is none.
"""

from polydetox.scoring.base import Score, Scorer
from polydetox.scoring.cache import CachedScorer
from polydetox.scoring.registry import get_scorer

__all__ = ["CachedScorer", "Score", "Scorer", "get_scorer"]
