"""What a run is made of: its stages, and the comparisons of a model before and after its tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydetox.core import paths
from polydetox.core.artifacts import finished, in_progress
from polydetox.core.params import Profile, is_ablation, load_model, variants_of


@dataclass(frozen=True)
class Comparison:
    """One model before and after one way of tuning."""

    model: str  # folder name
    variant: str  # of the tuned side; the other is `base`
    title: str  # as tables and figures print it
    reference: str | None = None  # row of this model in the paper's tables

    @property
    def name(self) -> str:
        """A key for tables: model and variant."""
        return f"{self.model}/{self.variant}"


def variant_title(profile: Profile, variant: str) -> str:
    """A variant as the report prints it."""
    if variant == "base":
        return "base model"
    if variant == "published":
        return "published checkpoint"
    return profile.variants[variant].title or variant


def compared_variants(profile: Profile, listed: str) -> list[str]:
    """``base`` and the variants of a model that the main tables compare: all but the ablations."""
    return [variant for variant in variants_of(profile, listed) if not is_ablation(profile, variant)]


def comparisons(profile: Profile, *, ablations: bool = False) -> list[Comparison]:
    """Every model before and after every way of tuning of the main tables, in the profile's order; or all of them."""
    found = []
    for listed in profile.models:
        model = load_model(listed)
        tuned = (variants_of(profile, listed) if ablations else compared_variants(profile, listed))[1:]
        for variant in tuned:
            title = model.title if len(tuned) == 1 else f"{model.title} ({variant_title(profile, variant)})"
            found.append(Comparison(model.name, variant, title, model.reference))
    return found


@dataclass(frozen=True)
class StageRun:
    """One stage of a profile: where it writes, and whether it has run."""

    stage: str
    folder: Path
    model: str
    variant: str | None = None
    language: str | None = None
    kind: str | None = None
    prompt_set: str | None = None  # one of the profile's further sets of prompts
    notebook: str = ""

    @property
    def done(self) -> bool:
        """Whether the stage has succeeded, and its executed notebook is there."""
        return is_whole(self.folder)


def is_whole(folder: Path) -> bool:
    """Whether a stage has succeeded and papermill has moved its notebook there, which it does after the manifest."""
    return finished(folder) and not in_progress(folder / "notebook.ipynb").exists()


def stage_runs(record: dict[str, Any]) -> list[StageRun]:
    """Every stage of a run, in the order of the workflow, done or not."""
    runs = []
    for job in record["jobs"]:
        of = job["wildcards"]
        runs.append(StageRun(
            job["stage"], paths.given(job["folder"]), of.get("model") or of["configuration"], of.get("variant"),
            of.get("lang"), of.get("kind") or of.get("algorithm") or of.get("condition"),
            of.get("set", "").rstrip("/") or None, job["notebook"],
        ))  # fmt: skip
    return runs


def read_by(run: StageRun) -> tuple[str | None, ...]:
    """What a stage reads from outside, the same for every variant, algorithm and condition that reads it."""
    if run.stage in ("generate", "constrained_decode"):
        return ("prompts", run.prompt_set)
    return ("comments",) if run.stage in ("probe", "jigsaw_classify") else (run.stage, run.kind)
