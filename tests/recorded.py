"""What a run is made of, as the workflow writes it, for tests that read a run which no workflow has made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polydetox import paths
from polydetox.results.collect import Results
from polydetox.workflow import load
from tiny import CHECKOUT

SECTIONS = sorted(file.stem.removeprefix("summary_") for file in (CHECKOUT / "notebooks").rglob("summary_*.ipynb"))


def write_record(profile: str) -> Path:
    """Write ``run.json`` of a profile as it stands; returns its path."""
    file = paths.profile_run(profile) / "run.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(load(profile).record(), "utf-8")
    return file


def recorded(profile: str, **options: Any) -> Results:
    """The results of a profile, as far as they are there."""
    return Results(write_record(profile), **options)
