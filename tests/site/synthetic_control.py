"""The part of the made-up run that the chapters on capability and on control while fine-tuning read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core import paths

ALGORITHMS = {
    "plain": {"title": "plain fine-tuning", "algorithm": "plain"},
    "filtering": {"title": "filtering", "algorithm": "filtering"},
    "regularised": {"title": "regularised", "algorithm": "regularised", "regularise": {"schedule": "parallel"}},
    "never": {"title": "never run", "algorithm": "nado"},
}
RUN = ["base", "plain", "filtering", "regularised"]
PROFILE = {
    "capability": {"suites": {"everyday": {"tasks": ["everyday_en", "everyday_de"]}, "bias": {"tasks": ["bias_en"]}}},
    "control": {
        "algorithms": ALGORITHMS,
        "attribute_eval": {
            "suites": {"knowledge": {"tasks": ["knowledge"], "shots": 5}, "commonsense": {"tasks": ["commonsense"]}}
        },
        "jigsaw_classify": {},
    },
}


def base_checkpoint(model: Path) -> str:
    """The stage that holds the base checkpoint of a model, as the workflow names it."""
    trimmed = model / "trim"
    return paths.relative(trimmed if trimmed.is_dir() else model.parents[1] / "checkpoints" / model.name)


# The fraction of toxic continuations of each algorithm, and the fraction of questions that it answers.
_LEVELS = {"base": (0.5, 0.6), "plain": (0.7, 0.6), "filtering": (0.45, 0.55), "regularised": (0.2, 0.5)}


def make_capability(run: Path, variants: list[str], write: Any) -> None:
    """Answers before and after, of which the tuned model has some more wrong in German, and fewer stereotypes."""
    for number, variant in enumerate(variants):
        rows = [
            {"suite": "everyday", "task": f"everyday_{language}", "part": f"everyday_{language}", "language": language,
             "item": item, "correct": float(item % 3 != 0 and not (number and language == "de" and item % 4 == 1)),
             "choices": 4}
            for language in ("en", "de") for item in range(16)
        ]  # fmt: skip
        rows += [
            {"suite": "bias", "task": "bias_en", "part": "bias_en", "language": "en", "item": item,
             "correct": float(item % 4 != 0 if number == 0 else item % 2), "choices": 2} for item in range(64)
        ]  # fmt: skip
        folder = run / variant / "capability"
        _table(folder / "items.parquet", pd.DataFrame(rows))
        write(folder, "capability", {"variant": variant}, metrics={"questions": len(rows)})


def make_control(run: Path, languages: list[str], marker: str, prompts: int, samples: int, write: Any) -> None:
    """A corpus, three trained algorithms, their evaluations, win rates, and three conditions of comments."""
    from notebook_cells import definitions
    from polydetox.attribute_control.evaluation import toxicity_by_language
    from polydetox.benchmarks.harness import accuracies
    from polydetox.stats.agreement import cluster_auc

    wins, evaluation = definitions("win_rate"), definitions("attribute_eval")
    options: dict[str, Any] = {"samples": 50, "confidence": 0.95, "seed": 0}
    control = run / "control"
    write(control / "corpus", "control_corpus", {}, metrics={"rows": 40, "source": "model", "evaluated_skipped": 1200})
    for position, algorithm in enumerate(RUN):
        rng = np.random.default_rng(position)
        right = _LEVELS[algorithm][1]
        if algorithm != "base":
            folder = control / algorithm / "regularise"
            seconds = {"head_cpu_seconds": 20.0 * (algorithm == "regularised"), "model_cpu_seconds": 100.0,
                       "two_device_cpu_seconds": 100.0 + 10.0 * (algorithm == "regularised")}  # fmt: skip
            settings = {"algorithm": ALGORITHMS[algorithm]["algorithm"], "schedule": "parallel", "rows_train": 36,
                        "steps": 28}  # fmt: skip
            write(folder, "regularise", {"algorithm": algorithm}, metrics=settings | seconds)
        scores = make_scores(algorithm, languages, marker, prompts, samples, rng)
        decoded = {"algorithm": algorithm, "languages": languages}
        _table(control / algorithm / "constrained_decode" / "continuations.parquet", scores)
        write(control / algorithm / "constrained_decode", "constrained_decode", decoded, metrics=None)
        items = pd.DataFrame([
            {"suite": suite, "task": suite, "part": suite, "language": "en", "item": item,
             "correct": float(rng.random() < right)}
            for suite in ("knowledge", "commonsense") for item in range(40)
        ])  # fmt: skip
        losses = pd.DataFrame([
            {"row": row, "domain": domain, "nll": rng.normal(40, 5), "tokens": 10}
            for domain in ("toxic", "neutral") for row in range(10)
        ])  # fmt: skip
        folder = control / algorithm / "attribute_eval"
        for name, table in (("scores", scores), ("items", items), ("losses", losses)):
            _table(folder / f"{name}.parquet", table)
        metrics = {
            "algorithm": algorithm,
            "threshold": 0.5,
            "toxicity": toxicity_by_language(scores, 0.5, **options),
            "form": evaluation.form_by_language(scores, **options),
            "perplexity": evaluation.perplexity_by_domain(losses, **options),
            "suites": accuracies(items, **options),
        }
        write(folder, "attribute_eval", {"algorithm": algorithm}, metrics=metrics)
    pairs = pd.DataFrame([
        {"algorithm": left, "opponent": right, "prompt_id": f"p{prompt:02d}", "sample": 0,
         "forward": 1.0 - (prompt % 3), "backward": -1.0 + (prompt % 2)}
        for number, left in enumerate(RUN) for right in RUN[number + 1 :] for prompt in range(prompts)
    ])  # fmt: skip
    forward, backward = pairs["forward"].to_numpy(), pairs["backward"].to_numpy()
    pairs["outcome"] = wins.outcomes(forward, backward)
    metrics = {
        "judge": base_checkpoint(control.parent),
        "algorithms": RUN,
        "rates": wins.win_rates(pairs, **options),
        "rates_averaged": wins.win_rates(pairs, wins.averaged_outcomes, **options),
        "ties": float((pairs["outcome"] == 0.5).mean()),
        "position_bias": wins.position_bias(forward, backward),
    }
    write(control / "win_rate", "win_rate", {}, metrics=metrics)
    labels = np.array([0, 1] * 10)
    for number, condition in enumerate(("base", "sft-lm", "regularised-lm")):
        area = cluster_auc(labels == 1, labels + np.linspace(0, 2 + number, 20), np.arange(20) // 4, **options)
        level = {"value": 0.2 + 0.1 * number, "low": 0.1, "high": 0.5}
        metrics = {"condition": condition, "prompting": area, "head": area, "avgtox": level, "toxic_fraction": level}
        write(control / "jigsaw_classify" / condition, "jigsaw_classify", {"condition": condition}, metrics=metrics)


def make_scores(
    algorithm: str, languages: list[str], marker: str, prompts: int, samples: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The scored continuations of one algorithm, of which some repeat themselves and some leave their language."""
    return pd.DataFrame([
        {"language": language, "prompt_id": f"p{prompt:02d}", "sample": sample, "empty": False,
         "prompt": f"{marker} prompt {language}", "continuation": f"{marker} {algorithm} {language} {prompt} {sample}",
         "toxicity": float(rng.random() < _LEVELS[algorithm][0]),
         "repeated": 0.25 * (algorithm == "regularised" and prompt > 0),
         "detected_language": "en" if algorithm == "filtering" and sample == 0 else language}
        for language in languages for prompt in range(prompts) for sample in range(samples)
    ])  # fmt: skip


def _table(file: Path, table: pd.DataFrame) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(file, index=False)


def written(folder: Path) -> dict[str, Any]:
    """The metrics of one made-up stage."""
    return json.loads((folder / "metrics.json").read_text())
