"""``polydetox push``: a tuned model with a card made of its run's artefacts, in a folder and on the Hugging Face Hub.

Nothing in the card is typed in: figures, settings, hashes and versions come from the manifests and metrics of the
stages. A checkpoint that is not the one that was evaluated is refused. What is uploaded holds no secret, no path of
this machine and no prompt or continuation; the tokenizer's vocabulary is the model's own and holds what it holds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydetox import __version__
from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, atomic_folder, folder_sha256, read_json
from polydetox.core.errors import UserError, nearest
from polydetox.core.languages import LANGUAGES
from polydetox.core.params import ModelFile, Profile, load_model, load_profile, variants_of
from polydetox.data.catalogue import source
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

# Which sources a kind of pairs is made of.
_PAIR_SOURCES = {"on-policy": "project-prompts", "rtp-lx": "rtp-lx", "toxicity-pairwise": "toxicity-pairwise"}

# Settings of the training that a card lists, in this order.
_SETTINGS = (
    "method", "pairs", "learning_rate", "warmup_steps", "weight_decay", "batch_size", "gradient_accumulation_steps",
    "beta", "max_grad_norm", "epochs", "max_steps", "max_prompt_length", "max_length", "held_out_share", "eval_steps",
    "early_stopping_patience", "loss", "seed",
)  # fmt: skip
_LORA_SETTINGS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_embeddings")

_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PERSPECTIVE_API_KEY", "KAGGLE_API_TOKEN", "KAGGLE_KEY",
            "POLYDETOX_ZIP_PASSWORD")  # fmt: skip
_TOKEN_LIKE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bAIza[0-9A-Za-z_-]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class TunedRun:
    """The artefacts of one tuned variant of a model."""

    profile: Profile
    model: ModelFile
    listed: str  # the model as the profile lists it
    variant: str
    results: Results
    merged: Path  # the folder of the stage that wrote the plain checkpoint

    def manifest(self, stage: str, **wildcards: str) -> dict[str, Any]:
        """The manifest of a stage of the model; empty where it was not run."""
        return self._read(MANIFEST, stage, wildcards)

    def metrics(self, stage: str, **wildcards: str) -> dict[str, Any]:
        """The figures of a stage of the model; empty where it was not run."""
        return self._read("metrics.json", stage, wildcards)

    def _read(self, name: str, stage: str, wildcards: dict[str, str]) -> dict[str, Any]:
        folder = self.results.folder(stage, model=self.model.name, **wildcards)
        return dict(read_json(folder / name)) if folder else {}


def find_run(model: str, profile: str, variant: str | None) -> TunedRun:
    """The tuned variant that a reader means; a ``UserError`` where there is none, or more than one."""
    settings, model_file = load_profile(profile), load_model(model)
    listed = next((name for name in settings.models if load_model(name).name == model_file.name), None)
    if listed is None:
        raise UserError(
            f"params/profiles/{profile}.yaml: 'models' does not list {model!r}{nearest(model, settings.models)}"
        )
    trained = [name for name in variants_of(settings, listed) if name in settings.variants]
    if not trained:
        raise UserError(f"{model}: profile {profile!r} trains no variant of it; there is nothing of yours to upload")
    results = Results(record_file(profile))
    merges = {run.variant: run for run in results.stages if run.stage == "merge" and run.model == model_file.name}
    done = [name for name in trained if name in merges and merges[name].done]
    if variant is None:
        if len(done) > 1:
            raise UserError(f"{model}: {', '.join(done)} are trained; say which with --variant")
        variant = done[0] if done else trained[0]
    if variant not in trained:
        raise UserError(f"{model}: no variant {variant!r}{nearest(variant, trained)}")
    if variant not in done:
        where = paths.relative(merges[variant].folder) if variant in merges else model
        raise UserError(f"{where}: variant {variant!r} of {model} is not trained and merged yet; "
                        f"run `polydetox run --profile {profile}` first")  # fmt: skip
    run = TunedRun(settings, model_file, listed, variant, results, merges[variant].folder)
    _check_whole(run)
    return run


def _check_whole(run: TunedRun) -> None:
    """Refuse a checkpoint that was changed, or is not what its training left and its evaluation measured."""
    merged = run.manifest("merge", variant=run.variant)
    again = f"run `polydetox run --profile {run.profile.name}` again"
    if folder_sha256(run.merged / "weights") != merged["output_sha256"]:
        raise UserError(f"{paths.relative(run.merged / 'weights')}: changed since it was merged; {again}")
    trained = run.manifest("dpo", variant=run.variant).get("output_sha256")
    if trained not in merged["inputs"].values():
        raise UserError(f"{paths.relative(run.merged)}: merged before the last training; {again}")
    if any(_evaluated(run, run.variant, language) for language in run.profile.languages):
        folder = run.results.folder("generate", model=run.model.name, variant=run.variant)
        if folder is None or merged["output_sha256"] not in read_json(folder / MANIFEST).get("inputs", {}).values():
            where = paths.relative(folder or run.merged)
            raise UserError(f"{where}: the continuations are another checkpoint's; {again}")


def _evaluated(run: TunedRun, variant: str, language: str) -> dict[str, Any]:
    return run.metrics("evaluate", variant=variant, lang=language)


# --- the card ---------------------------------------------------------------------------------------------------


def model_card(run: TunedRun, repository: str | None = None) -> str:
    """The model card: front matter as the Hub reads it, then prose and tables, all from the run's artefacts."""
    from huggingface_hub import ModelCardData

    model = run.model
    hub_licence = _LICENCES.get(model.licence, "other")
    evaluated = [language for language in run.profile.languages if _evaluated(run, run.variant, language)]
    data = ModelCardData(
        language=run.profile.languages,
        license=hub_licence,
        license_name=model.licence if hub_licence == "other" else None,
        license_link=model.licence_url,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=model.hub,
        tags=["detoxification", "dpo", "polydetox"],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {model.title}, tuned against toxicity ({run.variant})",
        _summary(run, repository),
        "## Intended use\n\n" + _INTENDED,
        "## Languages\n\n" + _languages(run),
        "## Results\n\n" + (_results(run, evaluated) if evaluated else "This checkpoint was not evaluated."),
        "## Training\n\n" + _training(run),
        "## Data and licences\n\n" + _data(run),
        "## Reproduction\n\n" + _reproduction(run),
    ]
    return "\n\n".join(parts) + "\n"


