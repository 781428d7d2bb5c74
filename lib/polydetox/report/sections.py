"""What summary notebooks say in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import Markdown


def not_run(what: str) -> Markdown:
    """What a notebook shows in place of a figure or table whose artefacts are not there."""
    from IPython.display import Markdown

    return Markdown(f"*Not run: {what}.*")
