"""``polydetox push``: a tuned model with a card made of its run's artefacts, in a folder and on the Hugging Face Hub.

The card is ``params/model_card.md``, filled with the manifests and metrics of the stages. A checkpoint that is not the
one that was evaluated is refused. What is uploaded holds no secret, no path of this machine, no prompt or continuation.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydetox import __version__
from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, atomic_folder, folder_sha256, link_or_copy, read_json
from polydetox.core.errors import UserError, nearest
from polydetox.core.languages import LANGUAGES
from polydetox.core.params import ON_POLICY, ModelFile, Profile, load_model, load_profile, tuned_by, variants_of
from polydetox.data.catalogue import sources
from polydetox.data.download import hub_errors
from polydetox.models.checkpoints import LOCATION
from polydetox.results.collect import Results
from polydetox.workflow import record_file

# What a checkpoint consists of; anything else beside it, pickles above all, stays here.
_WEIGHTS = (".safetensors",)
_TEXTS = (".json", ".txt", ".model", ".jinja")

# The Hub's names of licences that model files call by their own.
_LICENCES = {
    "Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma Terms of Use": "gemma", "Llama 2 Community License": "llama2",
    "Llama 3 Community License": "llama3", "BigScience RAIL 1.0": "bigscience-bloom-rail-1.0",
    "CC-BY-NC 4.0": "cc-by-nc-4.0",
}  # fmt: skip

_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PERSPECTIVE_API_KEY", "POLYDETOX_ZIP_PASSWORD")
_TOKEN_LIKE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bAIza[0-9A-Za-z_-]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class TunedRun:
    """The artefacts of one tuned variant of a model."""

    profile: Profile
    model: ModelFile
    variant: str
    results: Results

    def read(self, stage: str, name: str = MANIFEST, **wildcards: str) -> dict[str, Any]:
        """The manifest of a stage of the model, or another file of it; empty where it was not run."""
        folder = self.results.folder(stage, model=self.model.name, **wildcards)
        return dict(read_json(folder / name)) if folder else {}

    def evaluation(self, variant: str, language: str) -> dict[str, Any]:
        """The metrics of a variant in a language; empty where it was not evaluated in it."""
        return self.read("evaluate", "metrics.json", variant=variant, lang=language)

    def folder(self, name: str) -> Path:
        """A folder of the variant, whether or not it is there."""
        return paths.profile_run(self.profile.name) / self.model.name / self.variant / name

    def check(self) -> None:
        """Refuse a checkpoint that was changed, or is not what its training left and its evaluation measured."""
        trained, merged, generated = (self.read(stage, variant=self.variant) for stage in ("dpo", "merge", "generate"))
        evaluated = any(self.evaluation(self.variant, language) for language in self.profile.languages)
        weights = merged["output_sha256"]
        unchanged = folder_sha256(self.folder("merge") / "weights") == weights
        for holds, place, problem in (
            (unchanged, "merge/weights", "changed since it was merged"),
            (trained.get("output_sha256") in merged["inputs"].values(), "merge", "merged before the last training"),
            (not evaluated or weights in generated.get("inputs", {}).values(), "generate",
             "the continuations are another checkpoint's"),
        ):  # fmt: skip
            if not holds:
                raise UserError(f"{paths.relative(self.folder(place))}: {problem}; run `polydetox run --profile "
                                f"{self.profile.name}` again")  # fmt: skip


def find_run(model: str, profile: str, variant: str | None) -> TunedRun:
    """The tuned variant that a reader means, unnamed that of the main tables; a ``UserError`` where none is clear."""
    settings, model_file, results = load_profile(profile), load_model(model), Results(record_file(profile))
    listed = [name for name in settings.models if load_model(name).name == model_file.name]
    trained = [name for one in listed for name in variants_of(settings, one) if tuned_by(settings, name) == "dpo"]
    if not trained:
        raise UserError(f"{model}: profile {profile!r} trains no variant of it{nearest(model, settings.models)}")
    if variant in settings.variants and variant not in trained:
        raise UserError(f"variant {variant!r} of {model} is not trained, and the model card tells of a training; give "
                        "a variant of DPO")  # fmt: skip
    done = [name for name in trained if results.folder("merge", model=model_file.name, variant=name)]
    main = [name for name in done if not settings.variants[name].ablation] or done
    if variant is None and len(main) > 1:
        raise UserError(f"{model}: {', '.join(main)} are trained; say which with --variant")
    variant = variant or (main or trained)[0]
    if variant not in trained:
        raise UserError(f"{model}: no variant {variant!r}{nearest(variant, trained)}")
    if variant not in done:
        raise UserError(f"variant {variant!r} of {model} is not trained and merged yet; run `polydetox run --profile "
                        f"{profile}` first")  # fmt: skip
    run = TunedRun(settings, model_file, variant, results)
    labels = run.read("dpo", variant=variant).get("parameters", {}).get("labels", "given")
    if labels != "given":
        raise UserError(f"variant {variant!r} of {model} was trained with 'labels: {labels}', and the model card tells "
                        "of a training against toxicity; give a variant with 'labels: given'")  # fmt: skip
    run.check()
    return run


def model_card(run: TunedRun, repository: str | None = None) -> str:
    """The model card: front matter as the Hub reads it, then prose and tables, all from the run's artefacts."""
    from huggingface_hub import ModelCard, ModelCardData

    model, kind = run.model, run.profile.variants[run.variant].pairs
    licence = _LICENCES.get(model.licence, "other")
    data = ModelCardData(
        language=run.profile.languages, license=licence, license_name=model.licence if licence == "other" else None,
        license_link=model.licence_url, library_name="transformers", pipeline_tag="text-generation",
        base_model=model.hub, tags=["detoxification", "dpo", "polydetox"],
    )  # fmt: skip
    evaluated = {language: (run.evaluation("base", language), run.evaluation(run.variant, language))
                 for language in run.profile.languages if run.evaluation(run.variant, language)}  # fmt: skip
    location = paths.checkpoint(model.name) / LOCATION
    base = (read_json(location).get("source") if location.is_file() else None) or {}
    return str(ModelCard.from_template(
        data, str(paths.root() / "params" / "model_card.md"), version=__version__, repository=repository, model=model,
        profile=run.profile, variant=run.variant, names=LANGUAGES, evaluated=evaluated, pairs_kind=kind,
        checkpoint_title=run.results.checkpoint_title,
        trim=run.read("trim", "metrics.json"), pairs=run.read("pairs", "metrics.json", kind=kind),
        revision=run.read("checkpoint").get("revision") or base.get("revision"),
        trained=run.read("dpo", variant=run.variant), training=run.read("dpo", "metrics.json", variant=run.variant),
        merged=run.read("merge", variant=run.variant), scored=run.read("score", variant=run.variant),
        confidence=[run.read("evaluate", variant=run.variant, lang=language)["parameters"]["confidence"]
                    for language in evaluated],
        pairs_source=sources().get("project-prompts" if kind in ON_POLICY else kind),
        prompts_source=sources().get(run.profile.prompts.source.replace("project", "project-prompts")),
    ))  # fmt: skip


