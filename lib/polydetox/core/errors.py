"""The exception that a user is meant to read, and the helper that names the nearest valid word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the reader can mend: one line that names the file, the field and the fix; exit status 2."""


class DataNotFound(UserError):
    """The files are in order, but hold none of what is asked for (prompts in a language, a part of a data set)."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest valid word, or the list of valid ones.

    >>> nearest("tempratur", ["temperature", "top_p"])
    "; did you mean 'temperature'?"
    """
    options = [str(option) for option in valid]
    close = difflib.get_close_matches(str(word), options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid are: {', '.join(options)}" if options else ""
