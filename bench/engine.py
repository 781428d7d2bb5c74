"""How near sampling, reading and training come to what this machine's matrix products allow, on one thread.

`python bench/engine.py RUN_FOLDER` takes the base model and the preference pairs of a finished run of `offline`. Beside
the CPU seconds of each piece of work stand those of the matrix products of its linear layers alone, of the same shapes
and in the same precision, for training with those of both gradients. The last line is the worst ratio of a piece of
work to its products, as a multiple of its target (1.5 for sampling and reading, 2 for training).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from dpo import bare_trainer

from polydetox.core.parameters import checked
from polydetox.data.pairs import PAIR_COLUMNS
from polydetox.data.prompts import load_prompts
from polydetox.execute import COMPUTING
from polydetox.generation.engines import Sampling, TransformersEngine
from polydetox.metrics.fluency import ReferenceModel
from polydetox.models.checkpoints import inference_dtype
from polydetox.training.shared import mixed_precision

Shape = tuple[int, int, int, bool]  # rows (tokens), inputs, outputs, and whether gradients are taken
TARGETS = {"sampling": 1.5, "reading": 1.5, "training": 2.0}
WEIGHTS = 64 * 2**20  # bytes of the weights that one shape is measured with
PROMPTS_A_BATCH = 25  # with 10 continuations each, as in `offline`


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def shapes_of(model: Any, work: Callable[[], object]) -> Counter[Shape]:
    """How many products of each shape a model's linear layers take during some work."""
    shapes: Counter[Shape] = Counter()

    def note(layer: torch.nn.Linear, given: tuple[torch.Tensor, ...], _: object) -> None:
        rows = given[0].numel() // layer.in_features
        shapes[rows, layer.in_features, layer.out_features, torch.is_grad_enabled()] += 1

    def note_fused(model: Any, _: object, named: dict[str, Any]) -> None:
        if named.get("fused_lm_head"):  # TRL multiplies by the output layer's weight itself
            outputs, inputs = model.get_output_embeddings().weight.shape
            shapes[int((named["labels"][:, 1:] != -100).sum()), inputs, outputs, torch.is_grad_enabled()] += 1

    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    hooks.append(model.register_forward_pre_hook(note_fused, with_kwargs=True))
    work()
    for hook in hooks:
        hook.remove()
    return shapes


def with_each(form: Callable[[torch.Tensor], torch.Tensor], weights: list[torch.Tensor]) -> None:
    """Take a product with each of some weights."""
    for weight in weights:
        form(weight)


def products(shapes: Counter[Shape], dtype: torch.dtype) -> float:
    """CPU seconds of these products, and of those that the gradients of inputs and weights take.

    Each is taken with several weights in turn, as a model's layers are, so that none is in the nearest cache.
    """
    total = 0.0
    for (rows, inputs, outputs, gradients), count in shapes.items():
        sizes = (rows, inputs), (rows, outputs)
        given, after = (torch.randn(size).to(dtype) for size in sizes)
        layers = max(1, WEIGHTS // (inputs * outputs * dtype.itemsize))
        weights = [torch.randn(outputs, inputs).to(dtype) for _ in range(layers)]
        forms: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda weight, given=given: given @ weight.T]
        if gradients:
            forms += [lambda weight, after=after: after @ weight, lambda _, a=after, g=given: a.T @ g]
        for form in forms:
            total += count * min(seconds(partial(with_each, form, weights)) for _ in range(3)) / layers
    return total


def row(name: str, needed: float, least: float, what: str) -> float:
    """Print one line; returns the ratio as a multiple of its target."""
    print(f"{name}, {what}: {needed:.1f} CPU seconds, its products {least:.1f}, ratio {needed / least:.2f} "
          f"(target {TARGETS[name]})", flush=True)  # fmt: skip
    return needed / least / TARGETS[name]


def inference(weights: Path) -> list[float]:
    """Sampling from German, English and Hindi prompts, and reading what was sampled."""
    tables = [load_prompts("project", language, "", PROMPTS_A_BATCH)[0] for language in ("de", "en", "hi")]
    dtype, sampled = inference_dtype("bfloat16"), list[tuple[str, str]]()
    engine, reference = TransformersEngine(weights, "bfloat16"), ReferenceModel(weights, "bfloat16")

    def sample() -> None:
        sampled.clear()
        for table in tables:
            prompts = table["prompt"].tolist()
            found = engine.sample(table["prompt_id"].tolist(), prompts, Sampling(n=10))
            sampled.extend((prompt, engine.tokenizer.decode(one.tokens))
                           for prompt, each in zip(prompts, found, strict=True) for one in each)  # fmt: skip

    shapes = shapes_of(engine.model, sample)
    sampling = row("sampling", seconds(sample), products(shapes, dtype), f"{len(sampled)} continuations")
    read = partial(reference.perplexities, *map(list, zip(*sampled, strict=True)))
    shapes = shapes_of(reference.model, read)
    return [sampling, row("reading", seconds(read), products(shapes, dtype), "the same continuations")]


def training(weights: Path, pairs: pd.DataFrame, steps: int, folder: Path) -> float:
    """DPO steps; what comes before the first and after the last counts too little to matter."""
    settings = checked("dpo", max_steps=steps, eval_steps=1, warmup_steps=1, learning_rate=2e-6)
    trainer = bare_trainer(weights, pairs, settings, folder)
    needed = list[float]()
    shapes = shapes_of(trainer.model, lambda: needed.append(seconds(trainer.train)))
    precision = torch.bfloat16 if mixed_precision() else torch.float32
    return row("training", needed[0], products(shapes, precision), f"{steps} DPO steps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run of offline")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    if not COMPUTING.items() <= os.environ.items():  # as the stages have it; read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | COMPUTING)
    torch.set_num_threads(1)
    (model,) = [folder.parent for folder in options.run.glob("*/trim")]
    pairs = pd.read_parquet(model / "pairs/on-policy/pairs.parquet")[PAIR_COLUMNS]
    with tempfile.TemporaryDirectory() as name:
        os.environ["POLYDETOX_RUNS"] = f"{name}/runs"
        weights = model / "trim/weights"
        ratios = [*inference(weights), training(weights, pairs, options.steps, Path(name))]
    print(f"ratio {max(ratios):.2f} (target 1)")
    return 0 if max(ratios) <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
