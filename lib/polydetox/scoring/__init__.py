"""Toxicity scorers: ``get_scorer(name).score(texts, language)`` is a float in [0, 1] a text, NaN where missing."""

from polydetox.scoring.base import NoAnswer, Score, Scorer
from polydetox.scoring.cache import CachedScorer
from polydetox.scoring.registry import get_scorer

__all__ = ["CachedScorer", "NoAnswer", "Score", "Scorer", "get_scorer"]
