"""Whether a continuation is in its prompt's language."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import pandas as pd

from polydetox.core.languages import LANGUAGES

if TYPE_CHECKING:
    from lingua import LanguageDetector


@cache
def _detector() -> LanguageDetector:
    """A detector of the 17 languages; its models ship inside its package."""
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_low_accuracy_mode().build()


def detect(texts: Sequence[str]) -> list[str | None]:
    """The most likely of the 17 languages for each text; None where there are no letters to judge by."""
    detector = _detector()
    found: list[str | None] = []
    for text in texts:
        language = detector.detect_language_of(text) if any(character.isalpha() for character in text) else None
        found.append(None if language is None else language.iso_code_639_1.name.lower())
    return found


def language_rate(scores: pd.DataFrame, language: str) -> pd.Series:
    """For each prompt the fraction of its continuations in its language, of those whose language can be detected.

    ``scores`` has a row a continuation (``prompt_id, detected_language``); the index of the result is ``prompt_id``,
    and a prompt without any such continuation has NaN.
    """
    detected = scores["detected_language"]
    right = (detected == language).astype(float).where(detected.notna())
    return right.groupby(scores["prompt_id"], sort=False).mean()
