"""What a run takes, by what ``params/rates.yaml`` says of stages and devices: GPU hours, disk, the longest chain."""

from __future__ import annotations

import contextlib
import io
import math
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from polydetox.benchmarks.tasks import local_tasks
from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.core.params import load_model
from polydetox.core.yaml_files import read_yaml
from polydetox.workflow import snakemake


@dataclass(frozen=True, eq=False)
class Job:
    """A job of the workflow: one notebook, or the rendering. ``needs`` are the jobs that it waits for."""

    stage: str
    name: str  # the stage and what it works on
    gpus: int = 0
    threads: int = 1
    needs: tuple[Job, ...] = field(default=(), repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)


def jobs_of(profile: str, targets: Iterable[str] = ()) -> list[Job]:
    """The jobs of Snakemake's graph of a profile that would run now, each after those that it needs."""
    from snakemake.settings.types import DAGSettings

    jobs: dict[Any, Job] = {}
    with snakemake(profile) as workflow:
        graph = workflow.dag(DAGSettings(targets=set(targets)))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            graph.printrulegraph()  # which builds the graph of jobs
        dag, run = workflow._workflow.dag, workflow._workflow.globals["run"]
        for job in TopologicalSorter({job: list(dag.dependencies[job]) for job in dag.jobs}).static_order():
            stage, of = job.rule.name, dict(job.wildcards_dict)
            registered = run.jobs.get((stage, *sorted(of.items())))
            name = " ".join([stage, *filter(None, of.values())])
            if "model" in of:  # a folder's name, where the profile may list a Hub id or a local folder
                of["model"] = run.listed[of["model"]]
            given = {**registered.resolved(), **of, **registered.parameters} if registered else of
            needs = tuple(jobs[one] for one in dag.dependencies[job])
            jobs[job] = Job(stage, name, int(job.resources.get("gpu") or 0), job.threads, needs, given)
        return [found for job, found in jobs.items() if dag.needrun(job) and found.stage != "site"]  # a target


def read_rates(content: Any = None, name: str = "params/rates.yaml: ") -> Any:
    """The content of ``params/rates.yaml``, of which each number must say where it comes from."""
    content = read_yaml(paths.root() / "params" / "rates.yaml") if content is None else content
    if isinstance(content, str):  # what a stage computes
        return content
    if "value" not in content:
        return {key: read_rates(inner, f"{name}{key}.") for key, inner in content.items()}
    if not str(content.get("source")).startswith(("measured", "assumed")):
        raise UserError(f"{name}source: begin with 'measured on ...' or 'assumed, from ...'")
    return float(content["value"])


class _Names(ChainMap[str, Any]):
    """What ``rates.yaml`` says of a stage may name: the job's settings, else those of the nearest job it needs."""

    def __init__(self, job: Job, rates: Mapping[str, Any]):
        functions = {"of": self._of, "answers": self._answers, "min": min, "comb": math.comb, "len": len}
        functions["jobs"] = [one.stage for one in job.needs].count
        settings, near = [], [job]
        while near:  # breadth first
            settings += [dict(one.settings) for one in near]
            near = list(dict.fromkeys(other for one in near for other in one.needs))
        super().__init__(functions, *settings, dict(rates))
        self._stage, self._rates = job.stage, rates

    def __missing__(self, name: str) -> Any:
        if name == "size":
            return model_parameters(self["model"])
        raise UserError(f"params/rates.yaml: stages.{self._stage}: {name!r} is neither a setting nor a rate")

    def _of(self, *names: str | None) -> float:
        """Parameters of scorers and other models together; one in a folder of the run is the job's own model."""
        sizes: dict[str | None, float] = {None: 0.0, "": 0.0, **self._rates["parameters"]}
        for name in {name for name in names if name} - set(sizes):
            sizes[name] = self["size"] if name.startswith(paths.relative(paths.runs())) else model_parameters(name)
        return sum(sizes[name] for name in names)

    def _answers(self, suites: Mapping[str, Mapping[str, Any]]) -> float:
        """Answers of multiple-choice questions, each as often as a text is read for it."""
        whole = dict.fromkeys(local_tasks(), self._rates["own_answers"])
        return sum((4 * (suite.get("limit") or 0) or whole.get(task, self["task_answers"]))
                   * (1 + suite.get("shots", 0)) for suite in suites.values() for task in suite["tasks"])  # fmt: skip


def model_parameters(model: str) -> float:
    """How many parameters a model has: as its file says, or counted in a local folder."""
    file = load_model(model)
    weights = Path(file.path).expanduser().glob("*.safetensors") if file.path else []
    size = file.parameters or sum(path.stat().st_size for path in weights) / (4 if file.dtype == "float32" else 2)
    if not size:
        raise UserError(f"model {model!r}: 'parameters' is not given; add to its file how many it has (1.3e+9)")
    return size


def cost(job: Job, rates: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds that a job takes on its device, and bytes that it leaves; without a word on its stage, its notebook's."""
    said = rates["stages"].get(job.stage, {})
    names = _Names(job, rates) if said else {}
    done = {key: float(eval(text, {"__builtins__": {}}, names)) for key, text in said.items()}
    device, cores = (rates["gpu"], 1) if job.gpus else (rates["cpu"], job.threads)
    work = sum(amount / device[key] for key, amount in done.items() if key in device) / cores
    once = device["engine"] * done.get("sampled", 0.0) + rates["notebook"]
    once += 2 * names["size"] / device["load"] if done and "model" in job.settings else 0.0
    return work + once, rates["notebook_bytes"] + done.get("disk", 0.0)


def critical_path(seconds: Mapping[Job, float]) -> tuple[float, list[str]]:
    """The chain of jobs, each waiting for the one before, that takes longest: no number of GPUs makes a run shorter."""
    chains: dict[Job, tuple[float, list[str]]] = {}
    for job, own in seconds.items():
        before, names = max((chains[other] for other in job.needs if other in chains), default=(0.0, []))
        chains[job] = before + own, [*names, job.name]
    return max(chains.values(), default=(0.0, []))


def table(jobs: Iterable[Job]) -> str:
    """A line a stage: jobs, GPU hours, hours of a core, disk; and the critical path."""
    rates = read_rates()
    costs = {job: cost(job, rates) for job in jobs}
    lines = [f"{'stage':20}{'jobs':>6}{'GPU h':>9}{'core h':>9}{'disk GB':>9}"]
    for stage in [*dict.fromkeys(job.stage for job in costs), "all"]:
        own = [(job, *found) for job, found in costs.items() if stage in (job.stage, "all")]
        gpu, core = (sum(row[1] * getattr(row[0], unit) for row in own) / 3600 for unit in ("gpus", "threads"))
        name = stage if stage in [*rates["stages"], "all"] else f"{stage} (?)"
        lines.append(f"{name:20}{len(own):6}{gpu:9.2f}{core:9.2f}{sum(disk for *_, disk in own) / 1e9:9.1f}")
    seconds, names = critical_path({job: found for job, (found, _) in costs.items()})
    return "\n".join([*lines, f"Critical path, {seconds / 3600:.2f} hours on any number of GPUs: {', '.join(names)}"])
