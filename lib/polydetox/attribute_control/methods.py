"""The methods of attribute control: each from the untuned model and the corpus to one checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.attribute_control.jobs import CORPUS, HEAD, MODEL, Job, run, run_together
from polydetox.core.artifacts import (
    atomic_folder,
    input_hash,
    library_versions,
    read_json,
    read_parquet,
    resume_key,
    write_json,
    write_parquet,
)
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings
from polydetox.core.paths import relative
from polydetox.models.checkpoints import device, provenance

LOG_COLUMNS = ["iteration", "step", "metric", "value"]
ITERATION_COLUMNS = [
    "iteration", "held_out_toxic", "held_out_neutral", "next_token", "kl", "samples", "rejected", "toxicity", "auc",
    "auc_half", "held_out_bce", "head_cpu_seconds", "model_cpu_seconds", "head_seconds", "model_seconds",
]  # fmt: skip


def train_method(
    settings: Settings, weights: Path, corpus: pd.DataFrame, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Train one method; writes ``folder/weights`` (a checkpoint), ``folder/head`` where there is one, and each
    iteration's samples, head and figures under ``folder/iterations``. A run that was stopped goes on where it was.

    Returns a row an iteration (0: the untuned model), the log of every step, and the figures of the whole.
    """
    state = _state(settings, weights, corpus, folder)
    if settings.algorithm == "rl":
        from polydetox.attribute_control.rl import train_rl

        train_rl(settings, weights, state)
        last = 1
    else:
        last = _train_iterations(settings, weights, state)
    _keep(settings, weights, state, folder, last)
    iterations, log = _tables(state)
    metrics = _metrics(settings, iterations, corpus, state)
    (state / "features.safetensors").unlink(missing_ok=True)
    for kind in ("parts", "checkpoints", "weights"):  # the last weights are kept as the checkpoint
        for part in state.glob(f"*/{kind}"):
            shutil.rmtree(part)
    return iterations, log, metrics


def _state(settings: Settings, weights: Path, corpus: pd.DataFrame, folder: Path) -> Path:
    """The folder of the iterations, emptied where they depended on something else."""
    from polydetox.scoring import get_scorer

    versions = library_versions()
    depends_on = {
        "weights": input_hash(provenance(weights)),
        "corpus": corpus.to_json(),
        "settings": settings.model_dump(exclude={"output_folder", "checkpoint", "corpus", "devices"}),
        "oracle": None if settings.algorithm == "plain" else get_scorer(settings.scorer).revision,
        "versions": {name: versions[name] for name in ("torch", "transformers", "trl")},
    }
    key = resume_key(depends_on)
    state = folder / "iterations"
    if not (state / "key.json").is_file() or read_json(state / "key.json") != key:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(parents=True)
        write_parquet(state / CORPUS, _rows(settings, corpus))
        write_json(state / "key.json", key)
    return state


def _rows(settings: Settings, corpus: pd.DataFrame) -> pd.DataFrame:
    """The rows of the corpus that a method trains on and is measured on, with lambda as ``weight``."""
    if settings.algorithm == "filtering":
        from polydetox.attribute_control.oracle import Oracle

        # The oracle's own verdict on what is learnt: the corpus may have been scored by another scorer.
        oracle = Oracle.of(settings)
        learnt = [text[len(prompt) :] for prompt, text in zip(corpus["prompt"], corpus["text"], strict=True)]
        satisfied = oracle.satisfied(oracle.toxicity(learnt))
        corpus = corpus[(corpus["split"] != "train") | (satisfied == 1.0)]
        if not (corpus["split"] == "train").any():
            raise UserError("regularise: the oracle rejects every row of the corpus; raise 'threshold'")
    toxic, neutral = settings.regulariser_weight, settings.regulariser_weight_neutral
    weight = corpus["domain"].map({"toxic": toxic, "neutral": toxic if neutral is None else neutral})
    return corpus.assign(weight=weight.astype(float)).reset_index(drop=True)


def _devices(settings: Settings) -> int:
    """How many devices head and model have in the parallel schedule."""
    import torch

    gpus = torch.cuda.device_count()
    parallel = settings.algorithm == "regularised" and settings.schedule == "parallel"
    if parallel and settings.devices == 2 and gpus == 1:
        raise UserError("regularise: 'devices: 2' needs two GPUs, and one is visible; leave it out, or set it to 1")
    return settings.devices or (2 if gpus >= 2 else 1)


