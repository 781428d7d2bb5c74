"""A reference model's perplexities against the published ones, one continuation at a time, in CPU seconds, one thread.

Random-weight models (hidden size 256, 4 layers): three causal families, which share a prompt's cache between its 25
continuations, and a T5 in both ways of reading. The published way runs the model on the whole text and on its prompt
for every continuation; for a T5 whose encoder reads the prompt alone it is one pass a continuation. Prompts have 10 to
60 tokens, continuations 20. The perplexities must be equal within 1e-4; the last line is the worst ratio of all.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from generation import cpu_seconds, model_of

from polydetox.metrics.fluency import ReferenceModel
from tiny import TEXTS, tiny_tokenizer

TARGET = 5
K = 25


def made_up(prompts: int) -> tuple[list[str], list[str]]:
    """Prompts of 10 to 60 tokens, each 25 times, and continuations of about 20."""
    generator = random.Random(0)
    text = " ".join(TEXTS * 4)
    starts = [generator.randrange(200) for _ in range(prompts)]
    drawn = [text[start : start + generator.randrange(30, 300)].strip() for start in starts]
    rows = [prompt for prompt in drawn for _ in range(K)]
    words = " ".join(TEXTS[:3]).split()
    return rows, [" " + " ".join(generator.choices(words, k=generator.randrange(7, 10))) for _ in rows]


def t5_of(vocabulary: int):
    """A random-weight T5 of mT5's kind, as large as the causal models."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=vocabulary, d_model=256, d_kv=64, d_ff=704, num_layers=4, num_heads=4,
                 decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, feed_forward_proj="gated-gelu",
                 tie_word_embeddings=False)
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight.mul_(3 / 16)  # logits with a standard deviation of 3, as the causal models' have
    return model


def published(reference: ReferenceModel, prompt: str, continuation: str) -> float:
    """The published perplexity of one continuation: two passes."""

    def loss(text: str) -> tuple[float, int]:
        ids = reference.tokenizer(text, return_tensors="pt")["input_ids"]
        return float(reference.model(input_ids=ids, labels=ids).loss), ids.shape[1]

    (whole, tokens), (alone, of_prompt) = loss(prompt + continuation), loss(prompt)
    return math.exp((whole * (tokens - 1) - alone * (of_prompt - 1)) / (tokens - of_prompt))


def after_encoder(reference: ReferenceModel, prompt: str, continuation: str) -> float:
    """The perplexity of one continuation by a decoder whose encoder has read the prompt: one pass."""
    labels = reference.tokenizer(continuation.strip(), return_tensors="pt")["input_ids"]
    return float(reference.model(**reference.tokenizer(prompt, return_tensors="pt"), labels=labels).loss.exp())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    prompts, continuations = made_up(parser.parse_args().prompts)
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    print(f"{len(set(prompts))} prompts of {min(lengths)} to {max(lengths)} tokens, {K} continuations each")
    ways: list[tuple[str, str, Callable[[ReferenceModel, str, str], float]]] = [
        ("llama", "published", published), ("gpt2", "published", published), ("bloom", "published", published),
        ("t5", "conditional", after_encoder), ("t5", "published", published),
    ]  # fmt: skip
    ratios = []
    for vocabulary in (1_000, 32_000):
        for family, method, alone in ways:
            model = t5_of(vocabulary) if family == "t5" else model_of(family, vocabulary)
            with tempfile.TemporaryDirectory(prefix="polydetox-bench-") as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                reference = ReferenceModel(Path(folder), "float32", method=method)
            found: dict[str, np.ndarray | list[float]] = {}

            def ours(reference: ReferenceModel = reference, found: dict = found) -> None:
                found["ours"] = reference.perplexities(prompts, continuations)

            def theirs(reference: ReferenceModel = reference, found: dict = found, alone: Callable = alone) -> None:
                with torch.inference_mode():
                    found["published"] = [alone(reference, *row) for row in zip(prompts, continuations, strict=True)]

            reference.perplexities(prompts[:K], continuations[:K])  # warm up
            mine, one_by_one = cpu_seconds(ours), cpu_seconds(theirs)
            np.testing.assert_allclose(found["ours"], found["published"], rtol=1e-4)
            ratios.append(one_by_one / mine)
            print(f"{family:6} {method:11} vocabulary {vocabulary:6}: {mine:6.2f} s against {one_by_one:6.2f} s, "
                  f"ratio {ratios[-1]:.2f}", flush=True)  # fmt: skip
    print(f"ratio {min(ratios):.2f} (target {TARGET})")
    return int(min(ratios) < TARGET)


if __name__ == "__main__":
    sys.exit(main())
