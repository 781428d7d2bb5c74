"""What the stages of attribute control have written, as tidy tables.

Algorithms stand in the profile's order, ``base`` (the base model) first. What was not run is missing.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product
from typing import Any

import pandas as pd

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, read_json
from polydetox.core.errors import UserError
from polydetox.core.params import JIGSAW_CONDITIONS, control_algorithms, control_languages, load_model
from polydetox.results.collect import Results
from polydetox.results.published import paper_table

PAPER = "Meng et al. (2024)"

# The paper's name of an algorithm; the regulariser has two.
_PAPER_ALGORITHMS = {"plain": "baseline", "filtering": "filtering", "rl": "rl", "nado": "nado_decoding"}


class Control:
    """Everything that the chapter reads of one profile, each file once."""

    def __init__(self, results: Results):
        self.results = results
        self.profile = results.profile
        self.algorithms = control_algorithms(self.profile)
        self.languages = control_languages(self.profile)
        files = [load_model(listed) for listed in self.profile.models] if self.profile.control else []
        self.models = {file.name: file.title for file in files}
        self._references = {file.name: file.reference for file in files}
        listed = self.profile.control.algorithms if self.profile.control else {}
        self.titles = {name: "base model" if name == "base" else listed[name].title or name for name in self.algorithms}

    def asked(self, stage: str, **identity: str) -> dict[str, Any]:
        """The parameters that the profile gives a stage; none where it has no attribute control."""
        return self.results.asked(stage, **identity) if self.profile.control else {}

    @property
    def suites(self) -> dict[str, dict[str, Any]]:
        """The suites of multiple-choice tasks that the profile asks, and their settings."""
        return dict(self.asked("attribute_eval", algorithm="base").get("suites", {}))

    # --- the paper ---

    def paper_algorithm(self, name: str) -> str | None:
        """The paper's name of an algorithm; None for what its tables do not tell of, as of the parallel schedule."""
        if name == "base":
            return None
        settings = self.asked("regularise", algorithm=name)
        if settings["algorithm"] != "regularised":
            return _PAPER_ALGORITHMS.get(settings["algorithm"])
        if settings["schedule"] == "parallel":
            return None
        return "regularised_adaptive" if settings["regulariser_weight_neutral"] == 0.0 else "regularised"

    def of_paper(self, model: str, table: str) -> pd.DataFrame:
        """The rows of a table of the paper that are about a model of the profile, by the paper's name of the method."""
        paper = paper_table(table)
        return paper[paper["model"] == self._references[model]].set_index("method")

    def of_other_models(self, table: str) -> dict[str, pd.DataFrame]:
        """The rows of a table of the paper about each model that is not in the profile."""
        known = set(self._references.values())
        rows = paper_table(table).groupby("model", sort=False)
        return {str(model): part.set_index("method") for model, part in rows if model not in known}

    # --- what was run ---

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
        found = {}
        for model in self.models:
            if folder := self.results.folder("win_rate", model=model):
                found[model] = read_json(folder / "metrics.json")
                if missing := {"algorithms", "rates", "rates_averaged"} - set(found[model]):
                    raise UserError(
                        f"{paths.relative(folder / 'metrics.json')}: has no {' or '.join(sorted(missing))}; it is of "
                        f"an earlier version: run `polydetox run --profile {self.profile.name}` again"
                    )
        return found

    def _metrics(self, stage: str, wildcard: str, values: Any) -> dict[tuple[str, str], dict[str, Any]]:
        """``metrics.json``, and the ``folder`` that it is in."""
        folders = {of: self.results.folder(stage, model=of[0], **{wildcard: of[1]})
                   for of in product(self.models, values)}  # fmt: skip
        return {of: read_json(folder / "metrics.json") | {"folder": folder} for of, folder in folders.items() if folder}


def rows_of(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """The rows of a table with these values in the columns of their names."""
    return table[(table[list(values)] == pd.Series(values)).all(axis=1)]
