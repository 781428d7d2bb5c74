"""Attention of many continuations to one prompt, without a copy of the prompt's cache for each of them.

``n`` continuations of a prompt share its keys and values. transformers keeps (and at each step copies) them ``n``
times; here each prompt has them once, all its continuations meet them in one matrix product, and the keys and values
of the new tokens go into room that was set aside for them. Queries are attended to in *slots*, one a continuation;
the rest of the model works only on the continuations that are still being written.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bloom.modeling_bloom import BloomAttention

NAME = "shared_prompt"

# Architectures whose attention is the plain scaled dot product over whole prompts (with ALiBi in BLOOM), and was
# compared with transformers' own (tests/unit/test_generation.py).
_KNOWN = frozenset({"llama", "gpt2", "gemma3_text", "cohere", "mistral", "qwen2", "qwen3", "bloom"})


def supports(model: PreTrainedModel, positions: int) -> bool:
    """Whether this attention computes what the model's own does, for texts of so many tokens."""
    configuration = model.config.get_text_config()
    window = getattr(configuration, "sliding_window", None)
    return configuration.model_type in _KNOWN and (window is None or positions <= window)


class SharedPrompts(Cache):
    """The keys and values of prompts, once each, and of the tokens that their continuations have so far.

    ``prompt`` is the cache that a model's forward pass over the left-padded prompts left, ``mask`` the attention mask
    of that pass (prompts, tokens), ``n`` the continuations a prompt, ``steps`` the new tokens there is room for.
    """

    def __init__(self, prompt: Cache, mask: Int[torch.Tensor, "prompts tokens"], n: int, steps: int):
        # transformers' methods that look at the layers find the prompts' own.
        super().__init__(layers=prompt.layers)
        self.n = n
        # bfloat16 pays for weights; on a CPU these small products are faster, and more exact, in float32.
        layers: list[Any] = prompt.layers  # that of a linear attention has no keys, and is not supported here
        dtype = torch.float32 if mask.device.type == "cpu" else layers[0].keys.dtype
        # (prompts, key heads, tokens, size)
        self._prompt_keys: list[torch.Tensor] = [layer.keys.to(dtype) for layer in layers]
        self._prompt_values: list[torch.Tensor] = [layer.values.to(dtype) for layer in layers]
        self.prompts, self._heads, self.prompt_tokens, size = map(int, self._prompt_keys[0].shape)
        room = (self.prompts * n, self._heads, steps, size)
        self._keys = [torch.empty(room, dtype=dtype, device=mask.device) for _ in layers]
        self._values = [torch.empty(room, dtype=dtype, device=mask.device) for _ in layers]
        self._padding = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, float("-inf"))
        self._padded = not bool(mask.all())
        self._lengths = mask.sum(dim=-1)  # (prompts,)
        self._new = 0  # tokens of each continuation, with the one that is being read
        self._slots: Int[torch.Tensor, " rows"] | None = None  # of the rows of a forward pass; None: all

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.prompt_tokens + self._new

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some of the continuations."""
        slots = torch.arange(len(self._keys[0]), device=indices.device) if self._slots is None else self._slots
        self._slots = slots[indices]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put away the keys and values of one new token a row, (rows, key heads, 1, size); returns them as they are."""
        if layer_idx == 0:
            self._new += 1
        for room, states in ((self._keys[layer_idx], key_states), (self._values[layer_idx], value_states)):
            if self._slots is None:
                room[:, :, self._new - 1] = states[:, :, 0]
            else:
                room[self._slots, :, self._new - 1] = states[:, :, 0].to(room.dtype)
        return key_states, value_states

    def attend(
        self,
        layer: int,
        query: Float[torch.Tensor, "rows heads size"],
        scaling: float,
        slopes: Float[torch.Tensor, " heads"] | None = None,
    ) -> Float[torch.Tensor, "rows heads size"]:
        """softmax(scaling * q k^T + bias) v over a prompt and the tokens of one continuation.

        ``slopes`` are ALiBi's: each key is favoured by its position times the slope of the head.
        """
        _, heads, size = query.shape
        keys, values = self._prompt_keys[layer], self._prompt_values[layer]
        prompts, n, group = self.prompts, self.n, heads // self._heads
        tokens, new = self.prompt_tokens, self._new
        whole = query.to(keys.dtype) * scaling
        if self._slots is not None:
            whole = whole.new_zeros(prompts * n, heads, size).index_copy_(0, self._slots, whole)
        grouped = whole.view(prompts, n, self._heads, group, size)
        # All continuations of a prompt against its keys, in one product a prompt and key head.
        to_prompt = grouped.transpose(1, 2).reshape(prompts * self._heads, n * group, size)
        # Each continuation against its own new tokens.
        to_new = whole.view(prompts * n * self._heads, group, size)
        new_keys = self._keys[layer].flatten(0, 1)[:, :new]  # (slots * key heads, new, size)
        new_values = self._values[layer].flatten(0, 1)[:, :new]

        scores = whole.new_empty(prompts, self._heads, n, group, tokens + new)
        scores[..., :tokens] = (to_prompt @ keys.flatten(0, 1).transpose(-1, -2)).view(*scores.shape[:-1], tokens)
        scores[..., tokens:] = (
            (to_new @ new_keys.transpose(-1, -2)).view(prompts, n, self._heads, group, new).transpose(1, 2)
        )
        if slopes is not None:
            scores += self._alibi(slopes.to(scores), new)
        if self._padded:
            scores[..., :tokens] += self._padding[:, None, None, None]
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(keys.dtype)

        from_prompt = weights[..., :tokens].reshape(prompts * self._heads, n * group, tokens) @ values.flatten(0, 1)
        from_new = weights[..., tokens:].transpose(1, 2).reshape(prompts * n * self._heads, group, new) @ new_values
        result = from_prompt.view(prompts, self._heads, n, group, size).transpose(1, 2)
        result = (result + from_new.view(prompts, n, self._heads, group, size)).reshape(prompts * n, heads, size)
        if self._slots is not None:
            result = result[self._slots]
        return result.to(query.dtype)

    def _alibi(self, slopes: Float[torch.Tensor, " heads"], new: int) -> torch.Tensor:
        """Slope times position, for (prompts, heads, 1, 1, tokens + new); padding counts as position 0."""
        place = torch.arange(self.prompt_tokens + new, device=slopes.device)
        positions = (place - (self.prompt_tokens - self._lengths)[:, None]).clamp(min=0)  # (prompts, tokens + new)
        return slopes[None, :, None, None, None] * positions[:, None, None, None, :]


