"""Diversity over token ids against the published way, which decodes every token by itself; in CPU seconds.

Made-up continuations in several scripts, 25 a prompt, as token ids: tokenising comes before either and is told apart.
The figures must be equal. The last line is the ratio; the exit status is 1 below the target.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import random
import statistics
import sys
import time

import numpy as np
from generation import cpu_seconds

from polydetox.metrics.diversity import distinct_tokens
from tiny import TEXTS, tiny_tokenizer

TARGET = 3
K = 25


def decoded_one_by_one(rows: list[list[int]], tokenizer) -> list[float]:
    """The published figures of one prompt: each token decoded, n-grams as strings joined by underscores."""
    grams: list[set[str]] = [set(), set(), set()]
    total = 0
    for row in rows:
        pieces = [tokenizer.decode(token, skip_special_tokens=True) for token in row]
        pieces = [piece for piece in pieces if piece]
        for order, found in enumerate(grams, 1):
            found.update("_".join(pieces[start : start + order]) for start in range(len(pieces) - order + 1))
        total += len(pieces)
    return [len(found) / total for found in grams]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    generator = random.Random(0)
    words = " ".join(TEXTS).split()
    prompts = [[" ".join(generator.choices(words, k=12)) for _ in range(K)]
               for _ in range(parser.parse_args().prompts)]  # fmt: skip
    tokenizer = tiny_tokenizer()
    texts = [text for continuations in prompts for text in continuations]
    begun = time.process_time()
    rows = tokenizer(texts)["input_ids"]
    tokenising = time.process_time() - begun
    found: dict[str, np.ndarray] = {}

    def ours() -> None:
        found["ours"] = distinct_tokens(rows, [K] * len(prompts), tokenizer)

    def published() -> None:
        parts = (rows[start : start + K] for start in range(0, len(rows), K))
        found["published"] = np.array([decoded_one_by_one(part, tokenizer) for part in parts])

    ours()  # warm up
    times = [(cpu_seconds(ours), cpu_seconds(published)) for _ in range(5)]
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    np.testing.assert_allclose(found["ours"], found["published"], rtol=1e-12)
    print(f"{len(prompts)} prompts, {K} continuations each, {sum(map(len, rows)):,} tokens")
    print(f"{mine:.3f} s against {theirs:.3f} s; tokenising before either: {tokenising:.3f} s")
    print(f"ratio {theirs / mine:.1f} (target {TARGET})")
    return int(theirs / mine < TARGET)


if __name__ == "__main__":
    sys.exit(main())
