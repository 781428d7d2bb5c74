"""What summary notebooks say in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import Markdown


def not_run(what: str) -> Markdown:
    """What a notebook shows in place of a figure or table whose artefacts are not there."""
    from IPython.display import Markdown

    return Markdown(f"*Not run: {what}.*")


def duration(seconds: float) -> str:
    """A time as a person reads it: ``42 s``, ``3 min 20 s``, ``2 h 5 min``.

    >>> duration(200)
    '3 min 20 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
