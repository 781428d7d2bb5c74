"""The two jobs of an iteration: one trains the head, the other the model. Each reads and writes files alone.

So they can follow each other in one process, or run side by side in two, each with a device of its own.
``python -m polydetox.attribute_control.jobs JOB.json`` runs one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core.artifacts import atomic_folder, read_json, read_parquet, write_json, write_parquet
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings, checked

HEAD, MODEL = "head.json", "model.json"  # written last by each job
CORPUS = "corpus.parquet"  # the rows that are trained on, with lambda
SAMPLING = "sampling.json"  # what the samples cost, for a job that is stopped after them


@dataclass(frozen=True)
class Job:
    """One job of iteration ``number``. Folders are absolute paths."""

    kind: str  # head or model
    settings: dict[str, Any]  # of the notebook regularise
    base: str  # the untuned weights
    weights: str  # those that are sampled from, or trained on
    state: str  # the folder of the iterations
    number: int
    head: str = ""  # head: where it goes on from; model: what regularises it. Empty: none

    @property
    def folder(self) -> Path:
        """Where this iteration's artefacts are."""
        return Path(self.state) / f"{self.number:02d}"

    def is_done(self) -> bool:
        """Whether an earlier attempt has finished it."""
        return (self.folder / (HEAD if self.kind == "head" else MODEL)).is_file()


def run(job: Job) -> None:
    """Run one job in this process, unless it is done."""
    if job.is_done():
        return

    settings = checked("regularise", **job.settings)
    (_train_head if job.kind == "head" else _train_model)(job, settings)


def run_together(jobs: Sequence[Job]) -> None:
    """Run jobs side by side, each in a process with a device of its own."""
    jobs = [job for job in jobs if not job.is_done()]
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",") if name]
    processes = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, job in enumerate(jobs):
            description = Path(scratch) / f"{job.kind}.json"
            write_json(description, asdict(job))
            log = open(Path(scratch) / f"{job.kind}.log", "w+")  # noqa: SIM115 (closed below)
            environment = os.environ | {"CUDA_VISIBLE_DEVICES": devices[number] if number < len(devices) else ""}
            command = [sys.executable, "-m", "polydetox.attribute_control.jobs", str(description)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                                       env=environment)  # fmt: skip
            processes.append((job, process, log))
        try:
            for _, process, _ in processes:
                process.wait()
            for job, process, log in processes:
                if process.returncode:
                    log.seek(0)
                    last = [line for line in log.read().splitlines() if line.strip()][-1:]
                    raise UserError(f"the {job.kind} of iteration {job.number} failed: {''.join(last)}")
        finally:
            for _, process, log in processes:
                process.kill()
                process.wait()
                log.close()


class _Clock:
    """Seconds of this process since it was made: of the wall clock, and of the CPU on all its threads.

    What an earlier process has kept in the file ``spent`` is added.
    """

    def __init__(self, spent: Path | None = None) -> None:
        earlier = read_json(spent) if spent and spent.is_file() else {"seconds": 0.0, "cpu_seconds": 0.0}
        self._wall = time.perf_counter() - earlier["seconds"]
        self._cpu = time.process_time() - earlier["cpu_seconds"]

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


# --- the head ---------------------------------------------------------------------------------------------------


