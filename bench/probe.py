"""Training the probe with cached features against running the language model again in every epoch, in CPU seconds.

Both train the same linear layer, from the same weights and in the same order, for 20 epochs of batches of 10 texts;
the published way passes each batch through the language model, frozen, every time that it comes up. The probes must be
equal. The last line is the ratio; the exit status is 1 below the target.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from generation import cpu_seconds, model_of

from notebook_cells import train_probe
from polydetox.mechanism.probe import Probe
from polydetox.mechanism.representations import pooled
from polydetox.models.checkpoints import load_causal_lm, load_tokenizer
from tiny import TEXTS, tiny_tokenizer

TARGET = 10
EPOCHS, BATCH, LEARNING_RATE = 20, 10, 1e-3


def texts_and_labels(number: int) -> tuple[list[str], np.ndarray]:
    """Sentences of 5 to 60 words, and random labels."""
    rng = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    texts = [" ".join(rng.choice(words, rng.integers(5, 60))) for _ in range(number)]
    return texts, rng.integers(2, size=number)


def published(model, tokenizer, texts: list[str], labels: np.ndarray) -> Probe:
    """The language model's forward pass in every epoch."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(model.config.hidden_size, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(0)
    truth = torch.from_numpy(labels.astype(np.float32))
    streams: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0]))
    tokenizer.padding_side = "right"
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(texts), generator=order).split(BATCH):
            batch = tokenizer([texts[row] for row in rows], return_tensors="pt", padding=True)
            with torch.no_grad():
                model.model(**batch)
            mask = batch["attention_mask"].unsqueeze(-1).float()
            features = (streams.pop() * mask).sum(dim=1) / mask.sum(dim=1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(layer(features).squeeze(-1), truth[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    handle.remove()
    weight = layer.weight.detach()[0].numpy()
    return Probe(weight, float(layer.bias.detach()[0]), np.ones_like(weight))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=200, help="labelled texts (200)")
    texts, labels = texts_and_labels(parser.parse_args().texts)
    tokenizer = tiny_tokenizer()
    model = model_of("llama", len(tokenizer))
    probes: dict[str, Probe] = {}
    with tempfile.TemporaryDirectory(prefix="polydetox-bench-") as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")

        def ours() -> None:
            loaded = load_causal_lm(folder / "model", torch.float32), load_tokenizer(folder / "model")
            features = pooled(*loaded, texts, "last")
            probes["ours"] = train_probe(features[:, 0], labels, learning_rate=LEARNING_RATE, batch_size=BATCH,
                                         epochs=EPOCHS)  # fmt: skip

        def theirs() -> None:
            probes["published"] = published(model, tokenizer, texts, labels)

        seconds = {"ours": cpu_seconds(ours), "published": cpu_seconds(theirs)}
    np.testing.assert_allclose(probes["ours"].weight, probes["published"].weight, rtol=0, atol=1e-3)
    for which, spent in seconds.items():
        print(f"{which}: {spent:.2f} CPU seconds for {len(texts)} texts and {EPOCHS} epochs")
    ratio = seconds["published"] / seconds["ours"]
    print(f"ratio {ratio:.2f} (target {TARGET})")
    return int(ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
