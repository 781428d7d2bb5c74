"""Activations over the next 20 tokens with a cache against recomputing the prefix at every step, in CPU seconds.

Both decode the same prompts greedily, in the same padded batches, and average the activations of the same 100 neurons
where each new token is predicted; the published way runs the whole prefix again for each token. Tokens and activations
must be equal. The last line is the ratio; the exit status is 1 below the target.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys

import numpy as np
import torch
from generation import cpu_seconds, model_of
from probe import texts_and_labels

from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.decoding import batches, greedy, mean_over_new_tokens, recorded
from polydetox.mechanism.neurons import Neuron
from polydetox.models.texts import encode_prompts, left_padded
from tiny import tiny_tokenizer

TARGET = 5
STEPS, BATCH = 20, 16


def published(model, tokenizer, prompts: list[str], neurons: list[Neuron]) -> tuple[list[list[int]], np.ndarray]:
    """Every step a forward pass over the whole prefix, without a cache; the last position's activations are kept."""
    mlps = MLPs(model)
    found: dict[int, torch.Tensor] = {}
    handles = [
        mlps.output(layer).register_forward_pre_hook(
            lambda _, inputs, layer=layer: found.update({layer: inputs[0][:, -1]})
        )
        for layer in range(len(mlps))
    ]
    order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
    tokens: list[list[int]] = [[] for _ in prompts]
    means = np.zeros((len(prompts), len(neurons)), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            batch = left_padded(tokenizer, encode_prompts(tokenizer, [prompts[row] for row in rows]))
            ids, mask = batch["input_ids"], batch["attention_mask"]
            for _ in range(STEPS):
                positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
                logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False,
                               logits_to_keep=1).logits  # fmt: skip
                token = logits[:, -1].argmax(dim=-1)
                at = torch.stack([found[layer][:, place] for layer, place in neurons], dim=1)
                means[rows] += at.numpy() / STEPS
                for row, new in zip(rows, token.tolist(), strict=True):
                    tokens[row].append(new)
                ids = torch.cat([ids, token.unsqueeze(-1)], dim=-1)
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
    for handle in handles:
        handle.remove()
    return tokens, means


def ours(model, tokenizer, prompts: list[str], neurons: list[Neuron]) -> np.ndarray:
    """As the notebook activations does."""
    mlps, means = MLPs(model), np.zeros((len(prompts), len(neurons)), dtype=np.float32)
    for batch in batches(prompts, BATCH):
        with recorded(mlps, neurons, len(batch)) as passes:
            decoded = greedy(model, tokenizer, [prompts[row] for row in batch], STEPS)
        means[batch] = mean_over_new_tokens(passes, decoded.counted)
    return means


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64, help="prompts (64)")
    prompts, _ = texts_and_labels(parser.parse_args().prompts)
    tokenizer = tiny_tokenizer()
    model = model_of("llama", len(tokenizer))
    model.generation_config.eos_token_id = None  # every prompt is continued by all 20 tokens on both sides
    tokenizer.eos_token = None
    rng = np.random.default_rng(0)
    neurons = [(int(rng.integers(4)), int(rng.integers(704))) for _ in range(100)]
    cached: list[np.ndarray] = []
    plain: list[tuple[list[list[int]], np.ndarray]] = []
    seconds = {
        "ours": cpu_seconds(lambda: cached.append(ours(model, tokenizer, prompts, neurons))),
        "published": cpu_seconds(lambda: plain.append(published(model, tokenizer, prompts, neurons))),
    }
    np.testing.assert_allclose(cached[0], plain[0][1], rtol=0, atol=1e-4)
    for which, spent in seconds.items():
        print(f"{which}: {spent:.2f} CPU seconds for {len(prompts)} prompts and {STEPS} tokens each")
    ratio = seconds["published"] / seconds["ours"]
    print(f"ratio {ratio:.2f} (target {TARGET})")
    return int(ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
