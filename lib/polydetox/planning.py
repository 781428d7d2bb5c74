"""What a run costs before it starts: seconds, disk and money of each stage, and how long a number of GPUs takes.

The jobs and their order are those of Snakemake's own graph. What a job takes is its work (tokens times parameters, the
unit in which a forward pass costs the same for every size of model) over the rate of its device, and what is paid once
a job: the notebook, the engine, the reading of the weights. The rates, and the texts' sizes where the data are not at
hand, are in ``params/rates.yaml``, each with its source.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from polydetox import paths
from polydetox.errors import UserError
from polydetox.params import (
    STAGES,
    Strict,
    check_parameters,
    control_parameters,
    is_ablation,
    load_checked,
    load_model,
    load_profile,
    stage_parameters,
)

GIGABYTE = 1e9
HOUR = 3600.0
_WEIGHT_BYTES = 2  # a checkpoint's floats are 16 bits wide
_TRAINED_BYTES = 4  # full fine-tuning and adapters are in float32


# --- the rates --------------------------------------------------------------------------------------------------


class Number(Strict):
    """A number and where it comes from."""

    value: float = Field(gt=0.0)
    source: str

    @field_validator("source")
    @classmethod
    def _measured_or_assumed(cls, value: str) -> str:
        if not value.startswith(("measured", "assumed")):
            raise ValueError("begin with 'measured on ...' or 'assumed, from ...'")
        return value


class Device(Strict):
    """How fast one device works. Work is tokens times parameters."""

    decode: Number  # sampled tokens times parameters, a second, many continuations side by side
    forward: Number  # read tokens times parameters, a second
    train: Number  # trained tokens times parameters, a second: forward, backward and update
    load: Number  # bytes of weights a second
    engine: Number  # seconds that the generation engine takes to start, the weights left out


class Rates(Strict):
    """The content of ``params/rates.yaml``."""

    name: str
    cpu: Device  # of one core
    gpu: Device
    notebook: Number  # seconds of a notebook beside its work: kernel, figures, writing
    download: Number  # bytes a second from the Hub
    gpu_hour: Number  # price of a GPU for an hour
    currency: str
    prompts: Number  # evaluation prompts a language, where the data are not at hand
    prompt_tokens: Number
    pairs: Number  # preference pairs, where the data are not at hand
    pair_tokens: Number  # of a prompt with one of its two continuations
    stopping_step: Number  # where early stopping ends DPO, if the epochs have not
    labelled_texts: Number  # of the probe, where the data are not at hand
    labelled_tokens: Number
    task_answers: Number  # of a multiple-choice task
    answer_tokens: Number  # with its question
    question_tokens: Number  # of what a judge or detector is asked, without the texts that it is asked about
    sentences: Number  # parallel sentences, where the data are not at hand
    row_bytes: Number  # of a continuation in a table
    notebook_bytes: Number  # of an executed notebook
    parameters: dict[str, Number]  # of judges and scorers, by name

    @classmethod
    def read(cls, path: Path | None = None) -> Rates:
        """Read and check the file; by default the project's."""
        return load_checked(cls, path or paths.root() / "params" / "rates.yaml", "rates")

    def size(self, name: str) -> float:
        """The parameters of a judge, a scorer or a model that is no file of this profile."""
        if name in self.parameters:
            return self.parameters[name].value
        with contextlib.suppress(UserError):
            return model_parameters(name)
        raise UserError(f"params/rates.yaml: parameters: {name!r} is not listed; add how many parameters it has")


@cache
def model_parameters(model: str) -> float:
    """How many parameters a model has: as its file says, or counted in a local folder."""
    file = load_model(model)
    if file.parameters:
        return file.parameters
    if file.use == "path" and file.path:
        weights = Path(file.path).expanduser().glob("*.safetensors")
        size = sum(path.stat().st_size for path in weights)
        if size:
            return size / (4 if file.dtype == "float32" else _WEIGHT_BYTES)
    raise UserError(f"model {model!r}: 'parameters' is not given; add to its file how many it has (1.3e+9)")


# --- jobs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A job of the workflow: one notebook, or the rendering."""

    stage: str
    name: str  # the stage and what it works on
    gpus: int = 0
    threads: int = 1
    priority: int = 0
    needs: tuple[int, ...] = ()  # positions of the jobs that it waits for
    parameters: Mapping[str, Any] = field(default_factory=dict)
    pending: bool = True  # whether it would run now


