"""What a run is made of, as the workflow writes it, for tests that read a run which no workflow has made."""

from __future__ import annotations

from typing import Any

from polydetox.results.collect import Results
from polydetox.workflow import write_record
from tiny import CHECKOUT

# Without the section on labels by people, which only a run with labelled sheets has: test_labels.py runs it; and
# without that of the early site, which tests/site/test_first.py runs.
SECTIONS = sorted({file.stem.removeprefix("summary_") for file in (CHECKOUT / "notebooks").rglob("summary_*.ipynb")}
                  - {"labels", "first"})  # fmt: skip


def recorded(profile: str, **options: Any) -> Results:
    """The results of a profile, as far as they are there."""
    return Results(write_record(profile), **options)