def _train_head(job: Job, settings: Settings) -> None:
    """Sample, ask the oracle, train the head; writes ``samples.parquet``, ``head/`` and ``head.json``."""
    import torch
    from transformers import set_seed

    from polydetox.attribute_control.body import Body
    from polydetox.attribute_control.head import NadoHead, make_head
    from polydetox.attribute_control.rows import encode, with_end
    from polydetox.attribute_control.training import train_head
    from polydetox.models.checkpoints import device, inference_dtype, load_causal_lm, load_tokenizer

    clock = _Clock(job.folder / SAMPLING)
    samples = _samples(job, settings, clock)
    sampled = clock.read()
    set_seed(settings.seed)
    dtype = settings.dtype
    tokenizer = load_tokenizer(Path(job.weights))
    before = Path(job.head) if job.head else None
    adapter = before / "adapter" if before and (before / "adapter").is_dir() else None
    body = Body(Path(job.base), settings, dtype, adapter)
    sampler = body.model
    if job.weights != job.base or body.adapted:
        sampler = load_causal_lm(Path(job.weights), inference_dtype(dtype))
    labels = samples["satisfied"].to_numpy()
    if before:
        head = NadoHead.load(before)
    else:
        head = make_head(sampler, settings.head, settings.head_rank)
        head.set_prior(float(labels.mean()))
    rows = encode(tokenizer, samples["prompt"], samples["prompt"] + samples["continuation"], labels,
                  settings.max_length)  # fmt: skip
    if tokenizer.eos_token_id is not None:
        rows = with_end(rows, samples["truncated"].tolist(), tokenizer.eos_token_id, settings.max_length)
    # Whole prompts are held out, so that the head is judged on other ones.
    names = samples["prompt"].unique()
    rng = np.random.default_rng([settings.seed, job.number, 1])
    held_out = set(rng.permutation(names)[: max(1, len(names) // 10)]) if len(names) > 1 else set()
    split = samples["prompt"].isin(held_out).to_numpy()
    train, judged = ([row for row in rows if split[row.row] == side] for side in (False, True))
    if not train:
        raise UserError("regularise: no sample has a token to learn; raise 'max_length' or 'max_new_tokens'")
    with tempfile.TemporaryDirectory() as scratch:
        figures = train_head(head.to(device()), body, sampler, train, judged, settings, tokenizer.pad_token_id,
                             Path(scratch))  # fmt: skip
    del sampler
    head.save(job.folder / "head", alpha=settings.alpha, body=settings.body)
    body.save_adapter(job.folder / "head" / "adapter")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    write_json(job.folder / HEAD, {
        "samples": len(samples), "rejected": float(1 - labels.mean()), "toxicity": float(samples["toxicity"].mean()),
        **figures, "sampling_seconds": sampled["seconds"], **clock.read(),
    })  # fmt: skip


def _samples(job: Job, settings: Settings, clock: _Clock) -> pd.DataFrame:
    """Continuations of the corpus's training prompts by the model as it is, half in each domain, and their labels.

    Returns what the engine returns, with ``domain``, ``toxicity`` and ``satisfied`` (1 or 0); continuations that the
    oracle cannot judge are left out. Beside the samples stands what ``clock`` says they cost.
    """
    file = job.folder / "samples.parquet"
    if file.is_file():
        return read_parquet(file, ["prompt", "continuation", "truncated", "toxicity", "satisfied"])
    from polydetox.attribute_control.oracle import Oracle
    from polydetox.generation import Sampling, generate

    corpus = read_parquet(Path(job.state) / CORPUS, ["prompt", "domain", "split"])
    corpus = corpus[corpus["split"] == "train"]
    rng = np.random.default_rng([settings.seed, job.number])
    domains = corpus["domain"].unique()
    wanted = max(1, settings.samples // len(domains))
    tables: dict[int, list[pd.DataFrame]] = {}  # by how many continuations each prompt gets
    for domain in domains:
        prompts = corpus.loc[corpus["domain"] == domain, "prompt"].unique()
        chosen = rng.permutation(prompts)[: max(1, wanted // settings.samples_per_prompt)]
        names = [f"{job.number}-{domain}-{place}" for place in range(len(chosen))]
        table = pd.DataFrame({"prompt_id": names, "prompt": chosen, "domain": domain})
        tables.setdefault(-(-wanted // len(chosen)), []).append(table)
    parts = []
    for n, together in tables.items():  # mostly one, for which the model is loaded once
        table = pd.concat(together, ignore_index=True)
        # The distribution itself is sampled: no temperature, no nucleus.
        sampling = Sampling(n=n, temperature=1.0, top_p=1.0, max_new_tokens=settings.max_new_tokens, seed=settings.seed)
        drawn = generate(Path(job.weights), table[["prompt_id", "prompt"]], sampling, job.folder / "parts" / str(n),
                         engine=settings.engine, dtype=settings.dtype)  # fmt: skip
        parts.append(drawn.merge(table[["prompt_id", "domain"]], on="prompt_id"))
    samples = pd.concat(parts, ignore_index=True)
    oracle = Oracle.of(settings)
    toxicity = oracle.toxicity(samples["continuation"].tolist())
    samples = samples.assign(toxicity=toxicity, satisfied=oracle.satisfied(toxicity)).dropna(subset=["satisfied"])
    if len(samples) < 2:
        raise UserError(
            f"regularise: the oracle {settings.scorer!r} could judge {len(samples)} samples; raise 'samples'"
        )
    # Before the samples, so that these are never there without it.
    write_json(job.folder / SAMPLING, clock.read())
    write_parquet(file, samples.reset_index(drop=True))
    return samples.reset_index(drop=True)


# --- the model --------------------------------------------------------------------------------------------------


def _train_model(job: Job, settings: Settings) -> None:
    """Train the model on its part of the corpus; writes ``weights/``, ``log.parquet`` and ``model.json``."""
    import torch
    from transformers import set_seed

    from polydetox.attribute_control.rows import batches_of, encode
    from polydetox.attribute_control.training import train_model
    from polydetox.models.checkpoints import load_causal_lm, load_tokenizer

    clock = _Clock()
    set_seed(settings.seed + job.number)
    tokenizer = load_tokenizer(Path(job.weights))
    corpus = read_parquet(Path(job.state) / CORPUS, ["prompt", "text", "domain", "split", "weight"])
    rows = encode(tokenizer, corpus["prompt"], corpus["text"], corpus["weight"], settings.max_length)
    train = [row for row in rows if corpus["split"][row.row] == "train"]
    if not train:
        raise UserError("regularise: the corpus has no row with a token to learn; raise 'max_length'")
    # A small learning rate changes weights by less than bfloat16 can hold, so training is in float32.
    model = load_causal_lm(Path(job.weights), torch.float32)
    prepared = _Clock()
    regulariser = _regulariser(job, settings, train, tokenizer.pad_token_id) if job.head else None
    features = prepared.read()
    chosen = batches_of(train, settings.batch_size, settings.seed, (job.number - 1) * settings.steps, settings.steps)
    trained = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        model, log = train_model(model, chosen, regulariser, settings, tokenizer.pad_token_id, Path(scratch))
    training = trained.read()
    figures = held_out_losses(model, rows, corpus, tokenizer.pad_token_id, settings.batch_size)
    with atomic_folder(job.folder / "weights") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    steps = pd.DataFrame([
        (job.number, (job.number - 1) * settings.steps + entry["step"], name, float(entry[name]))
        for entry in log for name in ("loss", "next_token", "kl")
    ], columns=["iteration", "step", "metric", "value"])  # fmt: skip
    write_parquet(job.folder / "log.parquet", steps)
    last = steps[steps["step"] > steps["step"].max() - max(1, settings.steps // 4)].groupby("metric")["value"].mean()
    write_json(job.folder / MODEL, {
        "steps": len(log), **last.to_dict(), **figures, "training_cpu_seconds": training["cpu_seconds"],
        "features_cpu_seconds": features["cpu_seconds"], **clock.read(),
    })  # fmt: skip


def held_out_losses(model: Any, rows: Sequence[Any], corpus: pd.DataFrame, padding: int, size: int) -> dict[str, float]:
    """Loss on the held-out rows of each domain, in nats a learnt token."""
    from polydetox.attribute_control.training import text_loss

    found = {}
    for domain in ("toxic", "neutral"):
        mask = ((corpus["split"] == "held_out") & (corpus["domain"] == domain)).to_numpy()
        chosen = [row for row in rows if mask[row.row]]
        found[f"held_out_{domain}"] = text_loss(model, chosen, padding, size) if chosen else float("nan")
    return found


def _regulariser(job: Job, settings: Settings, train: Sequence[Any], padding: int) -> Any:
    """The target of the job's head; hidden states under a frozen body are kept for the next iterations."""
    from polydetox.attribute_control.body import Body, Features
    from polydetox.attribute_control.head import NadoHead
    from polydetox.attribute_control.training import Regulariser

    head = Path(job.head)
    adapter = head / "adapter" if settings.body == "lora" else None
    body = Body(Path(job.base), settings, settings.dtype, adapter)
    features = None
    if not body.adapted:
        held = [row for row in train if row.label > 0]
        features = Features(body.model, held, padding, 4 * settings.batch_size,
                            Path(job.state) / "features.safetensors")  # fmt: skip
        body.model = None  # nobody reads it any more; its embedding stays
    return Regulariser(NadoHead.load(head), body, features, settings.alpha, settings.direction)


def _end_with_parent() -> None:
    """Leave when the process that started this one is gone: its end of the pipe closes."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    try:
        run(Job(**read_json(Path(sys.argv[1]))))
    except UserError as error:
        sys.exit(str(error))