def jobs_of(profile: str, targets: Iterable[str] = (), *, everything: bool = False) -> list[Job]:
    """The jobs of Snakemake's graph of a profile; with ``everything`` as if none of them had run yet."""
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import WorkflowError
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True, enable_file_logging=False)) as api:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=1), snakefile=paths.root() / "Snakefile",
                config_settings=ConfigSettings(config={"profile": profile}), workdir=paths.root(),
            )  # fmt: skip
            graph = workflow.dag(DAGSettings(targets=set(targets), forceall=everything))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                graph.printrulegraph()  # which builds the graph of jobs
            dag = workflow._workflow.dag
            found = list(TopologicalSorter({job: list(dag.dependencies[job]) for job in dag.jobs}).static_order())
            numbers = {job: number for number, job in enumerate(found)}
            return [_job(job, [numbers[other] for other in dag.dependencies[job]], dag.needrun(job)) for job in found]
    except WorkflowError as error:
        raise UserError(f"profile {profile!r}: Snakemake cannot make its graph: {error}") from None


def _job(job: Any, needs: list[int], pending: bool) -> Job:
    parameters = dict(job.params.items()).get("parameters")
    return Job(
        stage=job.rule.name, name=" ".join([job.rule.name, *job.wildcards_dict.values()]),
        gpus=int(job.resources.get("gpu") or 0), threads=int(job.threads), priority=int(job.rule.priority),
        needs=tuple(sorted(needs)), parameters=json.loads(parameters) if parameters else {}, pending=pending,
    )  # fmt: skip


# --- what a job costs -------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What one job takes: work in tokens times parameters, bytes, and seconds that are paid once."""

    decode: float = 0.0
    forward: float = 0.0
    train: float = 0.0
    loaded: float = 0.0  # bytes of weights that are read
    downloaded: float = 0.0  # bytes
    engines: int = 0
    disk: float = 0.0  # bytes that stay
    scratch: float = 0.0  # bytes that are removed at its end

    def seconds(self, device: Device, rates: Rates, share: int = 1) -> float:
        """On one GPU, or on ``share`` cores."""
        work = self.decode / device.decode.value + self.forward / device.forward.value + self.train / device.train.value
        once = self.loaded / device.load.value + self.engines * device.engine.value
        return work / share + once + self.downloaded / rates.download.value + rates.notebook.value


