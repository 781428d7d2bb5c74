"""The parameters of a notebook: declared once, in its parameters cell, and checked against that declaration.

A line of the cell is ``name: type = default  # comment``, with Python's types and the ones below, which say the range.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (  # noqa: F401 - types of parameters, which notebooks take from here
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)  # fmt: skip

from polydetox.core import paths
from polydetox.core.errors import UserError, nearest
from polydetox.core.languages import check_language

Section = dict[str, Any]  # of a profile or model file: some settings of a notebook


class Strict(BaseModel):
    """A pydantic model whose unknown keys are errors that name the nearest valid key."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key, value in values.items():
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}{nearest(str(key), cls.model_fields)}")
                given = value if isinstance(value, list) else [value]
                truths = [each for each in given if isinstance(each, bool)]
                kinds = _kinds(cls.model_fields[key].annotation) if truths else set()
                if kinds & {int, float} and bool not in kinds:
                    raise ValueError(f"{key}: {str(truths[0]).lower()} is no number (in YAML yes and on are true)")
        return values

    @model_validator(mode="after")
    def _seed_is_a_seed(self) -> Strict:
        if (seed := getattr(self, "seed", None) or 0) >= 2**32:  # of numpy
            raise ValueError(f"seed: {seed} is too large; give one below {2**32}")
        return self


def _kinds(kind: Any) -> set[Any]:
    """The classes that a field's type is, or is one of."""
    parts = get_args(kind)
    if get_origin(kind) is Annotated:
        return _kinds(parts[0])
    return set[Any]().union(*map(_kinds, parts)) if get_origin(kind) in (Union, UnionType, list) else {kind}


# What a notebook's parameters are: an instance of the class that its parameters cell declares.
Settings = Any

AtLeastTwo = Annotated[int, Field(ge=2)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
ProperFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
BelowHalf = Annotated[float, Field(gt=0.0, lt=0.5)]

Dtype = Literal["float32", "bfloat16", "float16"]
Bos = Literal["tokenizer", "always"]  # in front of a text: where the tokenizer puts it, or wherever it has such a token
Engine = Literal["auto", "transformers", "vllm"]
# How evaluation prompts are laid out: this project's, a published set, or a reader's own (`data.prompts.load_prompts`).
PromptSource = Literal["project", "rtp-lx", "real-toxicity-prompts", "polyglo-toxicity-prompts", "toxigen", "own"]
# A request for politeness before a prompt (`data.prompts.politeness`).
Prefix = Literal["none", "english", "own-language"]


def _pair(value: list[str]) -> list[str]:
    if len(value) not in (0, 2):
        raise ValueError(f"give an expert and an anti-expert, as [dpo, dpo-swapped] (got {value!r})")
    return value


# Whose logits steer the sampling (`generation.sampling.steered`): an expert and an anti-expert; none: nothing does.
Experts = Annotated[list[str], AfterValidator(_pair)]


def _language(value: str) -> str:
    try:
        return check_language(value)
    except UserError as error:
        raise ValueError(str(error)) from None


def _distinct(what: str, least: int = 1, among: Any = ()) -> AfterValidator:
    """A list of ``least`` values or more, no two of them alike, with those of ``among``; ``what`` is the remedy."""

    def check(value: list[Any]) -> list[Any]:
        if len(value) < least or len(set(value)) != len(value) or not set(among) <= set(value):
            raise ValueError(what)
        return value

    return AfterValidator(check)


Language = Annotated[str, AfterValidator(_language)]
# One alone, as ``papermill -p languages de`` gives it, is a list of one.
_listed = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Languages = Annotated[list[Language], _listed, _distinct("give one language or more, each once")]
_OFFSETS = "give each offset once, and 0 among them, which the others are compared with"
Offsets = Annotated[list[float], _distinct(_OFFSETS, 1, [0.0])]
Scorers = Annotated[list[str], _distinct("give two or more scorers, each once", 2)]


def label_name(value: Any) -> str:
    """A label as a person writes it, one spelling for 1, 1.0 and "1", and for true and "True"."""
    try:
        number = float(str(value))  # not of True, which is a word
    except ValueError:
        return str(value).strip().casefold()
    return str(int(number)) if number.is_integer() else str(number)


def _labels(value: Any) -> Any:
    if value == "scores":
        return value
    if not isinstance(value, Mapping) or not set(value.values()) <= {"toxic", "neutral", "skipped"}:
        raise ValueError("give 'scores', or for each label one of toxic, neutral, skipped, as "
                         "{-1: skipped, 0: neutral, 1: toxic}")  # fmt: skip
    return {label_name(label): meaning for label, meaning in value.items()}


# What the labels of a file mean, each by its name; ``scores``: numbers from 0 to 1, toxic from a threshold up.
Labels = Annotated[dict[str, str] | Literal["scores"], BeforeValidator(_labels)]


class Suite(Strict):
    """Tasks whose accuracies are averaged: of lm-evaluation-harness, or files of params/tasks/."""

    tasks: list[str] = Field(min_length=1)
    shots: int = Field(0, ge=0)  # examples that are shown before a question
    limit: int | None = Field(None, gt=0)  # the first so many questions of a task; None: all


class PairColumns(Strict):
    """What the columns of a reader's own preference data are called: of pairs, or of completions with a label."""

    prompt: str | None = "prompt"  # None: the sides are conversations, whose common beginning is the prompt
    chosen: str = "chosen"
    rejected: str = "rejected"
    label: str | None = None  # whether a completion is desirable; None: the data are pairs
    completion: str = "completion"  # of unpaired data, in place of the two sides


Suites = Annotated[dict[str, Suite], Field(min_length=1)]


def notebook_file(stage: str) -> Path:
    """The notebook of a stage, whichever chapter's folder it lies in."""
    if found := next(paths.notebooks().glob(f"*/{stage}.ipynb"), None):
        return found
    raise UserError(f"{paths.relative(paths.notebooks())}: no notebook {stage}.ipynb")


def parameters_cell(notebook: Path) -> str:
    """The source of a notebook's cell that is tagged ``parameters``."""
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"]
             if "parameters" in cell["metadata"].get("tags", [])]  # fmt: skip
    if len(cells) != 1:
        raise UserError(f"{paths.relative(notebook)}: {len(cells)} cells are tagged 'parameters'; one must be")
    return "".join(cells[0]["source"])


