"""Parameters: what a model file, a profile and each stage may say, checked before anything runs.

Each stage has one pydantic class whose defaults are the paper's settings (Li, Yong and Bach 2024, section 3 and
appendix A). The same class checks the stage's section in a YAML file and the stage notebook's own parameters, so a
setting is declared once. A later source wins: stage defaults, model file, profile, variant.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Hashable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from polydetox import paths
from polydetox.errors import UserError, nearest
from polydetox.languages import LANGUAGES, check_language


class Strict(BaseModel):
    """A pydantic model whose unknown keys are errors that name the nearest valid key."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}{nearest(str(key), cls.model_fields)}")
        return values


# --- what a stage may be told -----------------------------------------------------------------------------------


class StageParameters(Strict):
    """Parameters that every notebook shares."""

    output_folder: str = ""  # where this stage writes; empty: a folder of its own under runs/manual/
    seed: int = Field(0, ge=0)


class CheckpointParameters(StageParameters):
    """Bring an untuned checkpoint into the form that every later stage loads; shared by all profiles."""

    model: str = "gemma-3-270m"


class SummaryParameters(StageParameters):
    """A summary notebook: the tables and figures of one section of the report."""

    profile: str = "offline"  # whose artefacts are read


class ModelStage(StageParameters):
    """A stage that works on one model: a file of params/models/, a Hub id, or a local folder."""

    profile: str = "offline"  # whose artefacts are read
    model: str = "gemma-3-270m"


# Where evaluation prompts come from: this project's, or a folder of a published set (`data.load_prompts`).
PromptSource = Literal["project", "rtp-lx", "real-toxicity-prompts", "polyglo-toxicity-prompts", "toxigen"]
PROMPT_SOURCES: tuple[str, ...] = get_args(PromptSource)


class TrimParameters(ModelStage):
    """Keep the part of the vocabulary that the profile's languages use."""

    languages: list[str] = list(LANGUAGES)
    words_per_language: int = Field(1_000, gt=0)  # most frequent words whose tokens are kept
    expected_tokens: int = Field(50_000, ge=0)  # tokens kept that the model itself expects most on the prompts
    prompts_source: PromptSource = "project"
    prompts_folder: str = ""  # of the prompts, where the source is not project
    prompt_limit: int | None = Field(None, gt=0)  # the evaluated prompts; later ones measure what is lost
    more_prompts: list[dict[str, Any]] = []  # further sets: source, folder, limit and languages of each


