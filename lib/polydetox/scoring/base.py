"""What every scorer is: texts and language in, scores in [0, 1] out; a missing one is NaN with a reason, never 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib import util
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polydetox.core.errors import UserError
from polydetox.data.rows import Skipped

NO_TEXT = "no text"

# The paper's languages, for the scorers that know them all. They are written out here: a language that is added to the
# project is not one that a scorer has been made for.
SEVENTEEN = frozenset({
    "ar", "cs", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "sv", "zh",
})  # fmt: skip


class Score(NamedTuple):
    """A value in [0, 1], or NaN and the reason; not ``final``, and not cached, where asking again could give one."""

    value: float
    reason: str = ""
    final: bool = True


def missing(reason: str, *, final: bool = True) -> Score:
    """A missing score."""
    return Score(float("nan"), reason, final)


class NoAnswer(UserError):
    """Texts without a score that asking again could give."""


class Scorer(ABC):
    """A toxicity scorer."""

    id: str  # short name, as parameters and the cache know it
    revision: str  # pins everything that can change a score (weights, head, attribute); part of the cache's key
    languages: frozenset[str]  # that it was made for
    threshold: float = 0.5  # the score from which a text counts as toxic
    scores_blank: bool = False  # whether a blank text can have a score, as where one was stored for it
    skipped: Skipped = Skipped()  # what is not used of the files that it reads

    @abstractmethod
    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        """Score texts of one of :attr:`languages`, none of which is blank unless :attr:`scores_blank`.

        Yields (position, score) as results arrive, each position once, in any order.
        """

    def score(self, texts: Sequence[str], language: str) -> np.ndarray:
        """Toxicity of each text, float64 of shape ``(len(texts),)``; NaN where it is missing. Where asking again could
        give a missing score, :class:`NoAnswer`, once all texts were asked for.
        """
        results = self.results(texts, language)
        if why := [result.reason for result in results if not result.final]:
            raise NoAnswer(f"scorer {self.id!r}: no score of {len(why)} of {len(results)} texts in {language!r} "
                            f"({', '.join(dict.fromkeys(why))}); the same command asks for them again")  # fmt: skip
        return np.array([result.value for result in results], dtype=np.float64)

    def results(self, texts: Sequence[str], language: str) -> list[Score]:
        """The score of each text, or why it is missing."""
        if language not in self.languages:
            known = ", ".join(sorted(self.languages))
            raise UserError(f"scorer {self.id!r} does not support language {language!r}; it supports: {known}")
        texts = list(texts)
        results = [missing(NO_TEXT)] * len(texts)
        positions = [position for position, text in enumerate(texts)
                     if not is_blank(text) or (self.scores_blank and isinstance(text, str))]  # fmt: skip
        for batch in self.batches([texts[position] for position in positions], language):
            for index, result in batch:
                if not (np.isnan(result.value) or 0.0 <= result.value <= 1.0):
                    raise ValueError(f"scorer {self.id!r} gave {result.value}, which is not in [0, 1]")
                results[positions[index]] = result
        return results


def packaged(module: str, file: str) -> Path:
    """A file of an installed package; a ``UserError`` where the package is missing."""
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {module.replace('_', '-')} is not installed; pip install 'polydetox[offline]'")
    return Path(spec.origin).parent / file


def without_surrogates(text: str) -> str:
    """A text with a question mark for each surrogate, which is no character at all."""
    return text.encode("utf-8", "replace").decode()


def is_blank(text: object) -> bool:
    """Whether there is nothing to score: no string, or white space alone."""
    return not isinstance(text, str) or not text.strip()