def plan(settings: Settings, weights: Path, state: Path) -> list[list[Job]]:
    """The jobs of a method, in the order in which they are run; those of one inner list need nothing of each other.

    Sequential: iteration t samples from the model of iteration t-1, trains the head, then with it the model. Parallel:
    head and model of iteration t both start from iteration t-1, and the model is regularised by the head of t-1; the
    first iteration is as in the sequential schedule, and the last trains no head, since no model would use it.
    """

    def weights_of(number: int) -> str:
        return str(state / f"{number:02d}" / "weights") if number else str(weights)

    def head_of(number: int) -> str:
        return str(state / f"{number:02d}" / "head") if number else ""

    def job(kind: str, number: int, head: str) -> Job:
        return Job(kind, settings.model_dump(), str(weights), weights_of(number - 1), str(state), number, head)

    if settings.algorithm == "nado":
        return [[job("head", 1, "")]]
    if settings.algorithm != "regularised":
        return [[job("model", number, "")] for number in range(1, settings.iterations + 1)]
    steps = []
    for number in range(1, settings.iterations + 1):
        head = job("head", number, head_of(number - 1))
        if settings.schedule == "sequential" or number == 1:
            steps += [[head], [job("model", number, head_of(number))]]
        elif number < settings.iterations:
            steps.append([head, job("model", number, head_of(number - 1))])
        else:
            steps.append([job("model", number, head_of(number - 1))])
    return steps


def _train_iterations(settings: Settings, weights: Path, state: Path) -> int:
    """Run the jobs of all iterations that are not done; returns the number of the last iteration."""
    weights, state = weights.resolve(), state.resolve()
    together = _devices(settings) == 2
    if not (state / "untuned.json").is_file():
        write_json(state / "untuned.json", _untuned(settings, weights, state))
    jobs = plan(settings, weights, state)
    for step in jobs:
        if together and len(step) > 1:
            run_together(step)
        else:
            for job in step:
                run(job)
        # An older model is needed neither to go on nor as a result.
        newest = max((job.number for job in step if job.kind == "model"), default=0)
        for number in range(1, newest):
            shutil.rmtree(state / f"{number:02d}" / "weights", ignore_errors=True)
    return jobs[-1][-1].number


def _untuned(settings: Settings, weights: Path, state: Path) -> dict[str, float]:
    """The held-out losses of the model before training."""
    from polydetox.attribute_control.jobs import held_out_losses
    from polydetox.attribute_control.rows import encode
    from polydetox.models.checkpoints import inference_dtype, load_causal_lm, load_tokenizer

    tokenizer = load_tokenizer(weights)
    corpus = read_parquet(state / CORPUS)
    rows = encode(tokenizer, corpus["prompt"], corpus["text"], corpus["weight"], settings.max_length)
    model = load_causal_lm(weights, inference_dtype(settings.dtype))
    return held_out_losses(model, rows, corpus, tokenizer.pad_token_id, settings.batch_size)


def _keep(settings: Settings, weights: Path, state: Path, folder: Path, last: int) -> None:
    """Put the last iteration's checkpoint and head where the next stages look for them."""
    heads = sorted(state.glob("*/head"))
    if heads:
        _link(heads[-1], folder / "head")
    if settings.algorithm != "nado":
        trained = state / f"{last:02d}" / "weights"
        if trained.is_dir():
            _link(trained, folder / "weights")
        elif not (folder / "weights").is_dir():
            shutil.rmtree(state)
            raise UserError(f"{relative(folder / 'weights')}: the trained weights are gone; run again to train anew")
        return
    import torch

    from polydetox.attribute_control.body import Body
    from polydetox.attribute_control.head import NadoForCausalLM, NadoHead
    from polydetox.attribute_control.jobs import held_out_losses
    from polydetox.attribute_control.rows import encode
    from polydetox.models.checkpoints import load_causal_lm, load_tokenizer

    model, tokenizer = load_causal_lm(weights, torch.float32), load_tokenizer(weights)
    body = None
    if settings.body == "lora":
        adapted = Body(weights, settings, "float32", heads[-1] / "adapter")
        body = adapted.model.merge_and_unload().base_model
    decoder = NadoForCausalLM.assemble(model, NadoHead.load(heads[-1]).to(model.device), settings.alpha, body)
    with atomic_folder(folder / "weights") as temporary:
        decoder.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    # The head alone changes what is expected of the corpus: the losses are those of log q.
    corpus = read_parquet(state / CORPUS)
    rows = encode(tokenizer, corpus["prompt"], corpus["text"], corpus["weight"], settings.max_length)
    figures = held_out_losses(decoder, rows, corpus, tokenizer.pad_token_id, settings.batch_size)
    write_json(state / f"{last:02d}" / MODEL, {**figures, "cpu_seconds": None, "seconds": None})


