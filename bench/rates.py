"""The rates of this machine, as `params/rates.yaml` has them: run this on yours and put the numbers there.

`python bench/rates.py [FOLDER_OF_A_CHECKPOINT]` (default: the trimmed checkpoint of the profile `offline`). Work is
tokens times parameters. On a CPU the seconds are those of one core (CPU seconds of one thread), on a GPU those on the
clock. Each figure is the best of some rounds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from polydetox.core import paths
from polydetox.data.prompts import project_prompts
from polydetox.generation.engines import Sampling, TransformersEngine, VLLMEngine, choose_engine
from polydetox.metrics.fluency import ReferenceModel
from polydetox.models.checkpoints import device, load_causal_lm

PAIR = (8, 88)  # sequences of a step, and their tokens


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The least time of some rounds: CPU seconds on a CPU, on a GPU those on the clock."""
    clock = time.perf_counter if device().type == "cuda" else time.process_time
    taken = []
    for _ in range(rounds):
        if device().type == "cuda":
            torch.cuda.synchronize()
        begun = clock()
        work()
        if device().type == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - begun)
    return min(taken)


def train_step(model: torch.nn.Module) -> Callable[[], None]:
    """One update on sequences as long as a preference pair's."""
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-6)
    ids = torch.randint(3, model.config.vocab_size, PAIR, device=device())

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "weights", nargs="?", type=Path, default=paths.profile_run("offline") / "gemma-3-270m/trim/weights"
    )
    parser.add_argument("--prompts", type=int, default=8, help="prompts that are continued and scored (8)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, of which the best counts (2)")
    options = parser.parse_args()
    table = project_prompts("en").head(options.prompts)
    ids, prompts = list(table["prompt_id"]), list(table["prompt"])
    sampling = Sampling()
    begun = time.perf_counter()
    engine = {"vllm": VLLMEngine, "transformers": TransformersEngine}[choose_engine("auto")](
        options.weights, "bfloat16"
    )
    started = time.perf_counter() - begun
    drawn = engine.sample(ids, prompts, sampling)
    tokens = sum(len(continuation.tokens) for row in drawn for continuation in row)
    decoding = seconds(lambda: engine.sample(ids, prompts, sampling), options.rounds)

    loading = seconds(lambda: load_causal_lm(options.weights, torch.bfloat16), options.rounds)
    reference = ReferenceModel(options.weights, "bfloat16", sampling.n)
    size = sum(weight.numel() for weight in reference.model.parameters())
    pairs = [(prompt, engine.tokenizer.decode(continuation.tokens)) for prompt, row in zip(prompts, drawn, strict=True)
             for continuation in row]  # fmt: skip
    scoring = seconds(lambda: reference.perplexities(*map(list, zip(*pairs, strict=True))), options.rounds)

    step = train_step(load_causal_lm(options.weights, torch.float32).train())
    training = seconds(step, options.rounds + 1)
    print(f"{options.weights.name}: {size / 1e6:.0f} million parameters on {device().type}, torch {torch.__version__}")
    print(f"  decode:  {tokens * size / decoding:.2e}   # {tokens} tokens in {decoding:.2f} s, engine {engine.name}")
    print(f"  forward: {tokens * size / scoring:.2e}   # {tokens} tokens scored in {scoring:.2f} s")
    print(f"  train:   {PAIR[0] * PAIR[1] * size / training:.2e}   # {PAIR[0] * PAIR[1]} tokens in {training:.2f} s")
    print(f"  load:    {2 * size / loading:.2e}   # {2 * size / 1e9:.2f} GB in {loading:.2f} s")
    print(f"  engine:  {max(0.0, started - loading):.1f}   # seconds to start it, less those of loading the weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
