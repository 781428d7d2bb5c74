"""Greedy decoding of a batch, and hooks on the activations of MLP neurons meanwhile.

Each prompt is prefilled once and then costs one token a step with its cache. The published code runs the whole prefix
again at every step; activations and tokens are the same (see the tests).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from polydetox.generation.engines import continuation_text, end_of_sequence
from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.neurons import Neuron
from polydetox.models.texts import context_length, encode_prompts, left_padded

Activations = Float[torch.Tensor, "texts positions neurons"]


@dataclass(frozen=True)
class Decoded:
    """What greedy decoding gave for each prompt of a batch."""

    continuations: list[str]
    tokens: torch.Tensor  # (texts, steps)
    counted: Bool[torch.Tensor, "texts steps"]  # up to and with the token that ends a text


def batches(prompts: Sequence[str], size: int) -> Iterator[list[int]]:
    """The positions of prompts of like length, at most ``size`` at once, with a progress bar."""
    order = sorted(range(len(prompts)), key=lambda position: len(prompts[position]))
    starts = range(0, len(order), size)
    for start in tqdm(starts, desc="greedy", unit="batch", disable=len(starts) == 1):
        yield order[start : start + size]


def greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], new_tokens: int = 20,
    *, stop_at_end: bool = True,
) -> Decoded:  # fmt: skip
    """Continue a batch of prompts greedily by ``new_tokens`` tokens, or up to the end of a text (``stop_at_end``).

    What else a checkpoint suggests for generating (penalties, forced tokens) is taken from the model for good.
    """
    stop = end_of_sequence(model.generation_config, tokenizer) if stop_at_end else frozenset()
    model.generation_config = GenerationConfig(eos_token_id=sorted(stop) or None, pad_token_id=tokenizer.pad_token_id)
    rows = encode_prompts(tokenizer, prompts, context_length(model.config), new_tokens)
    inputs = left_padded(tokenizer, rows).to(model.device)
    causal: Any = model  # every causal model has `generate`, which their base class does not say
    tokens = causal.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)[:, inputs["input_ids"].shape[1] :]
    ends = torch.isin(tokens, torch.tensor(sorted(stop), device=tokens.device))  # (texts, steps)
    counted = ends.cumsum(dim=-1) - ends.long() == 0
    texts = [
        continuation_text(tokenizer, row, [token for token in new[: int(number)] if token not in stop])
        for row, new, number in zip(rows, tokens.tolist(), counted.sum(dim=-1), strict=True)
    ]
    return Decoded(texts, tokens, counted)


@contextmanager
def hooked(texts: int, hooks: Mapping[torch.nn.Module, Callable[[Activations], torch.Tensor | None]]) -> Iterator[None]:
    """Within this context a module's hook sees what enters the module in every forward pass over some texts.

    That is the activations of a layer's neurons (``MLPs.output``), or the residual stream (``MLPs.final_norm``). What a
    hook returns, if anything, takes their place.
    """

    def before(hook: Callable[[Activations], torch.Tensor | None]) -> Callable[..., Any]:
        def inner(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            activations = inputs[0]
            changed = hook(activations.reshape(texts, -1, activations.shape[-1]))  # OPT flattens texts and positions
            return None if changed is None else (changed.reshape(activations.shape), *inputs[1:])

        return inner

    handles = [module.register_forward_pre_hook(before(hook)) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(mlps: MLPs, neurons: Sequence[Neuron], texts: int) -> Iterator[list[torch.Tensor]]:
    """Keep the activations of some neurons at the last position of every forward pass over some texts.

    Yields a list that grows by one float32 tensor a pass, of shape (texts, neurons), columns in the order given.
    """
    passes: list[torch.Tensor] = []
    of_layer: defaultdict[int, list[int]] = defaultdict(list)  # the columns of its neurons
    for column, (layer, _) in enumerate(neurons):
        of_layer[layer].append(column)
    layers = sorted(of_layer)

    def keep(layer: int) -> Callable[[Activations], None]:
        columns = of_layer[layer]
        places = [neurons[column][1] for column in columns]

        def hook(activations: Activations) -> None:
            if layer == layers[0]:
                passes.append(activations.new_empty((texts, len(neurons)), dtype=torch.float32))
            passes[-1][:, columns] = activations[:, -1, places].to(passes[-1])

        return hook

    with hooked(texts, {mlps.output(layer): keep(layer) for layer in layers}):
        yield passes


def mean_over_new_tokens(
    passes: Sequence[Float[torch.Tensor, "texts neurons"]], counted: Bool[torch.Tensor, "texts steps"]
) -> Float[np.ndarray, "texts neurons"]:
    """The mean of recorded activations over each text's new tokens, up to and with the one that ends it."""
    weights = counted.float()  # (texts, steps); summed up step by step, since all neurons of a model are many
    total = sum(each * weights[:, [step]] for step, each in enumerate(passes[: counted.shape[1]]))
    mean: Float[np.ndarray, "texts neurons"] = (total / weights.sum(dim=1, keepdim=True)).cpu().numpy()
    return mean
