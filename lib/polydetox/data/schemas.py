"""What the rows of each data set hold: the schemas that pandera checks on load.

A field is a column of pandera's schema with one element-wise check, and the words in which a row that fails it is
reported. Field names are those of the published files; sources are in ``params/data.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def _none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def text(value: Any) -> bool:
    """A text that can be written, or none: a row without one is in order, and reported as blank."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
            return False
        return True
    return _none(value)


def whole_number(value: Any) -> bool:
    """A whole number, as a number or in digits."""
    if isinstance(value, str):
        return value.strip().isascii() and value.strip().isdigit() and len(value.strip()) < 10
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def number(value: Any) -> bool:
    """A number, as a number or written out."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def label(value: Any) -> bool:
    """A label of whatever kind: a number, true or false, or a word."""
    return isinstance(value, bool | int | float | str) and not _none(value) and str(value).strip() != ""


def fraction(value: Any) -> bool:
    """A number from 0 to 1, or none."""
    return _none(value) or (number(value) and 0.0 <= float(value) <= 1.0)


def scored_text(value: Any) -> bool:
    """RealToxicityPrompts' objects: a ``text`` with its scores."""
    return isinstance(value, Mapping) and text(value.get("text")) and fraction(value.get("toxicity"))


@dataclass(frozen=True)
class Field:
    """One field: what it may hold, in code and in words."""

    accepts: Callable[[Any], bool]
    wanted: str
    required: bool = True

    def complaint(self, value: Any, *, missing: bool) -> str:
        """What is wrong with a value; a text is never quoted."""
        if missing:
            return f"is missing; it should be {self.wanted}"
        found = repr(value) if isinstance(value, bool | int | float) or value is None else f"a {type(value).__name__}"
        if isinstance(value, str):
            found = "a text that is cut within a character" if self.accepts is text else "a text"
        return f"is {found[:40]}, not {self.wanted}"


@dataclass(frozen=True)
class Schema:
    """The fields of one data set's rows; other fields are left alone."""

    title: str
    fields: dict[str, Field]


_TEXT = Field(text, "text")
_SOME_TEXT = Field(text, "text", required=False)
_ZERO_OR_ONE = Field(lambda value: number(value) and float(value) in (0.0, 1.0), "0 or 1")

SCHEMAS: dict[str, Schema] = {
    # Every version has Prompt. Index is a number or digits; the versions before May 2024 have no BenignCompletion and
    # an empty Completion; the languages of version 1.5 have no Completion.
    "rtp-lx": Schema("RTP-LX", {
        "Prompt": _TEXT,
        "Index": Field(lambda value: _none(value) or whole_number(value), "a whole number", required=False),
        "Completion": _SOME_TEXT,
        "BenignCompletion": _SOME_TEXT,
    }),
    "toxicity-pairwise": Schema("toxicity_pairwise", {
        "prompt_text": _TEXT, "unpert_gen_text": _TEXT, "pert_gen_text": _TEXT,
    }),
    "labelled": Schema("a file of labelled texts", {
        "text": _TEXT, "label": Field(label, "a label"),
    }),
    "real-toxicity-prompts": Schema("RealToxicityPrompts", {
        "prompt": Field(scored_text, "an object with 'text' and a 'toxicity' from 0 to 1 or null"),
    }),
    "polyglo-toxicity-prompts": Schema("PolygloToxicityPrompts", {
        "prompt": _TEXT,
        "toxicity": Field(fraction, "a number from 0 to 1", required=False),
    }),
    "toxigen": Schema("ToxiGen", {"generation": _TEXT, "prompt_label": _ZERO_OR_ONE}),
    "toxigen-prompts": Schema("ToxiGen with its prompts", {"prompt": _TEXT, "prompt_label": _ZERO_OR_ONE}),
    "toxigen-annotated": Schema("ToxiGen (annotated)", {
        "text": _TEXT,
        "toxicity_human": Field(lambda value: number(value) and 1.0 <= float(value) <= 5.0, "a number from 1 to 5"),
    }),
    "stored-scores": Schema("a file of stored scores", {
        "text": _TEXT, "TOXICITY": Field(fraction, "a number from 0 to 1 or none"),
    }),
    "wikitext": Schema("Wikitext", {"text": _TEXT}),
}  # fmt: skip
