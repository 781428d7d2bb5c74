"""The phrasebook of the synthetic setting: parallel sentences, of which it is known whether they insult.

A sentence is a speaker who says what *you are* (an insult or a kindness), or a speaker who does something everyday. It
may be said how: angrily before an insult, kindly before a kindness. Words are separated by spaces, so that the
vocabulary is that of whole words.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from polydetox.core import paths
from polydetox.core.errors import UserError, nearest
from polydetox.core.yaml_files import read_yaml

_LISTS = ("speakers", "verbs", "insults", "kindnesses", "activities", "times")


@dataclass(frozen=True)
class Remark:
    """One thing that can be said, in no language yet: places in the lists of the phrasebook."""

    speaker: int
    verb: int
    insult: bool
    quality: int
    toned: bool = False  # whether its tone is said


@dataclass(frozen=True)
class Everyday:
    """One thing that can be done, in no language yet."""

    speaker: int
    activity: int
    time: int


Meaning = Remark | Everyday


@dataclass(frozen=True)
class Phrasebook:
    """Parallel phrases; ``phrases[kind][i][language]``."""

    you_are: dict[str, str]
    tones: dict[str, dict[str, str]]  # "insult" and "kindness": in which tone each is said
    phrases: dict[str, list[dict[str, str]]]

    @staticmethod
    def read(file: Path | None = None) -> Phrasebook:
        """A phrasebook, by default ``params/phrasebook.yaml``; what is missing is a ``UserError`` that names it."""
        file = file or paths.root() / "params" / "phrasebook.yaml"
        content, name = read_yaml(file), paths.relative(file)
        if not isinstance(content, dict) or not isinstance(content.get("you_are"), dict):
            raise UserError(f"{name}: you_are: is needed, a phrase in each language")
        tones = content["tones"] if isinstance(content.get("tones"), dict) else {}
        entries: dict[str, Any] = {f"tones: {kind}:": tones.get(kind) for kind in ("insult", "kindness")}
        for kind in _LISTS:
            if not isinstance(content.get(kind), list) or not content[kind]:
                raise UserError(f"{name}: {kind}: is needed, a list of phrases in every language")
            entries |= {f"{kind}: phrase {number}": entry for number, entry in enumerate(content[kind], start=1)}
        for where, entry in entries.items():
            if missing := sorted(set(content["you_are"]) - set(entry if isinstance(entry, dict) else ())):
                raise UserError(f"{name}: {where} is missing in {', '.join(missing)}")
        return Phrasebook(content["you_are"], tones, {kind: content[kind] for kind in _LISTS})

    @property
    def languages(self) -> list[str]:
        """The languages that every phrase is in."""
        return list(self.you_are)

    def check_languages(self, languages: Sequence[str], where: str = "") -> None:
        """Refuse a language that the phrasebook lacks, and languages that are not English and others."""
        if not {"en"} < set(languages):
            raise UserError(f"{where}languages: the synthetic setting aligns 'en' with others; list it and one more")
        if unknown := next((language for language in languages if language not in self.you_are), None):
            raise UserError(f"params/phrasebook.yaml: has no {unknown!r}{nearest(unknown, self.languages)}")

    def stem(self, speaker: int, verb: int, language: str, tone: bool | None = None) -> str:
        """How a remark begins: what an evaluation prompt is; ``tone`` says it angrily (True) or kindly (False)."""
        remark = Remark(speaker, verb, bool(tone), 0, toned=tone is not None)
        return " ".join(slot[language] for slot in self._slots(remark)[:-2])

    def ending(self, insult: bool, quality: int, language: str) -> str:
        """How a remark ends."""
        return " ".join(slot[language] for slot in self._slots(Remark(0, 0, insult, quality))[-2:])

    def text(self, meaning: Meaning, language: str) -> str:
        """A sentence in one language."""
        return " ".join(slot[language] for slot in self._slots(meaning))

    def mixed(self, meaning: Meaning, languages: Sequence[str], rng: np.random.Generator) -> str:
        """A sentence that takes each phrase from one of some languages, at random."""
        return " ".join(slot[languages[int(rng.integers(len(languages)))]] for slot in self._slots(meaning))

    def _slots(self, meaning: Meaning) -> list[dict[str, str]]:
        """The phrases of a sentence, each in every language."""
        speaker = self.phrases["speakers"][meaning.speaker]
        if isinstance(meaning, Everyday):
            rest = (self.phrases["activities"][meaning.activity], self.phrases["times"][meaning.time])
            return [speaker, *rest, self._mark(".")]
        quality = self.phrases["insults" if meaning.insult else "kindnesses"][meaning.quality]
        tone = [self.tones["insult" if meaning.insult else "kindness"]] if meaning.toned else []
        verb = self.phrases["verbs"][meaning.verb]
        return [speaker, verb, *tone, self._mark(":"), self.you_are, quality, self._mark(".")]

    def _mark(self, mark: str) -> dict[str, str]:
        return dict.fromkeys(self.you_are, mark)

    def qualities(self) -> list[tuple[bool, int]]:
        """Every insult and every kindness that a remark can end with, the insults first."""
        return [(insult, place) for insult, kind in ((True, "insults"), (False, "kindnesses"))
                for place in range(len(self.phrases[kind]))]  # fmt: skip

    def stems(self) -> list[tuple[int, int]]:
        """Every speaker with every verb."""
        return list(itertools.product(range(len(self.phrases["speakers"])), range(len(self.phrases["verbs"]))))

    def everyday(self) -> list[Everyday]:
        """Every everyday sentence."""
        sizes = (range(len(self.phrases[kind])) for kind in ("speakers", "activities", "times"))
        return [Everyday(*places) for places in itertools.product(*sizes)]

    @cached_property
    def words(self) -> dict[str, set[str]]:
        """The words of each language."""
        entries = [self.you_are, *self.tones.values(), *(entry for kind in _LISTS for entry in self.phrases[kind])]
        return {language: {word for entry in entries for word in entry[language].split()} | {".", ":"}
                for language in self.languages}  # fmt: skip

    def insults(self, continuation: str) -> bool:
        """Whether a continuation holds an insult of any language, word by word; mixed text may insult in another."""
        words = f" {' '.join(continuation.split())} "
        return any(f" {phrase} " in words for entry in self.phrases["insults"] for phrase in entry.values())

    def well_formed(self, continuation: str, language: str) -> bool:
        """Whether a continuation of a stem begins as some remark of its language ends."""
        words = f"{' '.join(continuation.split())} "
        return any(words.startswith(f"{self.ending(*quality, language)} ") for quality in self.qualities())
