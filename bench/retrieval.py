"""Retrieval in 17 languages with English represented once against once for each other language, in CPU seconds.

Both pool the residual stream of every layer over the same sentences, and load the model once a language; the published
way represents English again beside each of the 16 other languages. The accuracies must be equal. The last line is the
ratio; the exit status is 1 below the target.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from generation import cpu_seconds, model_of

from polydetox.core.languages import LANGUAGES
from polydetox.mechanism.representations import pooled
from polydetox.metrics.retrieval import retrieval_figures
from polydetox.models.checkpoints import load_causal_lm, load_tokenizer
from tiny import TEXTS, tiny_tokenizer

TARGET = 1.8
ENGLISH = "en"
BATCH = 64


def made_up(sentences: int) -> dict[str, list[str]]:
    """Sentences of 10 to 40 words in each language, made of the same words."""
    rng = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    return {language: [" ".join(rng.choice(words, rng.integers(10, 40))) for _ in range(sentences)]
            for language in LANGUAGES}  # fmt: skip


def represent(model, tokenizer, sentences: list[str]) -> np.ndarray:
    """The mean over tokens of every layer's residual stream (sentences, layers, hidden), batch by batch."""
    order = sorted(range(len(sentences)), key=lambda position: len(sentences[position]))
    tokenizer.padding_side = "right"
    entered: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    pooled = np.empty((len(sentences), model.config.num_hidden_layers, model.config.hidden_size), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = tokenizer([sentences[row] for row in rows], return_tensors="pt", padding=True)
            states = model.model(**batch, use_cache=False, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"].unsqueeze(-1).float()
            for layer, state in enumerate([*states[1:-1], entered.pop()]):
                pooled[rows, layer] = ((state * mask).sum(dim=1) / mask.sum(dim=1)).numpy()
    handle.remove()
    return pooled


def accuracies(english: np.ndarray, other: np.ndarray) -> list[float]:
    """Retrieval accuracy at every layer."""
    return [retrieval_figures(english[:, layer], other[:, layer])["accuracy"] for layer in range(english.shape[1])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=200, help="sentences in each language (200, as in the paper)")
    sentences = made_up(parser.parse_args().sentences)
    tokenizer = tiny_tokenizer()
    model = model_of("llama", len(tokenizer))
    others = [language for language in LANGUAGES if language != ENGLISH]
    found: dict[str, dict[str, list[float]]] = {"ours": {}, "published": {}}
    with tempfile.TemporaryDirectory(prefix="polydetox-bench-") as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")

        @cache
        def represented(language: str) -> np.ndarray:
            loaded = load_causal_lm(folder / "model", torch.float32), load_tokenizer(folder / "model")
            return pooled(*loaded, sentences[language], "layers", BATCH)

        def ours() -> None:
            for language in others:
                found["ours"][language] = accuracies(represented(ENGLISH), represented(language))

        def theirs() -> None:
            for language in others:
                loaded = load_causal_lm(folder / "model", torch.float32)
                pair = [represent(loaded, tokenizer, sentences[code]) for code in (ENGLISH, language)]
                found["published"][language] = accuracies(*pair)

        seconds = {"ours": cpu_seconds(ours), "published": cpu_seconds(theirs)}
    assert found["ours"] == found["published"], "the two ways disagree"
    for which, spent in seconds.items():
        print(f"{which}: {spent:.2f} CPU seconds for {len(LANGUAGES)} languages")
    ratio = seconds["published"] / seconds["ours"]
    print(f"ratio {ratio:.2f} (target {TARGET})")
    return int(ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