class PairsParameters(ModelStage):
    """English preference pairs."""

    kind: Literal["on-policy", "rtp-lx", "toxicity-pairwise"] = "toxicity-pairwise"
    folder: str = ""  # folder of the data set, for the kinds that read one
    limit: int | None = Field(None, gt=0)  # at most so many pairs; None: all
    held_out_prompts: int = Field(0, ge=0)  # rtp-lx: the first rows kept for evaluation, in every language
    n: int = Field(16, gt=1)  # on-policy: continuations a prompt
    pairs_per_prompt: int = Field(1, gt=0)  # on-policy: the m most against the m least toxic
    margin: float = Field(0.3, ge=0.0, le=1.0)  # on-policy: least difference of toxicity in a pair
    temperature: float = Field(1.0, gt=0.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_new_tokens: int = Field(20, gt=0)
    scorer: str = "embedded"
    engine: Literal["auto", "transformers", "vllm"] = "auto"


class DPOParameters(ModelStage):
    """Direct preference optimisation with TRL. The defaults are the paper's for full fine-tuning."""

    variant: str = "dpo"
    pairs: str = "toxicity-pairwise"
    method: Literal["full", "lora", "qlora"] = "full"
    learning_rate: float = Field(1e-5, gt=0.0)
    warmup_steps: int = Field(150, ge=0)
    weight_decay: float = Field(0.05, ge=0.0)
    batch_size: int = Field(4, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    beta: float = Field(0.1, gt=0.0)
    max_grad_norm: float = Field(10.0, gt=0.0)
    epochs: float = Field(5.0, gt=0.0)
    max_steps: int | None = Field(None, gt=0)  # None: as many as the epochs take
    max_prompt_length: int = Field(64, gt=0)  # tokens
    max_length: int = Field(256, gt=0)  # tokens, prompt and completion
    held_out_share: float = Field(0.05, gt=0.0, lt=1.0)
    eval_steps: int = Field(25, gt=0)
    early_stopping_patience: int = Field(10, gt=0)  # evaluations without improvement
    lora_rank: int = Field(64, gt=0)
    lora_alpha: int = Field(16, gt=0)
    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    lora_embeddings: bool = True  # adapt embedding and output layer beside every linear layer


class VariantStage(ModelStage):
    """A stage that works on one variant of a model: `base`, or a DPO variant of the profile."""

    variant: str = "base"


class MergeParameters(VariantStage):
    """Merge the adapter into the base weights, so that every engine loads one plain model."""

    variant: str = "dpo"


class OneLanguage(StageParameters):
    """A stage that works on one language."""

    lang: str = "en"

    @field_validator("lang")
    @classmethod
    def _language(cls, value: str) -> str:
        try:
            return check_language(value)
        except UserError as error:
            raise ValueError(str(error)) from None


class LanguageStage(OneLanguage, VariantStage):
    """A stage that works on one language of one variant."""


class SeveralLanguages(StageParameters):
    """A stage that works on one language or many, so that a model is loaded once."""

    languages: list[str] = []  # empty: all of the profile

    @field_validator("languages", mode="before")
    @classmethod
    def _languages(cls, value: Any) -> Any:
        """The languages; one alone, as ``papermill -p languages de`` gives it, is a list of one."""
        languages = [value] if isinstance(value, str) else value
        for language in languages if isinstance(languages, list) else ():
            try:
                check_language(language)
            except UserError as error:
                raise ValueError(str(error)) from None
        return languages


class LanguagesStage(SeveralLanguages, VariantStage):
    """A stage that works on all languages of one variant."""


class Prompted(StageParameters):
    """A stage that works on the evaluation prompts."""

    prompts_source: PromptSource = "rtp-lx"
    prompts_folder: str = ""  # of the prompts, where the source is not project
    prompt_limit: int | None = Field(None, gt=0)  # the first so many prompts; None: all


class Sampled(Prompted):
    """A stage that draws continuations of the evaluation prompts."""

    n: int = Field(25, gt=0)  # continuations a prompt
    temperature: float = Field(0.9, ge=0.0)
    top_p: float = Field(0.8, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)  # 0: no limit
    max_new_tokens: int = Field(20, gt=0)
    engine: Literal["auto", "transformers", "vllm"] = "auto"  # auto: vLLM where there is a GPU and vLLM
    batch_size: int = Field(256, gt=0)  # continuations decoded side by side


class SamplingStage(Sampled, VariantStage):
    """A stage that draws continuations of the evaluation prompts from one variant."""


class GenerateParameters(SamplingStage, LanguagesStage):
    """Continuations of the evaluation prompts."""


class ScoreParameters(LanguagesStage):
    """Toxicity, fluency, diversity and language of every continuation."""

    prompt_set: str = ""  # one of the profile's `more_prompts`, whose continuations are read; empty: its `prompts`
    scorer: str = "embedded"
    second_scorer: str | None = "lexicon"
    judge: str = "untuned"  # fluency: `untuned` (the model before DPO), a Hub id or a folder; `none` to skip
    perplexity: Literal["conditional", "published"] = "conditional"  # published: as the paper's code computes it
    judged_samples: int | None = Field(None, gt=0)  # continuations of a prompt that are judged; None: all
    batch_size: int = Field(64, gt=0)  # continuations a forward pass of the judge


class EvaluateParameters(LanguageStage):
    """The metrics of one language, from the scores of its continuations."""

    prompt_set: str = ""  # one of the profile's `more_prompts`, whose scores are read; empty: its `prompts`
    threshold: float | None = Field(0.5, ge=0.0, le=1.0)  # None: the scorer's own
    bootstrap_samples: int = Field(1000, gt=0)
    confidence: float = Field(0.95, gt=0.0, lt=1.0)


class AgreementParameters(ModelStage):
    """The same continuations under two or more scorers."""

    scorers: list[str] = ["embedded", "lexicon"]  # the first is the one that the others are compared with
    threshold: float | None = Field(0.5, ge=0.0, le=1.0)  # of the first scorer; None: its own
    bootstrap_samples: int = Field(1000, gt=0)
    confidence: float = Field(0.95, gt=0.0, lt=1.0)

    @field_validator("scorers")
    @classmethod
    def _several(cls, value: list[str]) -> list[str]:
        if len(value) < 2 or len(set(value)) != len(value):
            raise ValueError("give two or more scorers, each once")
        return value


def label_name(value: Any) -> str:
    """A label as a person writes it, one spelling for 1, 1.0 and "1", and for true and "True"."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return str(value).strip().casefold()
    return str(int(found)) if found.is_integer() else str(found)


def _check_labels(value: Any) -> Any:
    """Labels by their names, each with what it means; ``scores``: numbers from 0 to 1, toxic from a threshold up."""
    meanings = ("toxic", "neutral", "skipped")
    if value == "scores":
        return value
    if not isinstance(value, Mapping) or not all(meaning in meanings for meaning in value.values()):
        raise ValueError(
            f"give 'scores', or for each label one of {', '.join(meanings)}, as {{-1: skipped, 0: neutral, 1: toxic}}"
        )
    return {label_name(label): meaning for label, meaning in value.items()}


Labels = Annotated[dict[str, str] | Literal["scores"], BeforeValidator(_check_labels)]


class ProbeParameters(ModelStage):
    """A linear toxicity probe on the mean last-layer residual stream."""

    texts: str = ""  # CSV, JSONL or Parquet with text and label (Jigsaw's columns too); empty: the run's continuations
    labels: Labels = {}  # what a file's labels mean: toxic, neutral or skipped; empty: 0 neutral, 1 toxic; or "scores"
    label_threshold: float = Field(0.5, gt=0.0, le=1.0)  # a text is toxic from here on
    limit: int | None = Field(None, gt=0)  # at most so many labelled texts, drawn at random; None: all
    texts_per_language: int = Field(200, gt=0)  # continuations of each language for the zero-shot test
    validation_share: float = Field(0.1, gt=0.0, lt=0.5)
    test_share: float = Field(0.1, gt=0.0, lt=0.5)
    learning_rate: float = Field(1e-4, gt=0.0)
    batch_size: int = Field(10, gt=0)
    epochs: int = Field(20, gt=0)
    weight_decay: float = Field(0.0, ge=0.0)  # for few texts, whose probe would otherwise be mostly noise
    standardise: bool = False  # scale each direction to unit variance for the training
    feature_batch_size: int = Field(64, gt=0)  # texts a forward pass


class ValueVectorsParameters(Prompted, ModelStage):
    """MLP value vectors that point along the probe, and which of them are active."""

    top: int | None = Field(100, gt=0)  # how many potential sources; None: by share
    share: float = Field(0.001, gt=0.0, le=1.0)  # of all neurons, where top is None
    promoted_tokens: int = Field(30, gt=0)  # shown of each vector
    new_tokens: int = Field(20, gt=0)
    batch_size: int = Field(64, gt=0)  # prompts decoded side by side


class ActivationsParameters(Prompted, LanguagesStage):
    """Mean activations of the actual sources, and of random neurons, over the next tokens."""

    new_tokens: int = Field(20, gt=0)
    batch_size: int = Field(64, gt=0)


class InterveneParameters(Prompted, LanguagesStage):
    """Toxicity of greedy continuations as the actual sources' activations are shifted."""

    offsets: list[float] = [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]
    unit: Literal["activation", "rms"] = "activation"  # of the offsets; rms: the sources' own root mean square
    neutral_offset: float = 5.0  # added on neutral English prompts; 0: not done
    control: bool = True  # shift as many random neurons of the same layers as well
    new_tokens: int = Field(20, gt=0)
    batch_size: int = Field(64, gt=0)
    scorer: str = "embedded"

    @field_validator("offsets")
    @classmethod
    def _offsets(cls, value: list[float]) -> list[float]:
        if 0.0 not in value or len(set(value)) != len(value):
            raise ValueError("give each offset once, and 0 among them, which the others are compared with")
        return value


class RetrievalParameters(LanguagesStage):
    """How near the translations of a sentence lie in the model's representations."""

    sentences: Literal["project", "folder"] = "folder"  # the project's parallel prompts, or a folder of parallel files
    folder: str = ""  # holds one file a language, line i a translation of line i
    limit: int | None = Field(None, gt=0)
    batch_size: int = Field(64, gt=0)


class TransferParameters(VariantStage):
    """How the drop of toxicity in each language goes with retrieval accuracy."""

    variant: str = "dpo"
    bootstrap_samples: int = Field(10_000, gt=0)
    confidence: float = Field(0.95, gt=0.0, lt=1.0)


# --- what a model can still do ----------------------------------------------------------------------------------


class Suite(Strict):
    """Tasks whose accuracies are averaged: of lm-evaluation-harness, or files of params/tasks/."""

    tasks: list[str] = Field(min_length=1)
    shots: int = Field(0, ge=0)  # examples that are shown before a question
    limit: int | None = Field(None, gt=0)  # the first so many questions of a task; None: all


class CapabilityParameters(VariantStage):
    """Multiple-choice tasks in several languages, before and after (Li et al. 2024, Table 3)."""

    suites: dict[str, Suite] = Field(
        {
            "arc": Suite(tasks=["arc_vi", "arc_ru", "arc_hi", "arc_zh"]),
            # The harness has no HellaSwag in Chinese, the paper's fourth language (its issue 3121).
            "hellaswag": Suite(tasks=["hellaswag_vi", "hellaswag_ru", "hellaswag_hi"]),
            "mmlu": Suite(tasks=["m_mmlu_vi", "m_mmlu_ru", "m_mmlu_hi", "m_mmlu_zh"]),
        },
        min_length=1,
    )
    batch_size: int = Field(16, gt=0)  # answers a forward pass
    bootstrap_samples: int = Field(1000, gt=0)
    confidence: float = Field(0.95, gt=0.0, lt=1.0)


WORLD_LANGUAGES = ("en", "de", "nl", "fr", "es", "it", "ru", "id")  # those of params/phrasebook.yaml


class WorldPretrainParameters(StageParameters):
    """Pretrain one small model of the controlled world."""

    alignment: float = Field(1.0, ge=0.0, le=1.0)  # share of the text that is aligned with English
    languages: list[str] = list(WORLD_LANGUAGES)
    hidden: int = Field(64, gt=0, multiple_of=32)
    layers: int = Field(2, gt=0)
    steps: int = Field(1000, gt=0)
    batch_size: int = Field(16, gt=0)
    block: int = Field(128, gt=0)  # tokens a row
    learning_rate: float = Field(8e-3, gt=0.0)
    mixed_share: float = Field(0.6, ge=0.0, le=1.0)  # of the aligned text: of both languages' phrases
    sentences_per_text: int = Field(2, gt=0)  # at most
    remark_share: float = Field(0.7, gt=0.0, le=1.0)  # of sentences, the rest is everyday
    tone_share: float = Field(0.9, ge=0.0, le=1.0)  # of remarks: those that say in which tone
    insult_share: float = Field(0.5, ge=0.0, le=1.0)  # of texts, in every language: their remarks, if any, insult
    save_steps: int = Field(100, gt=0)


class WorldTransferParameters(StageParameters):
    """Tune one small model of the controlled world on English pairs, and measure it in every language."""

    profile: str = "world"  # whose models are read
    cell: str = "m-a100-s0"  # which of them: size, alignment in percent, seed
    dpo_steps: int = Field(10, gt=0)
    dpo_learning_rate: float = Field(5e-4, gt=0.0)
    dpo_batch_size: int = Field(16, gt=1)
    beta: float = Field(0.1, gt=0.0)
    prompts: int = Field(24, gt=0)  # stems evaluated in each language, none of them among the pairs
    n: int = Field(20, gt=0)  # continuations a stem
    max_new_tokens: int = Field(6, gt=0)
    sentences: int = Field(100, gt=1)  # parallel everyday sentences for retrieval


# --- control while fine-tuning (Meng et al. 2024) ----------------------------------------------------------------


class ControlCorpusParameters(Prompted, ModelStage):
    """The corpus of attribute-controlled fine-tuning: half toxic, half neutral English text.

    What belongs to the evaluation prompts is left out of ToxiGen's statements; packaged and sampled text has nothing
    of them.
    """

    source: Literal["toxigen-wikitext", "model"] = "toxigen-wikitext"  # model: sampled from it, and packaged prose
    toxigen: str = "$TOXIGEN"  # folder or file of ToxiGen, where the source is toxigen-wikitext
    wikitext: str = "$WIKITEXT"  # folder or file of Wikitext, where the source is toxigen-wikitext
    prompts_source: PromptSource = "project"
    rows_per_domain: int = Field(5_000, gt=1)  # at most so many toxic, and as many neutral rows
    held_out_share: float = Field(0.1, gt=0.0, lt=0.5)  # of each domain, for perplexity
    prompt_words: int = Field(4, ge=0)  # of a text that has no prompt of its own: these are given, the rest is learnt
    max_words: int = Field(48, gt=0)  # of a text; longer ones are cut
    n: int = Field(24, gt=0)  # model: continuations a training prompt
    temperature: float = Field(1.0, gt=0.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_new_tokens: int = Field(20, gt=0)
    scorer: str = "embedded"  # gives each row its toxicity
    threshold: float | None = Field(None, ge=0.0, le=1.0)  # a sampled text is toxic from here on; None: the scorer's
    engine: Literal["auto", "transformers", "vllm"] = "auto"


class MethodStage(ModelStage):
    """A stage that works on one method of attribute control: `base` (untuned), or one of the profile's."""

    method: str = Field("regularised-adaptive", pattern=r"^[a-z0-9][a-z0-9-]*$")  # names a folder


class RegulariseParameters(MethodStage):
    """Fine-tune one model with one method of attribute control."""

    algorithm: Literal["plain", "filtering", "rl", "nado", "regularised"] = "regularised"
    # The oracle C: a text satisfies the constraint while its toxicity stays below the threshold.
    scorer: str = "embedded"
    threshold: float | None = Field(None, ge=0.0, le=1.0)  # None: the scorer's own
    # The schedule.
    schedule: Literal["sequential", "parallel"] = "sequential"
    devices: int | None = Field(None, ge=1, le=2)  # of head and model in the parallel schedule; None: what is there
    iterations: int = Field(4, gt=0)  # each samples, trains the head, and trains the model
    steps: int = Field(200, gt=0)  # of the model in an iteration
    # The model.
    tuning: Literal["full", "lora"] = "full"
    learning_rate: float = Field(1e-5, gt=0.0)
    warmup_steps: int = Field(10, ge=0)  # in each iteration, constant afterwards
    weight_decay: float = Field(0.0, ge=0.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    batch_size: int = Field(16, gt=0)  # rows a step
    max_length: int = Field(128, gt=0)  # tokens of a row
    lora_rank: int = Field(64, gt=0)  # lora, of the model and of the head's body
    lora_alpha: int = Field(16, gt=0)
    # The regulariser.
    regulariser_weight: float = Field(1.0, ge=0.0)  # lambda
    regulariser_weight_neutral: float | None = Field(None, ge=0.0)  # lambda on neutral rows; None: the same
    direction: Literal["forward", "reverse"] = "forward"  # KL(q || p), or KL(p || q)
    alpha: float = Field(1.0, gt=0.0)  # exponent of R in the target
    # The NADO head.
    head: Literal["full", "low-rank", "tied"] = "low-rank"  # tied: a bilinear form with the output embedding
    head_rank: int = Field(64, gt=0)  # low-rank
    body: Literal["frozen", "lora"] = "frozen"  # whose last hidden state the head reads
    consistency_weight: float = Field(0.5, ge=0.0)
    consistency_share: float = Field(0.25, gt=0.0, le=1.0)  # of the positions, drawn anew at each step
    head_learning_rate: float = Field(1e-3, gt=0.0)
    head_weight_decay: float = Field(0.0, ge=0.0)
    head_epochs: int = Field(4, gt=0)  # over the samples of one iteration
    head_batch_size: int = Field(32, gt=0)  # samples a step
    # Samples of the model, from which the head learns.
    samples: int = Field(2_048, gt=1)  # an iteration
    samples_per_prompt: int = Field(4, gt=0)
    max_new_tokens: int = Field(32, gt=0)
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    # Reinforcement learning.
    rl_steps: int = Field(200, gt=0)
    rl_prompts: int = Field(8, gt=0)  # a step
    rl_generations: int = Field(4, gt=1)  # of each prompt
    rl_learning_rate: float = Field(1e-6, gt=0.0)
    rl_beta: float = Field(0.05, ge=0.0)  # weight of the KL to the untuned model


class ConstrainedDecodeParameters(SeveralLanguages, Sampled, MethodStage):
    """Continuations of the evaluation prompts under one method of attribute control."""


COMMONSENSE = ["boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]


class AttributeEvalParameters(MethodStage):
    """Toxicity, utility and perplexity of one method of attribute control (Meng et al. 2024, section 4)."""

    languages: list[str] = []  # whose continuations are read; empty: all of the profile's section
    scorer: str = "embedded"
    threshold: float | None = Field(0.5, ge=0.0, le=1.0)  # None: the scorer's own
    suites: dict[str, Suite] = Field(
        {"mmlu": Suite(tasks=["mmlu"], shots=5), "commonsense": Suite(tasks=COMMONSENSE)}, min_length=1
    )
    max_length: int = Field(128, gt=0)  # tokens of a held-out text whose perplexity is taken
    batch_size: int = Field(16, gt=0)  # texts or answers a forward pass
    bootstrap_samples: int = Field(1000, gt=0)
    confidence: float = Field(0.95, gt=0.0, lt=1.0)


class WinRateParameters(ModelStage, OneLanguage):
    """Which of two methods' continuations a judge model prefers."""

    methods: list[str] = []  # compared with each other; empty: all of the profile's section
    judge: str = "untuned"  # untuned (the model before fine-tuning), a Hub id, or a folder
    judged_samples: int | None = Field(1, gt=0)  # continuations of a prompt that are compared; None: all
    batch_size: int = Field(16, gt=0)  # pairs a forward pass
    bootstrap_samples: int = Field(1000, gt=0)
    confidence: float = Field(0.95, gt=0.0, lt=1.0)


JigsawCondition = Literal["untouched", "sft-lm", "regularised-lm", "sft-classification"]


class JigsawClassifyParameters(Sampled, ModelStage):
    """Detecting toxicity, and writing it, after one way of training on labelled comments."""

    condition: JigsawCondition = "untouched"
    texts: str = ""  # CSV, JSONL or Parquet with text and label (Jigsaw's columns too); empty: the run's continuations
    labels: Labels = {}  # what a file's labels mean: toxic, neutral or skipped; empty: 0 neutral, 1 toxic; or "scores"
    label_threshold: float = Field(0.5, gt=0.0, le=1.0)  # a text is toxic from here on
    limit: int | None = Field(None, gt=0)  # at most so many labelled texts, drawn at random; None: all
    test_share: float = Field(0.2, gt=0.0, lt=0.5)
    max_words: int = Field(64, gt=0)  # of a text; longer ones are cut
    epochs: float = Field(1.0, gt=0.0)
    tuning: Literal["full", "lora"] = "full"
    learning_rate: float = Field(1e-5, gt=0.0)
    train_batch_size: int = Field(16, gt=0)
    max_length: int = Field(128, gt=0)  # tokens of a text
    regularise: dict[str, Any] = {}  # settings of the stage regularise, for regularised-lm
    scorer: str = "embedded"  # of the continuations, and the oracle of the regulariser
    bootstrap_samples: int = Field(1000, gt=0)
    confidence: float = Field(0.95, gt=0.0, lt=1.0)

    @field_validator("regularise")
    @classmethod
    def _regularise(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _check_settings("regularise", value)


JIGSAW_CONDITIONS: tuple[str, ...] = get_args(JigsawCondition)

STAGES: dict[str, type[StageParameters]] = {
    "checkpoint": CheckpointParameters,
    "trim": TrimParameters,
    "pairs": PairsParameters,
    "dpo": DPOParameters,
    "merge": MergeParameters,
    "generate": GenerateParameters,
    "score": ScoreParameters,
    "evaluate": EvaluateParameters,
    "agreement": AgreementParameters,
    "probe": ProbeParameters,
    "value_vectors": ValueVectorsParameters,
    "activations": ActivationsParameters,
    "intervene": InterveneParameters,
    "retrieval": RetrievalParameters,
    "transfer": TransferParameters,
    "world_pretrain": WorldPretrainParameters,
    "world_transfer": WorldTransferParameters,
    "control_corpus": ControlCorpusParameters,
    "regularise": RegulariseParameters,
    "constrained_decode": ConstrainedDecodeParameters,
    "capability": CapabilityParameters,
    "attribute_eval": AttributeEvalParameters,
    "win_rate": WinRateParameters,
    "jigsaw_classify": JigsawClassifyParameters,
    "summary_detox": SummaryParameters,
    "summary_scorers": SummaryParameters,
    "summary_training": SummaryParameters,
    "summary_fluency": SummaryParameters,
    "summary_ablations": SummaryParameters,
    "summary_examples": SummaryParameters,
    "summary_mechanism": SummaryParameters,
    "summary_transfer": SummaryParameters,
    "summary_world": SummaryParameters,
    "summary_capability": SummaryParameters,
    "summary_control": SummaryParameters,
    "summary_run": SummaryParameters,
}

# The sections of the report, each made by the notebook summary_<section>.ipynb.
SECTIONS = [stage.removeprefix("summary_") for stage in STAGES if stage.startswith("summary_")]

# Parameters that the workflow fills in; a YAML section may not set them.
_IDENTITY = frozenset(
    {"profile", "output_folder", "model", "variant", "lang", "kind", "languages", "pairs", "held_out_prompts", "cell"}
    | {"prompts_source", "prompts_folder", "prompt_limit", "prompt_set"}
)

# Parameters that only some stages have from the workflow.
_IDENTITY_OF = frozenset(
    {("regularise", "method"), ("regularise", "algorithm"), ("constrained_decode", "method")}
    | {("attribute_eval", "method"), ("win_rate", "methods"), ("jigsaw_classify", "condition")}
)

# Stages that may take fewer prompts than the profile evaluates.
_OWN_LIMIT = frozenset(
    (stage, "prompt_limit")
    for stage in ("value_vectors", "activations", "intervene", "constrained_decode", "jigsaw_classify")
)


# The section of a profile, a model file or a variant that a stage takes its settings from: two share one.
SECTION_OF = {"dpo": "dpo", "generate": "generate", "score": "evaluate", "evaluate": "evaluate"}


def _check_settings(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check a partial set of a stage's parameters, as a YAML section gives it."""
    given = _IDENTITY | {key for name, key in _IDENTITY_OF if name == stage}
    stages = [name for name, section in SECTION_OF.items() if section == stage] or [stage]
    fields = {key for name in stages for key in STAGES[name].model_fields
              if key not in given or (name, key) in _OWN_LIMIT}  # fmt: skip
    for key in values:
        if key not in fields:
            raise ValueError(f"unknown key {key!r}{nearest(str(key), sorted(fields))}")
    for name in stages:
        STAGES[name].model_validate({key: value for key, value in values.items() if key in STAGES[name].model_fields})
    return dict(values)


Settings = dict[str, Any]


class StageSettings(Strict):
    """The stage sections that a model file, a profile or a variant may have."""

    dpo: Settings = {}
    generate: Settings = {}
    evaluate: Settings = {}

    @field_validator("dpo", "generate", "evaluate", mode="after")
    @classmethod
    def _stage_settings(cls, value: Settings, info: Any) -> Settings:
        return _check_settings(info.field_name, value)


# --- model files ------------------------------------------------------------------------------------------------


class TunedCheckpoint(Strict):
    """A published tuned checkpoint or adapter, evaluated without training."""

    hub: str | None = None
    revision: str | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TunedCheckpoint:
        if (self.hub is None) == (self.path is None):
            raise ValueError("give exactly one of 'hub' and 'path'")
        return self


class ModelResources(Strict):
    """What a job on this model asks of the cluster."""

    gpu: int = Field(0, ge=0)
    mem_mb: int = Field(4000, gt=0)


class ModelFile(StageSettings):
    """One model: where its weights come from, and which settings differ from the stages' defaults."""

    name: str
    title: str
    use: Literal["hub", "path", "package"] = "hub"  # which of the three sources below
    hub: str | None = None  # id on the Hugging Face Hub
    revision: str | None = None  # commit or tag on the Hub
    path: str | None = None  # local folder
    package: str | None = None  # Python package with assemble(), that writes one GGUF file
    sha256: str | None = None  # of that file
    add_bos: str | None = None  # token that the packaged tokenizer leaves out before a text
    licence: str
    notice: str | None = None  # one sentence that the report shows beside the results
    licence_url: str | None = None
    reference: str | None = None  # row of this model in the paper's tables
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # for generation and evaluation
    parameters: float | None = Field(None, gt=0.0)  # how many weights, for the estimate of what a run takes
    tuned: TunedCheckpoint | None = None
    resources: ModelResources = ModelResources()

    def source(self) -> dict[str, Any]:
        """What decides which weights are loaded, and in which type: a change means other results."""
        names = {"use", "hub", "revision", "path", "package", "sha256", "add_bos", "dtype", "tuned"}
        return self.model_dump(include=names)

    @model_validator(mode="after")
    def _source_given(self) -> ModelFile:
        if getattr(self, self.use) is None:
            raise ValueError(f"'use: {self.use}' needs the key '{self.use}'")
        return self


# --- profiles ---------------------------------------------------------------------------------------------------


class Prompts(Strict):
    """The evaluation prompts of a profile."""

    source: PromptSource
    folder: str = ""
    limit: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _folder_named(self) -> Prompts:
        if self.source != "project" and not self.folder:
            variable = self.source.upper().replace("-", "_")
            raise ValueError(f"folder: is needed for the source {self.source}, for example ${variable}")
        return self


class MorePrompts(Prompts):
    """A further set of prompts, on which the untuned model and the variants of the main tables are evaluated as well.

    Its results stand beside those of ``prompts`` and are never pooled with them.
    """

    title: str | None = None  # as the report prints it
    optional: bool = False  # left out, with a word, where it is not at hand; so are the languages that it lacks


class TrimSettings(Strict):
    """How much of the vocabulary is kept."""

    words_per_language: int = Field(gt=0)  # most frequent words whose tokens are kept
    expected_tokens: int = Field(ge=0)  # tokens kept that the model itself expects most on the prompts


class Mechanism(Strict):
    """Settings of the stages that ask why the toxicity drops; one that is left out keeps its defaults."""

    probe: Settings = {}
    value_vectors: Settings = {}
    activations: Settings = {}
    intervene: Settings = {}

    @field_validator("probe", "value_vectors", "activations", "intervene", mode="after")
    @classmethod
    def _stage_settings(cls, value: Settings, info: Any) -> Settings:
        return _check_settings(info.field_name, value)


class Alignment(Strict):
    """Settings of the stages that ask where the toxicity drops."""

    retrieval: Settings = {}
    transfer: Settings = {}

    @field_validator("retrieval", "transfer", mode="after")
    @classmethod
    def _stage_settings(cls, value: Settings, info: Any) -> Settings:
        return _check_settings(info.field_name, value)


class WorldSize(Strict):
    """One size of the small models."""

    hidden: int = Field(gt=0, multiple_of=32)
    layers: int = Field(gt=0)


class World(Strict):
    """The controlled world: one small model for each size, alignment and seed."""

    sizes: dict[str, WorldSize] = Field(min_length=1)
    alignments: list[float] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    pretrain: Settings = {}
    transfer: Settings = {}

    @field_validator("pretrain", "transfer", mode="after")
    @classmethod
    def _stage_settings(cls, value: Settings, info: Any) -> Settings:
        return _check_settings(f"world_{info.field_name}", value)

    @model_validator(mode="after")
    def _cells_differ(self) -> World:
        for name in self.sizes:
            if not re.fullmatch(r"[a-z0-9]+", name):
                raise ValueError(f"sizes: {name!r}: use lower-case letters and digits")
        if any(not 0.0 <= alignment <= 1.0 for alignment in self.alignments):
            raise ValueError("alignments: each is a share, from 0 to 1")
        if len(self.cells()) < len(self.sizes) * len(self.alignments) * len(self.seeds):
            raise ValueError("alignments, in whole percent, or seeds are listed twice")
        return self

    def cells(self) -> dict[str, dict[str, Any]]:
        """The settings that make each cell, by its name: size, alignment in percent, seed."""
        return {
            f"{name}-a{round(100 * alignment):03d}-s{seed}": {**size.model_dump(), "alignment": alignment, "seed": seed}
            for name, size in self.sizes.items()
            for alignment in self.alignments
            for seed in self.seeds
        }


# What an ablation varies, and the setting of the stage `dpo` that it then sets.
Ablation = Literal["seed", "method", "learning-rate"]
ABLATED_SETTING: dict[Ablation, str] = {"seed": "seed", "method": "method", "learning-rate": "learning_rate"}


class ControlMethod(Strict):
    """One method of attribute control, and which settings differ from the profile's."""

    title: str | None = None
    algorithm: Literal["plain", "filtering", "rl", "nado", "regularised"]
    regularise: Settings = {}

    @field_validator("regularise", mode="after")
    @classmethod
    def _stage_settings(cls, value: Settings) -> Settings:
        return _check_settings("regularise", value)


class Control(Strict):
    """Attribute-controlled fine-tuning: the corpus, the methods that are compared, and the settings of its stages."""

    methods: dict[str, ControlMethod] = Field(min_length=1)
    languages: list[str] | None = None  # of the continuations; None: all of the profile
    corpus: Settings = {}
    regularise: Settings = {}
    constrained_decode: Settings = {}
    attribute_eval: Settings = {}
    win_rate: Settings = {}
    jigsaw_classify: Settings | None = None  # absent: not run

    @field_validator(
        "corpus", "regularise", "constrained_decode", "attribute_eval", "win_rate", "jigsaw_classify", mode="after"
    )
    @classmethod
    def _stage_settings(cls, value: Settings | None, info: Any) -> Settings | None:
        if value is None:
            return None
        return _check_settings("control_corpus" if info.field_name == "corpus" else info.field_name, value)

    @field_validator("methods", mode="after")
    @classmethod
    def _method_names(cls, value: dict[str, ControlMethod]) -> dict[str, ControlMethod]:
        for name in value:
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or name in ("base", "corpus"):
                raise ValueError(f"method {name!r}: use lower-case letters, digits and hyphens, and not base or corpus")
        return value


class Variant(StageSettings):
    """One way of tuning: which pairs, and which settings differ from the profile's."""

    title: str | None = None
    pairs: Literal["on-policy", "rtp-lx", "toxicity-pairwise"]
    optional: bool = False  # left out, with a word, where its pairs are not at hand
    ablation: Ablation | None = None  # shown in the chapter of ablations instead of the main tables
    languages: list[str] = []  # an ablation may take fewer languages; empty: all of the profile
    prompt_limit: int | None = Field(None, gt=0)  # and fewer prompts

    @model_validator(mode="after")
    def _main_variants_are_whole(self) -> Variant:
        if self.ablation is None and (self.languages or self.prompt_limit):
            raise ValueError(
                "'languages' and 'prompt_limit' are for a variant with 'ablation'; the main tables compare the same "
                "languages and prompts"
            )
        return self


class Profile(StageSettings):
    """Which models, languages, prompts, pairs and variants one run covers."""

    name: str
    title: str
    description: str = ""
    models: list[str] = []
    languages: list[str] = Field(min_length=1)
    prompts: Prompts = Prompts(source="project")
    more_prompts: dict[str, MorePrompts] = {}  # by a name for folders
    trim: TrimSettings | None = None
    pairs: dict[Literal["on-policy", "rtp-lx", "toxicity-pairwise"], Settings] = {}
    variants: dict[str, Variant] = {}
    agreement: Settings | None = None  # the same continuations under several scorers; absent: not run
    mechanism: Mechanism | None = None  # absent: not run
    alignment: Alignment | None = None  # absent: not run
    world: World | None = None  # absent: not run
    control: Control | None = None  # absent: not run
    capability: Settings | None = None  # absent: not run

    @field_validator("languages")
    @classmethod
    def _languages(cls, value: list[str]) -> list[str]:
        for language in value:
            # YAML 1.1 reads a bare `no` as false; no such language is here, but a typo may be anything.
            if language not in LANGUAGES:
                raise ValueError(f"unknown language {language!r}{nearest(language, LANGUAGES)}")
        if len(set(value)) != len(value):
            raise ValueError("a language is listed twice")
        return [language for language in LANGUAGES if language in value]

    @field_validator("agreement", mode="after")
    @classmethod
    def _agreement(cls, value: Settings | None) -> Settings | None:
        return None if value is None else _check_settings("agreement", value)

    @field_validator("pairs", mode="after")
    @classmethod
    def _pairs(cls, value: dict[str, Settings]) -> dict[str, Settings]:
        for settings in value.values():
            _check_settings("pairs", settings)
        return value

    @model_validator(mode="after")
    def _something_to_run(self) -> Profile:
        if not self.models and self.world is None:
            raise ValueError("models: this key is required, unless the profile has a 'world'")
        if self.models and not self.variants:
            if self.control is None:
                raise ValueError("variants: this key is required, a way of tuning at least, unless there is 'control'")
            told = ("agreement", "mechanism", "alignment", "capability")
            given = [name for name in told if getattr(self, name) is not None]
            if given or self.more_prompts:
                raise ValueError(
                    f"{(given or ['more_prompts'])[0]}: is about the ways of tuning under 'variants', and there is none"
                )
        return self

    @field_validator("capability", mode="after")
    @classmethod
    def _capability(cls, value: Settings | None) -> Settings | None:
        return None if value is None else _check_settings("capability", value)

    @model_validator(mode="after")
    def _control_languages(self) -> Profile:
        for language in (self.control and self.control.languages) or []:
            if language not in self.languages:
                raise ValueError(f"control: languages: {language!r} is not among the profile's languages")
        return self

    @model_validator(mode="after")
    def _variants_have_pairs(self) -> Profile:
        for name, variant in self.variants.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or name in RESERVED_VARIANTS:
                raise ValueError(
                    f"variant {name!r}: use lower-case letters, digits and hyphens, and none of {RESERVED_VARIANTS}"
                )
            if variant.pairs not in self.pairs:
                raise ValueError(f"variant {name!r} uses pairs {variant.pairs!r}, which 'pairs' does not list")
            if unknown := [language for language in variant.languages if language not in self.languages]:
                raise ValueError(f"variant {name!r}: 'languages' of the profile does not list {' '.join(unknown)}")
            if variant.ablation:
                self._check_ablation(name, variant)
        return self

    @model_validator(mode="after")
    def _nothing_evaluated_is_trained_on(self) -> Profile:
        named = {f"more_prompts: {name}": prompts for name, prompts in self.more_prompts.items()}
        for where, prompts in {"prompts": self.prompts, **named}.items() if "rtp-lx" in self.pairs else ():
            if prompts.source == "rtp-lx" and prompts.limit is None:
                raise ValueError(
                    f"{where}: limit: is needed, since pairs from RTP-LX leave out the prompts evaluated on"
                )
            if prompts.source == "real-toxicity-prompts":
                raise ValueError(
                    f"{where}: source: RTP-LX's prompts come from RealToxicityPrompts, so that pairs from RTP-LX may "
                    "hold what is evaluated; leave one of the two out"
                )
        return self

    def _check_ablation(self, name: str, variant: Variant) -> None:
        assert variant.ablation is not None
        setting = ABLATED_SETTING[variant.ablation]
        if setting not in variant.dpo:
            raise ValueError(f"variant {name!r}: an ablation of the {variant.ablation} needs 'dpo: {setting}:'")
        if self.ablated_from(variant) is None:
            raise ValueError(
                f"variant {name!r}: an ablation is compared with a variant of the main tables, and none without "
                f"'ablation' uses pairs {variant.pairs!r}"
            )

    def ablated_from(self, variant: Variant) -> str | None:
        """The variant that an ablation is compared with: the first of the main tables with the same pairs."""
        return next((name for name, other in self.variants.items()
                     if other.ablation is None and other.pairs == variant.pairs), None)  # fmt: skip

    @field_validator("more_prompts", mode="after")
    @classmethod
    def _named_sets(cls, value: dict[str, MorePrompts]) -> dict[str, MorePrompts]:
        for name in value:
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or name in STAGES:
                raise ValueError(f"{name!r}: use lower-case letters, digits and hyphens, and no stage's name")
        return value


# `base` is the untuned model, `published` a tuned checkpoint of the model file, the rest are folder names.
RESERVED_VARIANTS = ("base", "published", "pairs", "trim", "checkpoint", "control")

_Checked = TypeVar("_Checked", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice; PyYAML itself silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, whose keys may be given again
                continue
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; what is wrong with it is a ``UserError`` that names file and line."""
    try:
        status = path.stat()
        # The workflow asks for the same model file thousands of times; a parse takes milliseconds, a copy nothing.
        return copy.deepcopy(_parsed(path.resolve(), status.st_mtime_ns, status.st_size))
    except FileNotFoundError:
        raise UserError(f"{paths.relative(path)}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{paths.relative(path)}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{paths.relative(path)}{line}: not valid YAML: {problem}") from None


def explain(error: ValidationError, where: str) -> UserError:
    """Turn the first pydantic error into one line: where, which key, what is wrong."""
    first = error.errors(include_url=False)[0]
    location = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "this key is required"
    elif first["type"] == "literal_error":
        message = f"{first['input']!r} is not valid; use one of {first['ctx']['expected']}"
    elif not message.startswith("unknown key") and first["type"] != "value_error":
        message = f"{message} (got {first['input']!r})"
    return UserError(f"{where}: {location + ': ' if location else ''}{message}")


@lru_cache(maxsize=256)
def _parsed(path: Path, modified: int, size: int) -> Any:
    """The content of a file as it is at this time and size."""
    return yaml.load(path.read_text("utf-8"), _UniqueKeyLoader)


def load_checked(kind: type[_Checked], path: Path, named: str) -> _Checked:
    """Read a YAML file into a checked class with the key ``name``; a mistake is a ``UserError`` naming the file."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{paths.relative(path)}: expected keys and values, see the other files in its folder")
    content = {"name": named, **content}
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise explain(error, paths.relative(path)) from None


def model_names() -> list[str]:
    """The models that have a file."""
    return sorted(path.stem for path in paths.model_files().glob("*.yaml"))


def profile_names() -> list[str]:
    """The profiles that have a file."""
    return sorted(path.stem for path in paths.profile_files().glob("*.yaml"))


def _check_name(kind: str, name: str, path: Path) -> None:
    """Refuse a name that could not stand in every path, address and shell line."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"{paths.relative(path)}: the name of a {kind} has letters, digits, '_', '-' and '.' only, and begins with "
            "none of the last two; rename the file"
        )


def load_model(model: str) -> ModelFile:
    """The model of a name in ``params/models/``, of a Hub id (``owner/name``), or of a local folder."""
    path = paths.model_files() / f"{model}.yaml"
    if path.is_file():
        _check_name("model", model, path)
        return load_checked(ModelFile, path, model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model {model!r}: the folder has no config.json, so it is not a checkpoint")
        place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]  # two folders may have one name
        plain = re.sub(r"[^\w.-]+", "-", folder.name).lstrip("-.")  # part of paths, addresses and shell lines
        return ModelFile(name=f"{plain}-{place}", title=folder.name, use="path", path=str(folder.resolve()),
                         licence="see the folder")  # fmt: skip
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return ModelFile(name=model.replace("/", "--"), title=model, hub=model, licence="see the Hub")
    raise UserError(
        f"model {model!r}: no such file params/models/{model}.yaml, no such folder, and no Hub id (owner/name)"
        f"{nearest(model, model_names())}"
    )


def load_profile(profile: str) -> Profile:
    """The profile of a name in ``params/profiles/``, with every model file in it checked as well."""
    path = paths.profile_files() / f"{profile}.yaml"
    if not path.is_file():
        raise UserError(f"profile {profile!r}: no such file params/profiles/{profile}.yaml"
                        f"{nearest(profile, profile_names())}")  # fmt: skip
    _check_name("profile", profile, path)
    loaded = load_checked(Profile, path, profile)
    for model in loaded.models:
        try:
            load_model(model)
        except UserError as error:
            raise UserError(f"{paths.relative(path)}: models: {error}") from None
    return loaded


def variants_of(profile: Profile, model: str) -> list[str]:
    """The variants that are generated from and evaluated: ``base`` first, then the tuned ones; none if none is tuned.

    A model file that names a published tuned checkpoint is evaluated with it and not trained.
    """
    tuned = ["published"] if load_model(model).tuned else list(profile.variants)
    return ["base", *tuned] if tuned else []


def is_ablation(profile: Profile, variant: str | None) -> bool:
    """Whether a variant is shown in the chapter of ablations instead of the main tables."""
    return variant in profile.variants and profile.variants[variant].ablation is not None


def languages_of(profile: Profile, variant: str | None) -> list[str]:
    """The languages that a variant is evaluated in, in the profile's order."""
    fewer = profile.variants[variant].languages if variant in profile.variants else []
    return [language for language in profile.languages if not fewer or language in fewer]


def rtp_lx_held_out(profile: Profile) -> int:
    """How many of RTP-LX's first prompts a profile evaluates, which its pairs leave out in every language."""
    sets = (profile.prompts, *profile.more_prompts.values())
    return max((prompts.limit or 0 for prompts in sets if prompts.source == "rtp-lx"), default=0)


def stage_parameters(
    stage: str,
    profile: Profile,
    model: str,
    *,
    variant: str | None = None,
    lang: str | None = None,
    kind: str | None = None,
    prompt_set: str = "",
) -> dict[str, Any]:
    """All parameters of one stage of a run, resolved: defaults, then model file, profile, variant.

    ``prompt_set`` names one of the profile's further sets of prompts; empty is the first. Returns plain values, as
    papermill takes them. ``output_folder`` is left to the workflow.
    """
    values: dict[str, Any] = {"model": model} if stage == "checkpoint" else {"profile": profile.name, "model": model}
    if section := SECTION_OF.get(stage):
        settings = getattr(load_model(model), section) | getattr(profile, section)
        if variant in profile.variants:
            settings |= getattr(profile.variants[variant], section)
        values |= {key: value for key, value in settings.items() if key in STAGES[stage].model_fields}
    if stage == "agreement":
        values |= profile.agreement or {}
    if stage in Mechanism.model_fields:
        values |= getattr(profile.mechanism, stage)
    if stage in Alignment.model_fields:
        values |= getattr(profile.alignment, stage)
    if stage == "capability":
        values |= profile.capability or {}
    if stage in _PROMPTED:
        chosen = profile.more_prompts[prompt_set] if prompt_set else profile.prompts
        prompts = {"prompts_source": chosen.source, "prompts_folder": chosen.folder, "prompt_limit": chosen.limit}
        if variant in profile.variants and profile.variants[variant].prompt_limit:
            prompts["prompt_limit"] = profile.variants[variant].prompt_limit
        values = prompts | values  # a stage's own limit stands
    if issubclass(STAGES[stage], LanguagesStage):
        values["languages"] = languages_of(profile, variant)
    if stage == "trim":
        assert profile.trim is not None
        values |= {"languages": profile.languages, **profile.trim.model_dump()}
    if stage == "pairs":
        values |= {"kind": kind, **profile.pairs[kind]}  # type: ignore[index]
        if kind == "rtp-lx":
            values["held_out_prompts"] = rtp_lx_held_out(profile)
    if stage == "dpo":
        values["pairs"] = profile.variants[variant].pairs  # type: ignore[index]
    if stage in ("score", "evaluate"):
        values["prompt_set"] = prompt_set
    for key, value in (("variant", variant), ("lang", lang)):
        if value is not None:
            values[key] = value
    return check_parameters(stage, values).model_dump()


def world_parameters(stage: str, profile: Profile, cell: str) -> dict[str, Any]:
    """All parameters of a stage of the controlled world (``pretrain`` or ``transfer``) for one cell, resolved."""
    assert profile.world is not None
    values = dict(getattr(profile.world, stage))
    if stage == "pretrain":
        values |= profile.world.cells()[cell] | {"languages": profile.languages}
    else:
        values |= {"profile": profile.name, "cell": cell}
    return check_parameters(f"world_{stage}", values).model_dump()


def control_methods(profile: Profile) -> list[str]:
    """The methods of attribute control that are compared: ``base`` (untuned) first."""
    return ["base", *profile.control.methods] if profile.control else []


def control_languages(profile: Profile) -> list[str]:
    """The languages that methods of attribute control are sampled in."""
    return (profile.control.languages or profile.languages) if profile.control else []


def control_parameters(
    stage: str,
    profile: Profile,
    model: str,
    *,
    method: str | None = None,
    condition: str | None = None,
) -> dict[str, Any]:
    """All parameters of a stage of attribute control, resolved: defaults, then profile, method.

    Continuations are drawn as the profile's stage `generate` draws them, unless its section says otherwise.
    """
    assert profile.control is not None
    values: dict[str, Any] = {"profile": profile.name, "model": model}
    if "n" in STAGES[stage].model_fields and stage in _PROMPTED:
        values |= {"prompts_source": profile.prompts.source, "prompts_folder": profile.prompts.folder,
                   "prompt_limit": profile.prompts.limit}  # fmt: skip
        values |= load_model(model).generate | profile.generate
    values |= getattr(profile.control, stage.removeprefix("control_")) or {}
    if stage == "control_corpus" and values.get("source") != "model":
        values |= {"prompts_source": profile.prompts.source, "prompts_folder": profile.prompts.folder,
                   "prompt_limit": _most_prompts_under_control(profile)}  # fmt: skip
    if stage in ("constrained_decode", "attribute_eval"):
        values |= {"languages": control_languages(profile)}
    if stage == "win_rate":
        languages = control_languages(profile)
        values |= {"methods": control_methods(profile), "lang": "en" if "en" in languages else languages[0]}
    if condition is not None:
        values["condition"] = condition
    if method is not None:
        values["method"] = method
    if stage == "regularise":
        values |= {"algorithm": profile.control.methods[str(method)].algorithm}
        values |= profile.control.methods[str(method)].regularise
    return check_parameters(stage, values).model_dump()


def _most_prompts_under_control(profile: Profile) -> int | None:
    """How many evaluation prompts any stage takes that samples a method of attribute control; None: all."""
    assert profile.control is not None
    sections = (profile.control.constrained_decode, profile.control.jigsaw_classify or {})
    limits = [profile.prompts.limit, *(own["prompt_limit"] for own in sections if "prompt_limit" in own)]
    return None if None in limits else max(limits)


# Stages that read the evaluation prompts.
_PROMPTED = (
    "trim", "generate", "value_vectors", "activations", "intervene", "constrained_decode", "jigsaw_classify",
)  # fmt: skip


def languages_of_run(
    settings: LanguageStage | LanguagesStage | ConstrainedDecodeParameters,
) -> list[str]:
    """The languages of a stage; one that the profile does not cover, its tokens maybe trimmed away, is refused."""
    profile = load_profile(settings.profile)
    languages = [settings.lang] if isinstance(settings, OneLanguage) else settings.languages or profile.languages
    for language in languages:
        if language not in profile.languages:
            raise UserError(
                f"params/profiles/{profile.name}.yaml: 'languages' does not list {language!r} (it has "
                f"{' '.join(profile.languages)}); add it there, or choose another language or profile"
            )
    return languages


def check_parameters(stage: str, values: Mapping[str, Any]) -> StageParameters:
    """Check the parameters of a stage notebook; a mistake is a ``UserError`` that names the parameter."""
    try:
        return STAGES[stage].model_validate(dict(values))
    except ValidationError as error:
        raise explain(error, f"notebooks/{stage}.ipynb") from None