def _link(source: Path, target: Path) -> None:
    """A second name for the files of a folder, or copies where the file system has no hard links."""
    with atomic_folder(target) as temporary:
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            place = temporary / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, place)
            except OSError:
                shutil.copy2(file, place)


def _tables(state: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row an iteration, and the log of every step."""
    rows: list[dict[str, Any]] = [{"iteration": 0, **read_json(state / "untuned.json")}]
    logs = []
    for folder in sorted(path for path in state.glob("[0-9][0-9]") if path.is_dir()):
        row: dict[str, Any] = {"iteration": int(folder.name)}
        for file, prefix in ((HEAD, "head"), (MODEL, "model")):
            if (folder / file).is_file():
                figures = read_json(folder / file)
                row |= figures | {f"{prefix}_{clock}": figures[clock] for clock in ("cpu_seconds", "seconds")}
        rows.append(row)
        if (folder / "log.parquet").is_file():
            logs.append(read_parquet(folder / "log.parquet", LOG_COLUMNS))
    table = pd.DataFrame(rows).reindex(columns=ITERATION_COLUMNS).astype(float).astype({"iteration": int})
    return table, pd.concat(logs, ignore_index=True) if logs else pd.DataFrame(columns=LOG_COLUMNS)


def _metrics(settings: Settings, iterations: pd.DataFrame, corpus: pd.DataFrame, state: Path) -> dict[str, Any]:
    """What the report says of one method."""
    last = iterations.ffill().iloc[-1]  # NADO and RL leave some fields open in their last row
    used = read_parquet(state / CORPUS)
    return {
        "algorithm": settings.algorithm,
        "schedule": settings.schedule if settings.algorithm == "regularised" else None,
        "adaptive": settings.regulariser_weight_neutral == 0.0 if settings.algorithm == "regularised" else None,
        "iterations": int(iterations["iteration"].max()),
        "steps": settings.steps * settings.iterations if settings.algorithm not in ("nado", "rl") else 0,
        "rows_train": int((used["split"] == "train").sum()),
        "rows_left_out": int((corpus["split"] == "train").sum() - (used["split"] == "train").sum()),
        **{f"untuned_{name}": float(iterations[name].iloc[0]) for name in ("held_out_toxic", "held_out_neutral")},
        **{name: float(last[name]) for name in ("held_out_toxic", "held_out_neutral", "kl", "auc", "auc_half")},
        "rejected_first": float(iterations["rejected"].dropna().iloc[0])
        if iterations["rejected"].notna().any()
        else None,
        "rejected_last": float(last["rejected"]),
        "device": device().type,
        **_cost(settings, iterations, "cpu_seconds"),
        **_cost(settings, iterations, "seconds"),
    }


def _cost(settings: Settings, iterations: pd.DataFrame, clock: str) -> dict[str, float]:
    """What head and model took by one clock, and what they come to where each has a device.

    With two devices the parallel schedule's first iteration has its parts follow each other, and a later one takes as
    long as the longer of its two. A GPU's work shows on the wall clock alone.
    """
    head, model = (iterations[f"{part}_{clock}"].fillna(0.0) for part in ("head", "model"))
    two = head + model
    if settings.schedule == "parallel" and settings.algorithm == "regularised":
        two = two.where(iterations["iteration"] <= 1, pd.concat([head, model], axis=1).max(axis=1))
    costs = {"head": head, "model": model, "two_device": two}
    return {f"{part}_{clock}": float(seconds.sum()) for part, seconds in costs.items()}


def summary_of(metrics: dict[str, Any]) -> str:
    """One sentence or two on what a method left."""
    words = {
        "plain": "Plain fine-tuning", "filtering": "Fine-tuning on what the oracle accepts",
        "rl": "Reinforcement learning", "nado": "The NADO head, without fine-tuning",
        "regularised": "Regularised fine-tuning",
    }[metrics["algorithm"]]  # fmt: skip
    said = (
        f"{words}: the loss on held-out text went from {metrics['untuned_held_out_toxic']:.2f} to "
        f"{metrics['held_out_toxic']:.2f} nats a token in the toxic domain and from "
        f"{metrics['untuned_held_out_neutral']:.2f} to {metrics['held_out_neutral']:.2f} in the neutral one."
    )
    if metrics["algorithm"] in ("nado", "regularised") and metrics["auc"] == metrics["auc"]:  # not NaN
        said += (
            f" On held-out samples the head tells what the oracle rejects with ROC-AUC {metrics['auc']:.2f} after the "
            f"whole text and {metrics['auc_half']:.2f} after half of it."
        )
    if metrics["rows_left_out"]:
        said += f" {metrics['rows_left_out']} rows were left out."
    return said