class Costs:
    """What each job of a profile costs."""

    def __init__(self, profile: str, rates: Rates):
        self.profile = load_profile(profile)
        self.rates = rates
        self._sampling: dict[tuple[str, str, str], dict[str, Any]] = {}

    def of(self, job: Job) -> Cost:
        """The cost of one job."""
        made = getattr(self, f"_{job.stage}", None)
        cost: Cost = made(job.parameters, job) if made and job.parameters else Cost()
        cost.disk += self.rates.notebook_bytes.value
        return cost

    def seconds(self, job: Job) -> float:
        """How long one job takes on its own device."""
        device, share = (self.rates.gpu, 1) if job.gpus else (self.rates.cpu, job.threads)
        return 0.0 if job.stage == "site" else self.of(job).seconds(device, self.rates, share)

    # What the texts are, as far as the profile limits them.

    def _prompts(self, settings: Mapping[str, Any]) -> float:
        limit = settings.get("prompt_limit")
        return (
            limit or _prompt_count(settings["prompts_source"], settings["prompts_folder"]) or self.rates.prompts.value
        )

    def _pairs_of(self, kind: str) -> float:
        settings = self.profile.pairs[kind]  # type: ignore[index]
        if kind == "on-policy":
            return _training_prompts() * settings.get("pairs_per_prompt", 1)
        return settings.get("limit") or self.rates.pairs.value

    def _languages(self, settings: Mapping[str, Any]) -> int:
        return len(settings.get("languages") or self.profile.languages)

    def _loaded(self, model: str) -> float:
        return _WEIGHT_BYTES * model_parameters(model)

    # One method a stage; a stage without one costs its notebook.

    def _checkpoint(self, settings: Mapping[str, Any], job: Job) -> Cost:
        weights = self._loaded(settings["model"])
        on_hub = load_model(settings["model"]).use == "hub"
        return Cost(downloaded=weights if on_hub else 0, loaded=2 * weights, disk=weights)

    def _trim(self, settings: Mapping[str, Any], job: Job) -> Cost:
        size, weights = model_parameters(settings["model"]), self._loaded(settings["model"])
        tokens = self._prompts(settings) * self.rates.prompt_tokens.value * len(settings["languages"])
        return Cost(forward=tokens * size, loaded=weights, disk=weights)

    def _pairs(self, settings: Mapping[str, Any], job: Job) -> Cost:
        if settings["kind"] != "on-policy":
            return Cost(disk=self._pairs_of(settings["kind"]) * self.rates.row_bytes.value)
        rows = _training_prompts() * settings["n"]
        size = model_parameters(settings["model"])
        scored = rows * settings["max_new_tokens"] * self.rates.size(settings["scorer"])
        return Cost(decode=rows * settings["max_new_tokens"] * size, forward=scored, engines=1,
                    loaded=self._loaded(settings["model"]), disk=rows * self.rates.row_bytes.value)  # fmt: skip

    def _dpo(self, settings: Mapping[str, Any], job: Job) -> Cost:
        size = model_parameters(settings["model"])
        pairs = self._pairs_of(settings["pairs"])
        held_out = pairs * settings["held_out_share"]
        batch = settings["batch_size"] * settings["gradient_accumulation_steps"]
        steps = min(settings["epochs"] * (pairs - held_out) / batch, settings["max_steps"] or math.inf)
        steps = min(steps, max(self.rates.stopping_step.value, settings["eval_steps"]))
        evaluated = held_out * (1 + steps // settings["eval_steps"])
        sequence = 2 * self.rates.pair_tokens.value  # chosen and rejected
        # Log-probabilities of the reference model are computed once for every pair.
        read = (evaluated + pairs) * sequence * size
        whole = settings["method"] == "full"
        trained = size if whole else size * _ADAPTER_SHARE
        return Cost(train=steps * batch * sequence * size, forward=read, loaded=self._loaded(settings["model"]),
                    disk=trained * _TRAINED_BYTES, scratch=2 * 2 * trained * _TRAINED_BYTES)  # fmt: skip

    def _merge(self, settings: Mapping[str, Any], job: Job) -> Cost:
        weights = self._loaded(settings["model"])
        variant = self.profile.variants.get(settings["variant"])
        method = (load_model(settings["model"]).dpo | self.profile.dpo | (variant.dpo if variant else {})).get("method")
        merged = method not in (None, "full")  # a whole checkpoint is linked
        return Cost(loaded=weights * (3 if merged else 1), disk=weights if merged else 0,
                    downloaded=weights if settings["variant"] == "published" else 0)  # fmt: skip

    def _sampled(self, settings: Mapping[str, Any], languages: int) -> Cost:
        size, prompts = model_parameters(settings["model"]), self._prompts(settings) * languages
        rows = prompts * settings["n"]
        return Cost(decode=rows * settings["max_new_tokens"] * size,
                    forward=prompts * self.rates.prompt_tokens.value * size, engines=1,
                    loaded=self._loaded(settings["model"]), disk=rows * self.rates.row_bytes.value)  # fmt: skip

    def _generate(self, settings: Mapping[str, Any], job: Job) -> Cost:
        return self._sampled(settings, self._languages(settings))

    def _scored(self, settings: Mapping[str, Any], languages: int) -> Cost:
        """Two scorers and the judge read the continuations of some languages."""
        sampling = self._generation(settings)
        prompts = self._prompts(sampling) * languages
        rows, length = prompts * sampling["n"], sampling["max_new_tokens"]
        scorers = [self.rates.size(name) for name in (settings["scorer"], settings["second_scorer"]) if name]
        judge = settings["judge"]
        size = 0.0 if judge == "none" else (
            model_parameters(settings["model"]) if judge == "untuned" else self.rates.size(judge)
        )  # fmt: skip
        judged = prompts * min(settings["judged_samples"] or sampling["n"], sampling["n"])
        read = judged * length + prompts * self.rates.prompt_tokens.value  # a prompt is read once
        return Cost(forward=rows * length * sum(scorers) + read * size, loaded=_WEIGHT_BYTES * (sum(scorers) + size),
                    disk=rows * self.rates.row_bytes.value)  # fmt: skip

    def _generation(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with which the continuations were drawn."""
        key = (settings["model"], settings["variant"], settings.get("prompt_set", ""))
        if key not in self._sampling:
            self._sampling[key] = stage_parameters("generate", self.profile, key[0], variant=key[1], prompt_set=key[2])
        return self._sampling[key]

    def _score(self, settings: Mapping[str, Any], job: Job) -> Cost:
        return self._scored(settings, self._languages(settings))

    _generate_more, _score_more = _generate, _score

    def _control_corpus(self, settings: Mapping[str, Any], job: Job) -> Cost:
        """Both halves are scored; where the toxic one is sampled, whatever is drawn is scored for it."""
        half = settings["rows_per_domain"] * settings["max_words"]
        scorer = self.rates.size(settings["scorer"])
        cost = Cost(forward=2 * half * scorer, loaded=_WEIGHT_BYTES * scorer,
                    disk=2 * settings["rows_per_domain"] * self.rates.row_bytes.value)  # fmt: skip
        if settings["source"] == "model":
            drawn = _training_prompts() * settings["n"] * settings["max_new_tokens"]
            cost.decode, cost.engines = drawn * model_parameters(settings["model"]), 1
            cost.forward = (drawn + half) * scorer
            cost.loaded += self._loaded(settings["model"])
        return cost

    def _regularise(self, settings: Mapping[str, Any], job: Job) -> Cost:
        size, length = model_parameters(settings["model"]), settings["max_new_tokens"]
        if settings["algorithm"] == "rl":
            drawn = settings["rl_steps"] * settings["rl_prompts"] * settings["rl_generations"] * length
            return Cost(decode=drawn * size, train=drawn * size, loaded=self._loaded(settings["model"]),
                        disk=size * _TRAINED_BYTES)  # fmt: skip
        tunes = settings["algorithm"] != "nado"  # whose head constrains decoding alone
        tuned = settings["steps"] * settings["batch_size"] * settings["max_length"] if tunes else 0
        with_head = settings["algorithm"] in ("nado", "regularised")
        drawn = settings["samples"] * length if with_head else 0
        cost = Cost(decode=drawn * size, forward=drawn * settings["head_epochs"] * size, train=tuned * size)
        cost.decode, cost.forward, cost.train = (
            settings["iterations"] * value for value in (cost.decode, cost.forward, cost.train)
        )
        cost.loaded, cost.disk = self._loaded(settings["model"]), size * _TRAINED_BYTES if tunes else 0
        return cost

    _constrained_decode = _generate

    def _continued(self, model: str, method: str) -> dict[str, Any]:
        """The parameters with which the continuations of a method of attribute control were drawn."""
        return control_parameters("constrained_decode", self.profile, model, method=method)

    def _attribute_eval(self, settings: Mapping[str, Any], job: Job) -> Cost:
        """A scorer reads the continuations, the model the held-out rows of the corpus and the questions."""
        size, scorer = model_parameters(settings["model"]), self.rates.size(settings["scorer"])
        sampling = self._continued(settings["model"], settings["method"])
        rows = self._prompts(sampling) * sampling["n"] * len(settings["languages"])
        corpus = control_parameters("control_corpus", self.profile, settings["model"])
        held_out = 2 * corpus["rows_per_domain"] * corpus["held_out_share"] * settings["max_length"]
        read = held_out + self._answered(settings["suites"])
        return Cost(forward=rows * sampling["max_new_tokens"] * scorer + read * size,
                    loaded=self._loaded(settings["model"]) + _WEIGHT_BYTES * scorer,
                    disk=rows * self.rates.row_bytes.value)  # fmt: skip

    def _win_rate(self, settings: Mapping[str, Any], job: Job) -> Cost:
        """The judge reads two continuations of a prompt of every two methods, in both orders."""
        sampling = self._continued(settings["model"], settings["methods"][0])
        judged = min(settings["judged_samples"] or sampling["n"], sampling["n"])
        pairs = math.comb(len(settings["methods"]), 2) * self._prompts(sampling) * judged
        texts = self.rates.prompt_tokens.value + 2 * sampling["max_new_tokens"]
        judge = settings["judge"]
        size = model_parameters(settings["model"]) if judge == "untuned" else self.rates.size(judge)
        return Cost(forward=2 * pairs * (self.rates.question_tokens.value + texts) * size, loaded=_WEIGHT_BYTES * size,
                    disk=pairs * self.rates.row_bytes.value)  # fmt: skip

    def _jigsaw_classify(self, settings: Mapping[str, Any], job: Job) -> Cost:
        """Training on a part of the comments, detecting the others by a prompt and with a head, and sampling."""
        size, condition = model_parameters(settings["model"]), settings["condition"]
        comments = self._labelled(settings)
        train, test = comments * (1 - settings["test_share"]), comments * settings["test_share"]
        length = min(self.rates.labelled_tokens.value, settings["max_length"])
        cost = self._sampled(settings, 1)
        cost.forward += test * (length + self.rates.question_tokens.value) * size  # by prompting
        if condition == "sft-classification":
            cost.train += settings["epochs"] * train * length * size
            cost.forward += test * length * size
            cost.disk += 2 * size * _TRAINED_BYTES  # the classifier, and the language model on its body
        else:
            cost.forward += comments * length * size  # the frozen states that a head is fitted to
        if condition in ("sft-lm", "regularised-lm"):
            trained = self._regularise(self._comment_training(settings, train), job)
            cost.decode, cost.forward = cost.decode + trained.decode, cost.forward + trained.forward
            cost.train, cost.disk = cost.train + trained.train, cost.disk + trained.disk
        if condition != "untouched":
            cost.loaded += size * _TRAINED_BYTES
        scorer = self.rates.size(settings["scorer"])
        cost.forward += self._prompts(settings) * settings["n"] * settings["max_new_tokens"] * scorer
        cost.loaded += _WEIGHT_BYTES * scorer
        return cost

    def _comment_training(self, settings: Mapping[str, Any], train: float) -> dict[str, Any]:
        """The settings with which a language-model condition trains on so many comments."""
        regularised = settings["condition"] == "regularised-lm"
        values = {"model": settings["model"], "batch_size": settings["train_batch_size"],
                  "max_length": settings["max_length"], "iterations": 1,
                  "algorithm": "regularised" if regularised else "plain",
                  **(settings["regularise"] if regularised else {})}  # fmt: skip
        steps = math.ceil(settings["epochs"] * train / settings["train_batch_size"])
        values["steps"] = max(1, round(steps / values["iterations"]))
        return check_parameters("regularise", values).model_dump()

    def _labelled(self, settings: Mapping[str, Any]) -> float:
        """How many labelled texts there are: of a file, or the continuations that the pairs were made of."""
        return settings["limit"] or (
            self.rates.labelled_texts.value if settings["texts"] else _training_prompts() * _ON_POLICY_SAMPLES
        )

    def _probe(self, settings: Mapping[str, Any], job: Job) -> Cost:
        size = model_parameters(settings["model"])
        tokens = self._labelled(settings) * self.rates.labelled_tokens.value
        tokens += settings["texts_per_language"] * len(self.profile.languages) * self.rates.prompt_tokens.value * 2
        return Cost(forward=tokens * size, loaded=self._loaded(settings["model"]))

    def _greedy(self, settings: Mapping[str, Any], runs: float = 1.0) -> Cost:
        """Greedy continuations of the prompts, ``runs`` times over."""
        size, prompts = model_parameters(settings["model"]), self._prompts(settings) * runs
        return Cost(decode=prompts * settings["new_tokens"] * size,
                    forward=prompts * self.rates.prompt_tokens.value * size,
                    loaded=self._loaded(settings["model"]))  # fmt: skip

    def _value_vectors(self, settings: Mapping[str, Any], job: Job) -> Cost:
        return self._greedy(settings)

    def _activations(self, settings: Mapping[str, Any], job: Job) -> Cost:
        return self._greedy(settings, self._languages(settings))

    def _intervene(self, settings: Mapping[str, Any], job: Job) -> Cost:
        runs = len(settings["offsets"]) * (2 if settings["control"] else 1) * self._languages(settings)
        cost = self._greedy(settings, runs)
        scorer = self.rates.size(settings["scorer"])
        cost.forward += self._prompts(settings) * runs * settings["new_tokens"] * scorer
        cost.loaded += _WEIGHT_BYTES * scorer
        return cost

    def _agreement(self, settings: Mapping[str, Any], job: Job) -> Cost:
        sampling = self._generation({"model": settings["model"], "variant": "base"})
        variants = 1 + sum(not is_ablation(self.profile, name) for name in self.profile.variants)
        rows = self._prompts(sampling) * sampling["n"] * len(self.profile.languages) * variants
        sizes = [self.rates.size(name) for name in settings["scorers"]]
        # The evaluations have scored with the first.
        return Cost(forward=rows * sampling["max_new_tokens"] * sum(sizes[1:]), loaded=_WEIGHT_BYTES * sum(sizes[1:]),
                    disk=rows * self.rates.row_bytes.value)  # fmt: skip

    def _answered(self, suites: Mapping[str, Mapping[str, Any]]) -> float:
        """Tokens of multiple-choice questions, each answer with as many examples before it as are shown."""
        return self.rates.answer_tokens.value * sum(
            self._answers(task, suite["limit"]) * (1 + suite["shots"])
            for suite in suites.values()
            for task in suite["tasks"]
        )

    def _answers(self, task: str, limit: int | None) -> float:
        """How many answers a task has: counted where it is this project's, else four a question."""
        own = _choices(task)
        if own is not None:
            return sum(own[:limit])
        return 4 * limit if limit else self.rates.task_answers.value

    def _capability(self, settings: Mapping[str, Any], job: Job) -> Cost:
        read = self._answered(settings["suites"]) * model_parameters(settings["model"])
        return Cost(forward=read, loaded=self._loaded(settings["model"]))

    def _retrieval(self, settings: Mapping[str, Any], job: Job) -> Cost:
        size = model_parameters(settings["model"])
        sentences = (settings["limit"] or self.rates.sentences.value) * self._languages(settings)
        return Cost(forward=sentences * self.rates.prompt_tokens.value * size, loaded=self._loaded(settings["model"]))

    def _world_pretrain(self, settings: Mapping[str, Any], job: Job) -> Cost:
        tokens = settings["steps"] * settings["batch_size"] * settings["block"]
        return Cost(train=tokens * 12 * settings["layers"] * settings["hidden"] ** 2)

    def _world_transfer(self, settings: Mapping[str, Any], job: Job) -> Cost:
        assert self.profile.world is not None
        cell = self.profile.world.cells()[settings["cell"]]
        size = 12 * cell["layers"] * cell["hidden"] ** 2
        rows = settings["prompts"] * settings["n"] * len(self.profile.languages)
        trained = settings["dpo_steps"] * settings["dpo_batch_size"] * 2 * settings["max_new_tokens"]
        return Cost(train=trained * size, decode=2 * rows * settings["max_new_tokens"] * size)


# Stages that do no more than their notebook: tables, statistics, figures.
_LIGHT = frozenset({"evaluate", "evaluate_more", "transfer", "summary", "render", "site"})

# Of a model's parameters those of adapters of rank 64 on every linear layer and the embeddings.
_ADAPTER_SHARE = 0.03
_ON_POLICY_SAMPLES = 16  # default of the stage `pairs`


@cache
def _training_prompts() -> int:
    from polydetox.data.prompts import training_prompts

    return len(training_prompts())


@cache
def _choices(task: str) -> list[int] | None:
    """How many answers each question of a task of this project has; None for a task of the harness."""
    from polydetox.benchmarks.tasks import local_tasks, read_questions, read_task_file

    file, language = local_tasks().get(task, (None, ""))
    if file is None:
        return None
    content = read_task_file(file)
    questions = read_questions(file.parent / content.test, language if content.languages else None)
    return [len(row["choices"]) for row in questions]


@cache
def _prompt_count(source: str, folder: str) -> int | None:
    """The prompts of English, None where the data are not at hand."""
    from polydetox.data.prompts import load_prompts

    try:
        return len(load_prompts(source, "en", folder)[0])
    except UserError:
        return None


# --- the schedule -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """When each job begins and ends, in seconds from the start."""

    begins: list[float]
    ends: list[float]

    @property
    def seconds(self) -> float:
        """The whole run."""
        return max(self.ends, default=0.0)


def simulate(jobs: Sequence[Job], seconds: Sequence[float], *, gpus: int, cores: int) -> Schedule:
    """Run the jobs on some GPUs and cores as Snakemake does: what can start does, by priority, then in order.

    A job that asks for more than there is gets all there is, as Snakemake has it.
    """
    waiting = [len(job.needs) for job in jobs]
    dependents: dict[int, list[int]] = defaultdict(list)
    for number, job in enumerate(jobs):
        for other in job.needs:
            dependents[other].append(number)
    ready = [(-job.priority, number) for number, job in enumerate(jobs) if not job.needs]
    heapq.heapify(ready)
    begins, ends = [math.nan] * len(jobs), [math.nan] * len(jobs)
    free = [gpus, cores]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        held = []
        while ready and free[1]:
            entry = heapq.heappop(ready)
            asked = _asked(jobs[entry[1]], gpus, cores)
            if asked[0] > free[0] or asked[1] > free[1]:
                held.append(entry)
                continue
            free = [free[0] - asked[0], free[1] - asked[1]]
            begins[entry[1]], ends[entry[1]] = now, now + seconds[entry[1]]
            heapq.heappush(running, (ends[entry[1]], entry[1]))
        for entry in held:
            heapq.heappush(ready, entry)
        now, number = heapq.heappop(running)
        ended = [number]
        while running and running[0][0] == now:
            ended.append(heapq.heappop(running)[1])
        for number in ended:
            asked = _asked(jobs[number], gpus, cores)
            free = [free[0] + asked[0], free[1] + asked[1]]
            for other in dependents[number]:
                waiting[other] -= 1
                if not waiting[other]:
                    heapq.heappush(ready, (-jobs[other].priority, other))
    return Schedule(begins, ends)


def _asked(job: Job, gpus: int, cores: int) -> tuple[int, int]:
    return min(job.gpus, gpus), min(job.threads, cores)


def critical_path(jobs: Sequence[Job], seconds: Sequence[float]) -> list[int]:
    """The chain of jobs, each waiting for the one before, that takes longest: no number of GPUs makes a run shorter.

    ``jobs`` are listed after those that they need.
    """
    longest = list(seconds)
    before: list[int | None] = [None] * len(jobs)
    for number, job in enumerate(jobs):
        if job.needs:
            before[number] = max(job.needs, key=lambda other: longest[other])
            longest[number] = seconds[number] + longest[before[number]]  # type: ignore[index]
    path = []
    last: int | None = max(range(len(jobs)), key=longest.__getitem__, default=None)
    while last is not None:
        path.append(last)
        last = before[last]
    return path[::-1]


def busy_seconds(schedule: Schedule, numbers: Iterable[int]) -> float:
    """How long at least one of some jobs runs."""
    total, until = 0.0, 0.0
    for begin, end in sorted((schedule.begins[number], schedule.ends[number]) for number in numbers):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


# --- tables -----------------------------------------------------------------------------------------------------


@dataclass
class StageTotal:
    """All jobs of one stage."""

    stage: str
    numbers: list[int] = field(default_factory=list)
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    disk: float = 0.0
    scratch: float = 0.0  # of the job that takes most


def totals(jobs: Sequence[Job], costs: Costs) -> tuple[list[StageTotal], list[float]]:
    """The stages in their order, and each job's seconds."""
    stages: dict[str, StageTotal] = {}
    seconds = []
    for number, job in enumerate(jobs):
        seconds.append(costs.seconds(job))
        if job.stage == "site":  # a target, no work
            continue
        stage = stages.setdefault(job.stage, StageTotal(job.stage))
        cost = costs.of(job)
        stage.numbers.append(number)
        stage.gpu_seconds += seconds[-1] * job.gpus
        stage.cpu_seconds += seconds[-1] * job.threads
        stage.disk += cost.disk
        stage.scratch = max(stage.scratch, cost.scratch)
    order = {name: number for number, name in enumerate(STAGES)}
    return sorted(stages.values(), key=lambda total: order.get(total.stage.removesuffix("_more"), len(order))), seconds


def short_table(profile: str, targets: Iterable[str] = ()) -> str:
    """What is still to run of a profile, a line a stage: jobs, GPU hours, hours of a core, disk."""
    rates = Rates.read()
    costs = Costs(profile, rates)
    jobs = pending(jobs_of(profile, targets))
    stages, _ = totals(jobs, costs)
    rows = [["stage", "jobs", "GPU h", "core h", "disk GB"]]
    for stage in [*stages, _sum(stages)]:
        rows.append([stage.stage, str(len(stage.numbers)), _hours(stage.gpu_seconds), _hours(stage.cpu_seconds),
                     f"{stage.disk / GIGABYTE:.1f}"])  # fmt: skip
    return "\n".join(filter(None, [columns(rows), _not_estimated(stages)]))


def _sum(stages: Sequence[StageTotal]) -> StageTotal:
    return StageTotal(
        "all", [number for stage in stages for number in stage.numbers],
        *(sum(getattr(stage, name) for stage in stages) for name in ("gpu_seconds", "cpu_seconds", "disk")),
    )  # fmt: skip


def _not_estimated(stages: Sequence[StageTotal]) -> str:
    """A line that names the stages of which nothing is known but their notebooks; empty where there is none."""
    unknown = [stage.stage for stage in stages if stage.stage not in _LIGHT and not hasattr(Costs, f"_{stage.stage}")]
    return f"Not estimated, but for their notebooks: {', '.join(unknown)}" if unknown else ""


def pending(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that would run now, with what they still wait for."""
    kept = [number for number, job in enumerate(jobs) if job.pending]
    place = {number: position for position, number in enumerate(kept)}
    return [
        Job(**{**vars(jobs[number]), "needs": tuple(place[other] for other in jobs[number].needs if other in place)})
        for number in kept
    ]


def full_table(profile: str, gpus: Sequence[int], cores_a_gpu: int, rates: Rates | None = None) -> str:
    """The whole plan of a profile: each stage, the run on some numbers of GPUs, and the critical path."""
    rates = rates or Rates.read()
    costs = Costs(profile, rates)
    jobs = jobs_of(profile, everything=True)
    stages, seconds = totals(jobs, costs)
    schedules = {count: simulate(jobs, seconds, gpus=count, cores=count * cores_a_gpu) for count in gpus}
    price = rates.gpu_hour.value / HOUR
    rows = [["stage", "jobs", "GPU h", "core h", "disk GB", "scratch GB", f"cost {rates.currency}",
             *(f"h on {count}" for count in gpus)]]  # fmt: skip
    for stage in [*stages, _sum(stages)]:
        rows.append([
            stage.stage, str(len(stage.numbers)), _hours(stage.gpu_seconds), _hours(stage.cpu_seconds),
            f"{stage.disk / GIGABYTE:.1f}", f"{stage.scratch / GIGABYTE:.1f}", f"{stage.gpu_seconds * price:.0f}",
            *(_hours(busy_seconds(schedules[count], stage.numbers)) for count in gpus),
        ])  # fmt: skip
    used = _sum(stages).gpu_seconds
    lines = [columns(rows), *filter(None, [_not_estimated(stages)]), ""]
    for count, schedule in schedules.items():
        held = count * schedule.seconds
        lines.append(f"{count} GPU{'s' if count > 1 else ''}: {schedule.seconds / HOUR:.1f} hours, {used / held:.0%} "
                     f"of the GPUs' time in use; held from start to end they cost {held * price:.0f} {rates.currency}"
                     )  # fmt: skip
    path = critical_path(jobs, seconds)
    lines += ["", f"Critical path, {sum(seconds[number] for number in path) / HOUR:.1f} hours on any number of GPUs:"]
    lines += [f"  {_hours(seconds[number]):>8} h  {jobs[number].name}" for number in path if seconds[number]]
    return "\n".join(lines)


def sources(rates: Rates) -> str:
    """Every rate with its source, a line each."""
    lines = []

    def visit(name: str, value: Any) -> None:
        if isinstance(value, Number):
            lines.append([name, f"{value.value:.3g}", value.source])
        elif isinstance(value, Device):
            for key in Device.model_fields:
                visit(f"{name}.{key}", getattr(value, key))
        elif isinstance(value, dict):
            for key, entry in value.items():
                visit(f"{name}.{key}", entry)

    for key in Rates.model_fields:
        visit(key, getattr(rates, key))
    width = max(len(name) for name, _, _ in lines)
    return "\n".join(f"{name:{width}}  {value:>9}  {source}" for name, value, source in lines)


def _hours(seconds: float) -> str:
    return f"{seconds / HOUR:.2f}" if seconds < 10 * HOUR else f"{seconds / HOUR:.1f}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns, the first to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if not column else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip
