"""The `transformers` engine against `model.generate(num_return_sequences=25)`, in CPU seconds on one thread.

Three families of random-weight models, the same prompts, 25 samples of 20 tokens each at temperature 0.9 and top-p 0.8.
The two alternate, and the ratio is that of the medians; the last line is the worst family's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from conftest import TEXTS, tiny_tokenizer

from polydetox.generation.engines import Sampling, TransformersEngine

TARGET = 1.8


def model_of(family: str, vocabulary: int):
    """A random-weight model of about a million parameters."""
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig

    configuration = {
        "gpt2": GPT2Config(vocab_size=vocabulary, n_positions=256, n_embd=128, n_layer=4, n_head=4),
        "bloom": BloomConfig(vocab_size=vocabulary, hidden_size=128, n_layer=4, n_head=4),
        "llama": LlamaConfig(vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                             num_attention_heads=4, max_position_embeddings=256),
    }[family]  # fmt: skip
    configuration.pad_token_id, configuration.eos_token_id, configuration.bos_token_id = 0, 1, 2
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(configuration).eval()


def cpu_seconds(work) -> float:
    """CPU seconds of one call in this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    prompts = [" ".join(TEXTS)[3 * number : 3 * number + 40] for number in range(options.prompts)]
    identifiers = [str(number) for number in range(options.prompts)]
    worst = float("inf")
    for family in ("llama", "bloom", "gpt2"):
        with tempfile.TemporaryDirectory() as folder:
            model_of(family, len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            engine = TransformersEngine(Path(folder), "float32")
        model = engine.model

        def ours(engine=engine) -> None:
            for start in range(0, len(prompts), 20):
                engine.draw(identifiers[start : start + 20], prompts[start : start + 20], Sampling())

        def published(model=model) -> None:
            for start in range(0, len(prompts), 20):
                inputs = tokenizer(prompts[start : start + 20], return_tensors="pt", padding=True)
                model.generate(**inputs, do_sample=True, temperature=0.9, top_p=0.8, top_k=0, max_new_tokens=20,
                               num_return_sequences=25, pad_token_id=0)  # fmt: skip

        ours(), published()  # warm up
        times = [(cpu_seconds(ours), cpu_seconds(published)) for _ in range(options.repeats)]
        mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{family}: {mine:.2f} s against {theirs:.2f} s, ratio {theirs / mine:.2f}")
        worst = min(worst, theirs / mine)
    print(f"ratio {worst:.2f} (target {TARGET})")
    return 0 if worst >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
