"""What the stages of attribute control have written, as tidy tables.

Algorithms stand in the profile's order, ``base`` (the base model) first. What was not run is missing.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product
from typing import Any

import pandas as pd

from polydetox.core.artifacts import MANIFEST, read_json
from polydetox.core.control import JIGSAW_CONDITIONS, control_algorithms, control_languages
from polydetox.core.errors import UserError
from polydetox.core.params import load_model
from polydetox.results.collect import Results

PAPER = "Meng et al. (2024)"


class Control:
    """Everything that the chapter reads of one profile, each file once."""

    def __init__(self, results: Results):
        self.results = results
        self.profile = results.profile
        self.algorithms = control_algorithms(self.profile)
        self.languages = control_languages(self.profile)
        files = [load_model(listed) for listed in self.profile.models] if self.profile.control else []
        self.models = {file.name: file.title for file in files}
        self.references = {file.name: file.reference for file in files}
        listed = self.profile.control.algorithms if self.profile.control else {}
        self.titles = {name: "base model" if name == "base" else listed[name].title or name for name in self.algorithms}

    def asked(self, stage: str, **identity: str) -> dict[str, Any]:
        """The parameters that the profile gives a stage; none where it has no attribute control."""
        return self.results.asked(stage, **identity) if self.profile.control else {}

    @property
    def suites(self) -> dict[str, dict[str, Any]]:
        """The suites of multiple-choice tasks that the profile asks, and their settings."""
        return dict(self.asked("attribute_eval", algorithm="base").get("suites", {}))

    @cached_property
    def evaluations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json`` of every evaluation that was run, by model and algorithm."""
        return self._metrics("attribute_eval", "algorithm", self.algorithms)

    @cached_property
    def trainings(self) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json`` of every algorithm that was trained, with the wall time of its stage."""
        found = self._metrics("regularise", "algorithm", self.algorithms)
        return {of: {**metrics, "wall_seconds": read_json(metrics["folder"] / MANIFEST)["wall_seconds"]}
                for of, metrics in found.items()}  # fmt: skip

    @cached_property
    def comments(self) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json`` of every training on labelled comments, by model and condition."""
        return self._metrics("jigsaw_classify", "condition", JIGSAW_CONDITIONS)

    @cached_property
    def wins(self) -> dict[str, dict[str, Any]]:
        """``metrics.json`` of the win rates of each model."""
        folders = {model: self.results.folder("win_rate", model=model) for model in self.models}
        found = {model: read_json(folder / "metrics.json") for model, folder in folders.items() if folder}
        if old := next((model for model, metrics in found.items() if "rates_averaged" not in metrics), None):
            raise UserError(f"{folders[old]}/metrics.json has no rates_averaged: it is of an earlier version; run "
                            f"`polydetox run --profile {self.profile.name}` again")  # fmt: skip
        return found

    def _metrics(self, stage: str, wildcard: str, values: Any) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json``, and the ``folder`` that it is in."""
        folders = {of: self.results.folder(stage, model=of[0], **{wildcard: of[1]})
                   for of in product(self.models, values)}  # fmt: skip
        return {of: read_json(folder / "metrics.json") | {"folder": folder} for of, folder in folders.items() if folder}


def rows_of(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows of a table with these values in the columns of their names."""
    return table[(table[list(values)] == pd.Series(values)).all(axis=1)]
