"""Representations of texts, the residual stream at some depths; how it moves, and the tokens that it favours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydetox.core.artifacts import atomic_path, resume_key
from polydetox.mechanism.architectures import MLPs
from polydetox.models.texts import context_length


def pooled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    depth: Literal["last", "normed", "layers", "hidden_states"],
    batch_size: int = 64,
    max_tokens: int | None = None,
    last_token: bool = False,
) -> Float[np.ndarray, "texts depths hidden"]:
    """The mean over each text's tokens of the residual stream, float32.

    ``last``: what enters the final norm. ``normed``: what leaves it. ``layers``: the output of every layer in turn, the
    last as it enters the final norm. ``hidden_states``: the embeddings, then the output of every layer, the last after
    the final norm. Of a text of more tokens than ``max_tokens``, or than the model has positions, the first are read,
    as in the paper's code. With ``last_token`` it is that of the last token read instead of the mean.
    """
    every_layer = depth in ("layers", "hidden_states")
    limit = min(filter(None, (context_length(model.config), max_tokens)), default=None)
    entered: list[torch.Tensor] = []
    hook = MLPs(model).final_norm.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    means: dict[int, np.ndarray] = {}  # by text: (depths, hidden)
    try:
        for start in tqdm(range(0, len(order), batch_size), desc="representations", unit="batch"):
            rows = order[start : start + batch_size]
            ids = [ids[:limit] for ids in tokenizer([texts[row] for row in rows])["input_ids"]]
            # Padded on the right: positions then need no help, and causal attention never looks there.
            batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt").to(model.device)
            with torch.inference_mode():
                output: Any = model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                                               use_cache=False, output_hidden_states=every_layer)  # fmt: skip
                states, last = output.hidden_states or (), entered.pop()
                streams = {"last": [last], "normed": [output.last_hidden_state], "layers": [*states[1:-1], last],
                           "hidden_states": states}[depth]  # fmt: skip
                mask = batch["attention_mask"]
                counted = mask * (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True)) if last_token else mask
                weight = counted.unsqueeze(-1).float()
                mean = [(stream.float() * weight).sum(dim=1) / weight.sum(dim=1) for stream in streams]
            means |= zip(rows, torch.stack(mean, dim=1).cpu().numpy(), strict=True)
    finally:
        hook.remove()
    return np.stack([means[position] for position in range(len(texts))])


def kept(file: Path, depends_on: Any, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is computed once and kept as safetensors, until what it depends on (JSON) is another."""
    key = {"key": resume_key(depends_on)}
    if file.is_file():
        with safe_open(file, "np") as stored:
            if stored.metadata() == key:
                return np.asarray(stored.get_tensor("values"))
    values = compute()
    with atomic_path(file) as temporary:
        save_file({"values": values}, temporary, metadata=key)
    return values


def explained(rows: Float[np.ndarray, "rows hidden"], direction: Float[np.ndarray, " hidden"]) -> float:
    """The fraction of the rows' squared length that lies along a direction; NaN if all rows are zero."""
    unit = direction / np.linalg.norm(direction)
    total = np.square(rows).sum()
    return float(np.square(rows @ unit).sum() / total) if total else float("nan")


def standing(logits: Float[torch.Tensor, "texts vocabulary"], tokens: Sequence[int]) -> float:
    """How far the logits of some tokens lie above the mean of the vocabulary, in its standard deviations."""
    deviation, mean = torch.std_mean(logits.float(), dim=-1, correction=0)
    return float(((logits[:, tokens].float().mean(dim=-1) - mean) / deviation).mean())