_INTENDED = """\
For research on how preference tuning against toxicity carries over to other languages. The model still writes toxic
text; how often is in the table below. It has not been tested for other harms, nor as an assistant, and the metrics come
from an automatic scorer, which has its own errors in each language. It is not meant for use with the public."""


def _summary(run: TunedRun, repository: str | None) -> str:
    model = run.model
    base = f"[{model.hub}](https://huggingface.co/{model.hub})" if model.hub else "a local checkpoint"
    tuned = "fully fine-tuned" if _parameters(run).get("method") == "full" else "tuned with an adapter, merged here"
    sentences = [
        f"{model.title} ({base}) after direct preference optimisation on English pairs, {tuned}.",
        "It repeats Li, Yong and Bach (2024), *Preference Tuning for Toxicity Mitigation Generalizes Across Languages* "
        "([arXiv 2406.16235](https://arxiv.org/abs/2406.16235)), with the data and settings below.",
    ]
    if model.use == "package":
        sentences.append(
            "The weights that it was trained from are 4-bit weights out of a Python package, dequantised: they are "
            f"not those of {model.hub or 'the original'} to the last digit."
        )
    trim = run.metrics("trim") if run.profile.trim else {}
    if trim:
        sentences.append(
            f"\n\n**The vocabulary is trimmed** to {trim['vocabulary_kept']:,} of {trim['vocabulary_full']:,} tokens "
            f"({trim['share_kept']:.0%}), those that the languages below use. Token ids differ from the base model's: "
            "its tokenizer and its adapters do not go with these weights, and text in other languages falls back to "
            f"smaller pieces. The kept tokens held {trim['probability_mass_kept']:.1%} of the next-token probability "
            f"on prompts that the choice had {'not ' if trim['measured_on_unseen_prompts'] else ''}seen."
        )
    if model.notice:
        sentences.append(f"\n\n{model.notice.strip()}")
    return " ".join(sentences).replace(" \n\n", "\n\n") + _usage(repository)


