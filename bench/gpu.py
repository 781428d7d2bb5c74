"""What one GPU does in a second with a checkpoint: new tokens of each engine, DPO steps, continuations read.

`python bench/gpu.py FOLDER` takes the weights of a checkpoint (`runs/checkpoints/gemma-3-270m/weights`), this project's
prompts in 17 languages, 25 continuations of 20 tokens each, and the default settings of the stages. Each rate of
sampling is that of a second pass, after the start that the first one shows. The last line is vLLM's rate divided by
that of the engine `transformers`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from dpo import bare_trainer, pairs_of
from transformers import TrainerCallback

from polydetox.core.languages import LANGUAGES
from polydetox.core.parameters import checked
from polydetox.data.prompts import load_prompts
from polydetox.generation.engines import Sampler, Sampling
from polydetox.metrics.fluency import ReferenceModel


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, with what it has started on the GPU."""
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def sampling(weights: Path, engine: str, prompts: dict[str, pd.DataFrame], folder: Path) -> tuple[float, pd.DataFrame]:
    """New tokens a second over all languages, and the continuations."""
    tables: list[pd.DataFrame] = []
    sampler = Sampler(weights, Sampling(), engine=engine)

    def all_languages(attempt: str) -> None:
        tables[:] = [sampler.continuations(table, folder / attempt / language) for language, table in prompts.items()]

    start, again = (seconds(lambda name=name: all_languages(name)) for name in ("first", "second"))
    tokens = sum(int(table["tokens"].sum()) for table in tables)
    print(f"sampling, {engine}: {tokens:,} new tokens in {again:.1f} s: {tokens / again:,.0f} a second "
          f"(with the start {start:.1f} s)", flush=True)  # fmt: skip
    return tokens / again, pd.concat(tables)


class Clock(TrainerCallback):
    """Seconds from the end of the tenth step to the end of training."""

    def on_step_end(self, arguments, state, control, **_):
        if state.global_step == 10:
            torch.cuda.synchronize()
            self.begun = time.perf_counter()

    def on_train_end(self, arguments, state, control, **_):
        torch.cuda.synchronize()
        self.rate = (state.global_step - 10) / (time.perf_counter() - self.begun)


def training(weights: Path, folder: Path) -> None:
    """DPO steps a second, on pairs of some 10 to 150 tokens."""
    settings = checked("dpo", epochs=1, eval_steps=1, warmup_steps=1)
    trainer = bare_trainer(weights, pairs_of(1000), settings, folder)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    print(f"training: {clock.rate:.1f} DPO steps of {settings.batch_size} pairs a second", flush=True)


def reading(weights: Path, continuations: pd.DataFrame) -> None:
    """Continuations a second whose perplexity is taken."""
    reference = ReferenceModel(weights, "bfloat16")
    prompts, texts = continuations["prompt"].tolist(), continuations["continuation"].tolist()
    reference.perplexities(prompts[:50], texts[:50])
    again = seconds(lambda: reference.perplexities(prompts, texts))
    print(f"perplexity: {len(texts):,} continuations in {again:.1f} s: {len(texts) / again:,.0f} a second", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="the folder of a checkpoint's weights")
    parser.add_argument("--prompts", type=int, default=20, help="a language")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU is seen")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    prompts = {language: load_prompts("project", language, "", options.prompts)[0] for language in LANGUAGES}
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["POLYDETOX_RUNS"] = str(folder / "runs")
        for engine in ["transformers", *(["vllm"] if find_spec("vllm") else [])]:
            rates[engine], continuations = sampling(options.weights, engine, prompts, folder / engine)
        reading(options.weights, continuations)
        training(options.weights, folder / "dpo")
    if "vllm" in rates:
        print(f"ratio {rates['vllm'] / rates['transformers']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
