"""The style of texts, whatever they say: digits, markup, length, punctuation and script, text by text."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import pandas as pd

# How the Unicode names of a language's letters begin; those of the other languages are Latin.
_SCRIPTS = {
    "ar": ("ARABIC",), "hi": ("DEVANAGARI",), "ja": ("CJK", "HIRAGANA", "KATAKANA"), "ko": ("HANGUL",),
    "ru": ("CYRILLIC",), "zh": ("CJK",),
}  # fmt: skip
# HTML tags (also those that a limit on tokens cuts off) and entities; headings, lists, bold text, code and links of
# Markdown. A hyphen at the beginning of a line is no sign of a list: dialogues have one as well.
_MARKUP = re.compile(r"<[/!]?[A-Za-z]|&#?\w{2,8};|^\s*(?:#{1,6}|\*) |\*\*|`|\]\(", re.MULTILINE)


@cache
def _any_of(names: tuple[str, ...]) -> str:
    """An expression for the letters whose names begin so; without any, for punctuation."""
    chosen = [letter for letter in map(chr, range(0x10000))
              if (letter.isalpha() and unicodedata.name(letter, "").startswith(names) if names
                  else unicodedata.category(letter)[0] == "P")]  # fmt: skip
    return f"[{re.escape(''.join(chosen))}]"


def style_marks(texts: pd.Series, language: str) -> pd.DataFrame:
    """``digits``, ``markup``: whether a text has any; ``characters``; ``punctuation``, as a fraction of the characters;
    ``other_script``: 1.0 if most of its letters are of a script that is not the language's, NaN without letters.
    """
    found = texts.astype(object).str  # pyarrow's own expressions know no digits but ASCII's
    length, letters = found.len(), found.count(r"[^\W\d_]")
    own = found.count(_any_of(_SCRIPTS.get(language, ("LATIN",))))
    punctuation = found.count(_any_of(()))
    return pd.DataFrame({
        "digits": found.contains(r"\d").astype(bool), "markup": found.contains(_MARKUP).astype(bool),
        "characters": length, "punctuation": (punctuation / length).astype(float),
        "other_script": (2 * own < letters).astype(float).where(letters > 0),
    })  # fmt: skip