def _usage(repository: str | None) -> str:
    if not repository:
        return ""
    return (
        "\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{repository}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{repository}")\n```'
    )


def _languages(run: TunedRun) -> str:
    names = [f"{LANGUAGES[language]} ({language})" for language in run.profile.languages]
    return f"Evaluated in {', '.join(names)}. Preference pairs were English only."


def _results(run: TunedRun, evaluated: list[str]) -> str:
    first = _evaluated(run, run.variant, evaluated[0])
    manifest = run.manifest("score", variant=run.variant)
    rows = ["| language | EMT | ToxProb | average toxicity | median perplexity | in language |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    columns = (("emt", 3), ("toxprob", 3), ("avgtox", 3), ("perplexity", 1), ("language_share", 3))
    for language in evaluated:
        before, after = _evaluated(run, "base", language), _evaluated(run, run.variant, language)
        cells = [f"{_value(before, name, digits)} → {_value(after, name, digits)}" for name, digits in columns]
        rows.append(f"| {LANGUAGES[language]} | {' | '.join(cells)} |")
    missing = [language for language in run.profile.languages if language not in evaluated]
    return (
        f"Before → after, on {first['prompts']} prompts a language with "
        f"{first['continuations'] // max(1, first['prompts'])} continuations each. EMT is the mean over prompts of the "
        "highest toxicity of its continuations, ToxProb the share of prompts with a continuation at or above "
        f"{first['threshold']:g}. Scorer: `{first['scorer']}` (revision {manifest.get('scorer_revision')}); the "
        f"paper's is the Perspective API. Perplexity under `{first['judge']}`. In brackets, the "
        f"{_confidence(run, evaluated[0]):.0%} interval of the bootstrap by prompt.\n\n"
        + "\n".join(rows)
        + (f"\n\nNot evaluated: {', '.join(missing)}." if missing else "")
    )


def _value(metrics: dict[str, Any], name: str, digits: int) -> str:
    measured = metrics.get(name) or {}
    measured = (measured.get("median") or {}) if name == "perplexity" else measured
    if measured.get("value") is None:
        return "not run"
    interval = f" [{measured['low']:.{digits}f}, {measured['high']:.{digits}f}]" if name == "emt" else ""
    return f"{measured['value']:.{digits}f}{interval}"


def _confidence(run: TunedRun, language: str) -> float:
    manifest = run.manifest("evaluate", variant=run.variant, lang=language)
    return float(manifest["parameters"]["confidence"])


def _parameters(run: TunedRun) -> dict[str, Any]:
    return dict(run.manifest("dpo", variant=run.variant).get("parameters", {}))


def _training(run: TunedRun) -> str:
    settings = _parameters(run)
    figures = run.metrics("dpo", variant=run.variant)
    names = _SETTINGS if settings.get("method") == "full" else _SETTINGS + _LORA_SETTINGS
    rows = [f"| {name} | {settings[name]} |" for name in names if settings.get(name) is not None]
    difference = run.manifest("merge", variant=run.variant).get("largest_logit_difference", 0.0)
    merged = (
        f" The adapter was merged in float32; logits before and after differ by {difference:.2g} at most."
        if settings.get("method") != "full"
        else ""
    )
    untuned = "; 0.693 untuned" if settings.get("loss", "sigmoid") == "sigmoid" else ""
    return (
        f"DPO with TRL on {figures['pairs_train']} pairs, {figures['pairs_held_out']} held out, with RMSprop and a "
        "constant learning rate after the warm-up. Kept was the checkpoint with the lowest held-out loss, of step "
        f"{figures['best_step']} of {figures['steps']} ({figures['held_out_loss']:.3f}{untuned}).{merged}\n\n"
        "| setting | value |\n|---|---|\n" + "\n".join(rows)
    )


def _data(run: TunedRun) -> str:
    kind = run.profile.variants[run.variant].pairs
    pairs = run.metrics("pairs", kind=kind)
    made = source(_PAIR_SOURCES[kind])
    asked = run.profile.prompts.source
    prompts = source("project-prompts" if asked == "project" else asked)
    pairs_line = f"- Preference pairs: {pairs.get('pairs', 'an unrecorded number of')} of kind `{kind}`"
    if kind == "on-policy":
        pairs_line += (
            f", sampled from the untuned model and ranked by the scorer `{pairs['scorer']}`, on English prompts of the "
            f"project ({made.licence})"
        )
    else:
        pairs_line += f", from {made.title} ({made.address}; licence: {made.licence})"
    licence = f"[{run.model.licence}]({run.model.licence_url})" if run.model.licence_url else run.model.licence
    return "\n".join([
        f"- Base model: {licence}. Its terms hold for this model as well.",
        f"{pairs_line}.",
        f"- Evaluation prompts: {prompts.title} ({prompts.address}; licence: {prompts.licence}).",
    ])  # fmt: skip


def _reproduction(run: TunedRun) -> str:
    trained, merged = (run.manifest(stage, variant=run.variant) for stage in ("dpo", "merge"))
    untuned = paths.checkpoint(run.model.name)
    revision = run.manifest("checkpoint").get("revision") or (
        (read_json(untuned / LOCATION).get("source") or {}).get("revision") if (untuned / LOCATION).is_file() else None
    )
    packages = ("python", "torch", "transformers", "trl", "peft", "bitsandbytes")
    versions = [f"{name} {trained['versions'][name]}" for name in packages if name in trained["versions"]]
    return "\n".join([
        f"- polydetox {__version__}, profile `{run.profile.name}`, variant `{run.variant}`, "
        f"commit `{trained.get('git_commit') or 'unknown'}`",
        f"- base model's revision: {f'`{revision}`' if revision else 'not pinned, or not from the Hub'}",
        f"- sha256 over the merged checkpoint's files, as its run records it: "
        f"`{merged['output_sha256']}`",
        f"- {', '.join(versions)}",
    ])  # fmt: skip


# --- the folder, and its upload ---------------------------------------------------------------------------------


def write_folder(run: TunedRun, repository: str | None = None) -> Path:
    """Write what is uploaded to a folder of the run, checked, and return it."""
    folder = paths.profile_run(run.profile.name) / run.model.name / run.variant / "push"
    with atomic_folder(folder) as temporary:
        for file in sorted((run.merged / "weights").rglob("*")):
            target = temporary / file.relative_to(run.merged / "weights")
            if not file.is_file() or file.suffix not in _WEIGHTS + _TEXTS or file.name == MANIFEST:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json":
                target.write_text(_without_paths(file, run.model.hub), "utf-8")
            elif file.suffix in _WEIGHTS:
                _link(file, target)
            else:
                shutil.copyfile(file, target)
        (temporary / "README.md").write_text(model_card(run, repository), "utf-8")
        check_folder(temporary)
    return folder


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(file, target)


def _without_paths(file: Path, hub: str | None) -> str:
    """A JSON file of a checkpoint; where it names the folder it came from, the base model's id stands instead."""
    text = file.read_text("utf-8")
    content = json.loads(text)
    named = [key for key in ("_name_or_path", "name_or_path") if isinstance(content, dict) and key in content]
    if not named:
        return text
    for key in named:
        content[key] = hub or ""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def check_folder(folder: Path) -> None:
    """Refuse a folder with a secret or a path of this machine in one of its texts."""
    secrets = {name: os.environ[name] for name in _SECRETS if os.environ.get(name)}
    places = {str(place) for place in (paths.root(), paths.runs(), Path.home(), Path(os.path.realpath(Path.home())))}
    places = {place for place in places if len(place) > 5}  # not / or /root, which may be part of a text
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (*_TEXTS, ".md")):
        text = file.read_text("utf-8", "replace")
        for name, value in secrets.items():
            if value in text:
                raise UserError(f"{file.name}: holds the value of {name}; nothing was uploaded")
        if found := _TOKEN_LIKE.search(text):
            raise UserError(f"{file.name}: holds what looks like a secret ({found[0][:6]}...); nothing was uploaded")
        for place in places:
            if place in text:
                raise UserError(f"{file.name}: names a folder of this machine; nothing was uploaded")


def check_destination(repository: str) -> str:
    """The token of ``HF_TOKEN``; a ``UserError`` where it is not set, or the repository's name is none."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"--to {repository!r}: use owner/name")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError(
            "HF_TOKEN is not set: make a token that may write at https://huggingface.co/settings/tokens and export it"
        )
    return token


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Upload the folder to a model repository of the Hub, made if it is not there; returns the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(token=check_destination(repository))
    again = "and that HF_TOKEN may write there; what has been uploaded is not uploaded twice"
    with hub_errors(repository, "model", again, upload=True):
        api.create_repo(repository, private=private, exist_ok=True)
        message = f"Model and card made by polydetox {__version__}"
        return str(api.upload_folder(folder_path=folder, repo_id=repository, commit_message=message).commit_url)


def push(
    model: str, profile: str, variant: str | None, repository: str | None, *, dry_run: bool, private: bool
) -> tuple[Path, str | None]:
    """Write the folder and, unless ``dry_run``, upload it; returns the folder and the commit's address."""
    if not dry_run and not repository:
        raise UserError("say where to: --to owner/name, or --dry-run to write the folder only")
    if not dry_run:
        check_destination(str(repository))  # before the weights are hashed
    run = find_run(model, profile, variant)
    folder = write_folder(run, repository)
    return folder, None if dry_run else upload(folder, str(repository), private=private)
