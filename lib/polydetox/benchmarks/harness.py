"""Accuracy on multiple-choice tasks through lm-evaluation-harness (Gao et al. 2024), item by item.

A suite is a list of tasks that are averaged, with the number of examples that are shown before a question: MMLU
5-shot is one, the seven commonsense tasks 0-shot another. Item by item, since two models answer the same items, so
that their difference has an interval of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from polydetox.benchmarks.tasks import harness_manager, local_configuration, local_tasks, task_language
from polydetox.core.artifacts import library_versions, read_parquet, resume_key, write_parquet
from polydetox.core.errors import UserError
from polydetox.stats.bootstrap import mean, percentile_interval, replicates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ITEM_COLUMNS = ["suite", "task", "part", "language", "item", "correct"]


def answer_suites(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suites: Mapping[str, Mapping[str, Any]],
    *,
    batch_size: int,
    folder: Path,
    weights_key: str,
    seed: int = 0,
) -> pd.DataFrame:
    """Every item of every suite, with whether the model answers it right: ``ITEM_COLUMNS``, and how many ``choices``.

    ``task`` is the name that the suite lists, ``part`` the harness's task that an item belongs to (they differ for
    groups such as ``mmlu``). ``correct`` is 1.0 or 0.0: by the likelihood of the answers divided by their length where
    the task has that measure (``acc_norm``), else by the likelihood itself. In tasks of minimal pairs it says whether
    the stereotype is the likelier sentence.

    The items of a finished task are kept in ``folder`` under a hash of ``weights_key``, the model's dtype and the
    settings; a run that was stopped answers only what is missing.
    """
    harness, columns = None, [*ITEM_COLUMNS, "choices"]
    tables = []
    for suite, settings in suites.items():
        for task in settings["tasks"]:
            file = folder / f"{_key([weights_key, str(model.dtype)], suite, task, settings, seed)}.parquet"
            if not file.is_file():
                harness = harness or _language_model(model, tokenizer, batch_size)
                items = _answer(harness, task, settings["shots"], settings["limit"], seed)
                write_parquet(file, items.assign(suite=suite, language=task_language(task))[columns])
            tables.append(read_parquet(file, columns))
    return pd.concat(tables, ignore_index=True)


def _key(model: list[str], suite: str, task: str, settings: Mapping[str, Any], seed: int) -> str:
    asked: Any = task
    if task in local_tasks():
        configuration = local_configuration(task)
        asked = {**configuration, "custom_dataset": configuration["custom_dataset"].args[0]}
    versions = {name: version for name, version in library_versions().items() if name in _DECIDING}
    return resume_key([model, suite, asked, settings["shots"], settings["limit"], seed, versions, "choices"])


_DECIDING = ("torch", "transformers", "tokenizers", "datasets", "lm-eval")


def _language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it logs every setting
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)


def _answer(harness: Any, task: str, shots: int, limit: int | None, seed: int) -> pd.DataFrame:
    """The items of one task, or of all tasks of a group."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    ours = task in local_tasks()
    manager = TaskManager(include_defaults=False) if ours else harness_manager()
    try:
        done = simple_evaluate(
            model=harness, tasks=[local_configuration(task) if ours else task], num_fewshot=shots, limit=limit,
            bootstrap_iters=0, log_samples=True, task_manager=manager, random_seed=seed, numpy_random_seed=seed,
            torch_random_seed=seed, fewshot_random_seed=seed,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        # datasets and huggingface-hub raise either where they cannot download; only that is explained here.
        if ours or not any(word in str(error).lower() for word in _NO_DATA):
            raise
        raise UserError(
            f"task {task!r}: its data is not available ({type(error).__name__}: {str(error).splitlines()[0][:120]}); "
            "run once with a network, or name tasks of params/tasks/ in the suite"
        ) from None
    rows = []
    for part, samples in done["samples"].items():
        for sample in samples:
            measure = next((name for name in ("acc_norm", "acc", "pct_stereotype") if name in sample), None)
            if measure is None:
                raise UserError("a suite may only list multiple-choice tasks, which have an accuracy, or CrowS-Pairs")
            rows.append({"task": task, "part": part, "item": int(sample["doc_id"]), "correct": float(sample[measure]),
                         "choices": len(sample["arguments"])})  # fmt: skip
    return pd.DataFrame(rows)


_NO_DATA = ("offline", "connect", "reach the", "resolve", "couldn't find", "doesn't exist", "not found", "cached")


# --- from items to accuracies -----------------------------------------------------------------------------------


def suite_replicates(
    correct: list[Float[np.ndarray, " items"]], *, samples: int, seed: int
) -> tuple[float, Float[np.ndarray, " samples"]]:
    """The unweighted mean over tasks of the fraction of right items, and its bootstrap replicates.

    Items are resampled within each task. The samples depend on the numbers of items and the seed alone, so that two
    models that answered the same items can be compared replicate by replicate.
    """
    rng, total = np.random.default_rng(seed), np.zeros(samples)
    for values in correct:
        total += replicates(mean, values, samples=samples, seed=rng)
    return float(np.mean([values.mean() for values in correct])), total / len(correct)


def by_task(items: pd.DataFrame, suite: str) -> list[Float[np.ndarray, " items"]]:
    """Whether each item of a suite is answered right, an array a listed task, in a fixed order."""
    mine = items[items["suite"] == suite].sort_values(["task", "part", "item"], kind="stable")
    return [group["correct"].to_numpy(dtype=float) for _, group in mine.groupby("task", sort=True)]


def chance(items: pd.DataFrame) -> float:
    """The mean over tasks of the accuracy by chance, one over an item's ``choices``; NaN where these were not kept."""
    if "choices" not in items:
        return float("nan")
    return float((1.0 / items["choices"]).groupby(items["task"]).mean().mean())


def accuracies(
    items: pd.DataFrame, *, samples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Each suite's accuracy with its interval, in its own order: ``value``, ``low``, ``high``, ``items``, ``tasks``."""
    found = {}
    for suite in dict.fromkeys(items["suite"]):
        correct = by_task(items, suite)
        value, resampled = suite_replicates(correct, samples=samples, seed=seed)
        low, high = percentile_interval(resampled, confidence)
        found[suite] = {"value": value, "low": low, "high": high,
                        "items": sum(map(len, correct)), "tasks": len(correct)}  # fmt: skip
    return found