def _attention(
    module: Any, query: torch.Tensor, *_: Any, shared_prompts: SharedPrompts, scaling: float | None = None, **__: Any
) -> tuple[torch.Tensor, None]:
    """What transformers' attention modules call; ``query`` is (rows, heads, 1, size)."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return shared_prompts.attend(module.layer_idx, query[:, :, 0], scaling).unsqueeze(1), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


def alibi_slopes(heads: int) -> Float[torch.Tensor, " heads"]:
    """The slope of each head (Press et al. 2022, section 3): 2^(-8/h), 2^(-16/h), ... for a power of two h.

    For other numbers the rest are every second slope of the next power of two.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    slopes += [2 ** (-8 * (2 * head + 1) / (2 * power)) for head in range(heads - power)]
    return torch.tensor(slopes)


def _bloom_attention(
    self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, *rest: Any, layer_past: Any = None, **named: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """BLOOM's attention goes through no interface, so its module's own method is replaced (:func:`prepare`)."""
    if not isinstance(layer_past, SharedPrompts):
        return type(self).forward(self, hidden_states, residual, *rest, layer_past=layer_past, **named)
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    layer_past.update(key, value, self.layer_idx)
    attended = layer_past.attend(self.layer_idx, query[:, :, 0], self.inv_norm_factor, self.alibi_slopes)
    return self.dense(attended.flatten(1).unsqueeze(1)) + residual, None


def prepare(model: PreTrainedModel) -> None:
    """Make a BLOOM model's attention know :class:`SharedPrompts`; other models need nothing."""
    modules: list[Any] = [module for module in model.modules() if isinstance(module, BloomAttention)]
    for module in modules:
        module.alibi_slopes = alibi_slopes(module.num_heads).to(model.device)
        module.forward = types.MethodType(_bloom_attention, module)


@contextmanager
def taking(model: PreTrainedModel, cache: Any) -> Iterator[dict[str, Any]]:
    """Within this context the model's forward passes take ``cache``; yields the arguments that they need for that."""
    shared, before = isinstance(cache, SharedPrompts), model.config._attn_implementation
    if shared:
        model.config._attn_implementation = NAME
    try:
        # BLOOM's attention finds the cache by itself.
        yield {"shared_prompts": cache} if shared and model.config.model_type != "bloom" else {}
    finally:
        model.config._attn_implementation = before