def declaration(stage: str) -> type[Strict]:
    """The class of a stage's parameters, with their types and defaults, from its notebook."""
    file = notebook_file(stage)
    return _declaration(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=128)
def _declaration(notebook: Path, _modified: int) -> type[Strict]:
    cell: dict[str, Any] = {}
    exec(compile(parameters_cell(notebook), str(notebook), "exec"), cell)  # a committed cell of plain declarations
    return declared(notebook.stem, cell["__annotations__"], cell)


def declared(stage: str, annotations: Mapping[str, Any], defaults: Mapping[str, Any]) -> type[Strict]:
    """The class whose fields are the annotated names of a namespace, with their values there as defaults."""
    fields: dict[str, Any] = {name: (kind, defaults[name]) for name, kind in annotations.items()}
    return create_model(stage, __base__=Strict, **fields)


def checked(stage: str, **values: Any) -> Settings:
    """The parameters of a stage, those not given at their defaults; a mistake is a ``UserError`` that names it."""
    return validated(declaration(stage), values, paths.relative(notebook_file(stage)))


def validated(kind: Any, values: Any, where: str) -> Any:
    """Plain values as a class or another type; a mistake is a ``UserError`` that names place and key."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{where}: {problem(error)}") from None


def problem(error: ValidationError) -> str:
    """The first pydantic error in one line: which key, what is wrong."""
    first = error.errors(include_url=False)[0]
    message = {
        "missing": "this key is required",
        "literal_error": f"{first['input']!r} is not valid; use one of {first.get('ctx', {}).get('expected')}",
        "value_error": first["msg"].removeprefix("Value error, "),
    }.get(first["type"], f"{first['msg']} (got {first['input']!r})")
    return ": ".join(filter(None, [".".join(str(part) for part in first["loc"] if part != "[key]"), message]))


def section_of(*notebooks: str) -> AfterValidator:
    """A section holds settings of some notebooks: their parameters, any number of them."""

    def check(values: Section | None) -> Section | None:
        try:
            if values is not None:
                _joined(*map(declaration, notebooks)).model_validate(values)
        except ValidationError as error:
            raise ValueError(problem(error)) from None
        return values

    return AfterValidator(check)


def _steps_follow(values: Section) -> Section:
    if given := sorted({"steps", "batch_size"} & set(values)):
        raise ValueError(f"{given[0]!r} follows from 'epochs' and 'train_batch_size'; leave it out")
    own = ["checkpoint", "corpus", "output_folder", "algorithm", "max_length"]
    if given := [name for name in own if name in values]:
        raise ValueError(f"{given[0]!r} is the notebook's own; leave it out here")
    return values


# Settings of the stage regularise in a notebook that decides itself how many steps it takes.
Regularised = Annotated[Section, AfterValidator(_steps_follow), section_of("regularise")]


@cache
def _joined(*declarations: type[Strict]) -> type[Strict]:
    return create_model("section", __base__=declarations)
