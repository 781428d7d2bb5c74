"""Greedy decoding that watches, or shifts, the activations of chosen MLP neurons.

Each prompt is prefilled once and then costs one token a step with its cache. The published code runs the whole prefix
again at every step; activations and tokens are the same (see the tests).
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydetox.generation.engines import continuation_text, end_of_sequence
from polydetox.mechanism.architectures import MLPs
from polydetox.models.texts import context_length, encode_prompts, left_padded

Neuron = tuple[int, int]  # layer, and place in that layer's MLP


@dataclass(frozen=True)
class Shift:
    """What is added to the activations of which neurons."""

    neurons: Sequence[Neuron]
    offset: float


@dataclass(frozen=True)
class Decoded:
    """What greedy decoding gave for each prompt, in the order of the prompts."""

    continuations: list[str]
    activations: Float[np.ndarray, "prompts neurons"]  # of the watched neurons, mean over the new tokens


@contextmanager
def watched(mlps: MLPs, neurons: Sequence[Neuron], rows: int) -> Iterator[list[torch.Tensor]]:
    """Keep the activations of some neurons at the last position of every forward pass over ``rows`` texts.

    Yields a list that grows by one float32 tensor a pass, of shape (rows, neurons), columns in the order given.
    """
    passes: list[torch.Tensor] = []
    by_layer = _by_layer(neurons)
    found: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            activations = inputs[0].reshape(rows, -1, inputs[0].shape[-1])  # OPT flattens rows and positions
            found[layer] = activations[:, -1, by_layer[layer][1]].float()
            if len(found) == len(by_layer):
                row = activations.new_empty((rows, len(neurons)), dtype=torch.float32)
                for at, (places, _) in by_layer.items():
                    row[:, places] = found[at]
                passes.append(row)
                found.clear()

        return hook

    handles = [mlps.output(layer).register_forward_pre_hook(keep(layer)) for layer in by_layer]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def shifted(mlps: MLPs, shifts: Sequence[Shift | None]) -> Iterator[None]:
    """Add to the activations of some neurons, at every position of every forward pass; an entry of ``shifts`` a text.

    Texts with different shifts thus share a batch.
    """
    added: dict[int, torch.Tensor] = {}  # by layer: (texts, 1, neurons)
    for row, shift in enumerate(shifts):
        for layer, place in shift.neurons if shift else ():
            if layer not in added:
                added[layer] = torch.zeros(len(shifts), 1, mlps.neurons(layer), device=mlps.matrix(layer).device)
            added[layer][row, 0, place] = shift.offset  # type: ignore[union-attr]

    def add(layer: int) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            activations = inputs[0]
            rows = activations.reshape(len(shifts), -1, activations.shape[-1])  # OPT flattens rows and positions
            return ((rows + added[layer].to(activations.dtype)).reshape(activations.shape), *inputs[1:])

        return hook

    handles = [mlps.output(layer).register_forward_pre_hook(add(layer)) for layer in added]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_layer(neurons: Sequence[Neuron]) -> dict[int, tuple[list[int], list[int]]]:
    """For each layer the positions of its neurons in ``neurons``, and their places in the layer."""
    grouped: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for position, (layer, place) in enumerate(neurons):
        grouped[layer][0].append(position)
        grouped[layer][1].append(place)
    return dict(grouped)


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int = 20,
    watch: Sequence[Neuron] = (),
    shifts: Sequence[Shift | None] | None = None,
    batch_size: int = 64,
) -> Decoded:
    """Continue each prompt greedily by up to ``new_tokens`` tokens.

    The activations of ``watch`` are taken where each new token is predicted, and averaged over the new tokens of a
    prompt up to its end. ``shifts`` has an entry a prompt; its offset is added at all positions, the prompt's included.
    """
    mlps = MLPs(model)
    stop = end_of_sequence(model.generation_config, tokenizer)
    encoded = encode_prompts(tokenizer, prompts, context_length(model.config), new_tokens)
    order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
    texts = [""] * len(prompts)
    means = np.full((len(prompts), len(watch)), np.nan, dtype=np.float32)
    starts = range(0, len(order), batch_size)
    with torch.inference_mode():
        for start in tqdm(starts, desc="greedy", unit="batch", disable=len(starts) == 1):
            rows = order[start : start + batch_size]
            added = [shifts[row] if shifts else None for row in rows]
            with shifted(mlps, added), watched(mlps, watch, len(rows)) as passes:
                tokens, counted = _decode(model, tokenizer, [encoded[row] for row in rows], new_tokens, stop)
            if watch:
                stacked = torch.stack(passes, dim=1)  # (rows, steps, neurons)
                weight = counted.unsqueeze(-1).float()
                mean = (stacked * weight).sum(dim=1) / weight.sum(dim=1)
                means[rows] = mean.cpu().numpy()
            for row, new, kept in zip(rows, tokens.tolist(), counted.sum(dim=1).tolist(), strict=True):
                text = [token for token in new[: int(kept)] if token not in stop]
                texts[row] = continuation_text(tokenizer, encoded[row], text)
    return Decoded(texts, means)


def _decode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], steps: int, stop: frozenset[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens (rows, steps), and which steps count: those up to and with the one that ends the text."""
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters  # not so in BLOOM
    inputs = left_padded(tokenizer, rows).to(model.device)
    ids, mask, cache = inputs["input_ids"], inputs["attention_mask"], None
    ends = torch.tensor(sorted(stop), device=ids.device)
    going = torch.ones(len(rows), dtype=torch.bool, device=ids.device)
    tokens, counted = [], []
    for step in range(steps):
        extra = {}
        if takes_positions:  # a row's first real token stands at 0, wherever its padding ends
            extra["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1,
                       **extra)  # fmt: skip
        cache = output.past_key_values
        token = output.logits[:, -1].argmax(dim=-1)
        tokens.append(token)
        counted.append(going.clone())
        going &= ~torch.isin(token, ends)
        if step + 1 == steps or not bool(going.any()):
            break
        ids = token.unsqueeze(-1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
    return torch.stack(tokens, dim=1), torch.stack(counted, dim=1)