def write_folder(run: TunedRun, repository: str | None = None) -> Path:
    """Write what is uploaded to a folder of the run, checked, and return it."""
    weights = run.folder("merge") / "weights"
    with atomic_folder(run.folder("push")) as temporary:
        for file in sorted(path for path in weights.rglob("*") if path.suffix in _WEIGHTS + _TEXTS):
            target = temporary / file.relative_to(weights)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix != ".json":
                link_or_copy(file, target)
            elif file.name != MANIFEST:
                # Where it names the folder that it came from, the base model's id stands instead.
                text, name = file.read_text("utf-8"), rf"\g<1>{json.dumps(run.model.hub or '')}"
                target.write_text(re.sub(r'("_?name_or_path": )"(?:\\.|[^"\\])*"', name, text), "utf-8")
        (temporary / "README.md").write_text(model_card(run, repository), "utf-8")
        check_folder(temporary)
    return run.folder("push")


def check_folder(folder: Path) -> None:
    """Refuse a folder with a secret or a path of this machine in one of its texts."""
    places = {str(place) for place in (paths.root(), paths.runs(), Path.home(), Path.home().resolve())}
    forbidden = {os.environ.get(name): f"holds the value of {name}" for name in _SECRETS}
    # Not / or /root, which may be part of a text.
    forbidden |= {place: "names a folder of this machine" for place in places if len(place) > 5}
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (*_TEXTS, ".md")):
        text = file.read_text("utf-8", "replace")
        wrong = [what for word, what in forbidden.items() if word and word in text]
        wrong += [f"holds what looks like a secret ({found[:6]}...)" for found in _TOKEN_LIKE.findall(text)]
        if wrong:
            raise UserError(f"{file.name}: {wrong[0]}; nothing was uploaded")


def push(
    model: str, profile: str, variant: str | None, repository: str | None, *, dry_run: bool, private: bool
) -> tuple[Path, str | None]:
    """Write the folder and, unless ``dry_run``, upload it; returns the folder and the commit's address."""
    if not dry_run:  # before the weights are hashed
        if not repository:
            raise UserError("say where to: --to owner/name, or --dry-run to write the folder only")
        if not paths.HUB_ID.fullmatch(repository):
            raise UserError(f"--to {repository!r}: use owner/name")
        if not os.environ.get("HF_TOKEN"):
            raise UserError("HF_TOKEN is not set: make a token that may write at "
                            "https://huggingface.co/settings/tokens and export it")  # fmt: skip
    folder = write_folder(find_run(model, profile, variant), repository)
    return folder, None if dry_run else upload(folder, str(repository), private=private)


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload the folder to a model repository of the Hub, made if it is not there; returns the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ["HF_TOKEN"])
    again = "and that HF_TOKEN may write there; what has been uploaded is not uploaded twice"
    with hub_errors(repository, "model", again, upload=True):
        api.create_repo(repository, private=private, exist_ok=True)
        message = f"Model and card made by polydetox {__version__}"
        return str(api.upload_folder(folder_path=folder, repo_id=repository, commit_message=message).commit_url)
