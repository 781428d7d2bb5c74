"""Mean-pooled representations of texts: the residual stream at some depths, averaged over a text's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from polydetox.core.artifacts import atomic_path, input_hash, resume_key
from polydetox.mechanism.architectures import MLPs
from polydetox.models.checkpoints import inference_dtype, load_causal_lm, load_tokenizer, provenance
from polydetox.models.texts import context_length

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Depth = Literal["last", "all"]


def mean_pooled(
    weights: Path,
    texts: Sequence[str],
    depth: Depth,
    caches: Sequence[Path],
    *,
    dtype: str = "bfloat16",
    batch_size: int = 64,
) -> Float[np.ndarray, "texts depths hidden"]:
    """The mean over each text's tokens (padding left out) of the residual stream, float32.

    ``last``: what enters the final norm. ``all``: the output of every layer in turn, the last as it enters the final
    norm. A text of more tokens than the model has positions is cut at its end, as in the paper's code
    (:func:`polydetox.models.texts.shortened` says which). Kept in the first of ``caches`` (safetensors); the first that
    holds the same texts, weights and settings is read instead.
    """
    from safetensors import safe_open
    from safetensors.numpy import save_file

    depends_on = {"weights": input_hash(provenance(weights)), "texts": list(texts), "depth": depth, "dtype": dtype}
    key = resume_key(depends_on)
    for cache in caches:
        if cache.is_file():
            with safe_open(cache, "np") as stored:
                if stored.metadata() == {"key": key}:
                    return stored.get_tensor("mean_pooled")
    found = pooled(load_causal_lm(weights, inference_dtype(dtype)), load_tokenizer(weights), texts, depth, batch_size)
    with atomic_path(caches[0]) as temporary:
        save_file({"mean_pooled": found}, temporary, metadata={"key": key})
    return found


def pooled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], depth: Depth, batch_size: int = 64
) -> Float[np.ndarray, "texts depths hidden"]:
    """What :func:`mean_pooled` keeps, of a loaded model."""
    import torch

    limit = context_length(model.config)
    mlps = MLPs(model)
    modules = [mlps.final_norm] if depth == "last" else [*mlps.layers[1:], mlps.final_norm]
    streams: dict[int, torch.Tensor] = {}
    # What enters layer l + 1 is what left layer l, whatever else a layer returns.
    hooks = [module.register_forward_pre_hook(_keep(streams, number), with_kwargs=True)
             for number, module in enumerate(modules)]  # fmt: skip
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    embedding: Any = model.get_input_embeddings()
    result = np.empty((len(texts), len(modules), int(embedding.weight.shape[1])), dtype=np.float32)
    try:
        with torch.inference_mode():
            for start in tqdm(range(0, len(order), batch_size), desc="representations", unit="batch"):
                rows = order[start : start + batch_size]
                ids = [ids[:limit] for ids in tokenizer([texts[row] for row in rows])["input_ids"]]
                # Padded on the right: positions then need no help, and causal attention never looks there.
                batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt").to(model.device)
                model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
                weight = batch["attention_mask"].unsqueeze(-1).float()
                for number in range(len(modules)):
                    mean = (streams[number].float() * weight).sum(dim=1) / weight.sum(dim=1)
                    result[rows, number] = mean.cpu().numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return result


def _keep(streams: dict[int, torch.Tensor], number: int) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        streams[number] = inputs[0] if inputs else named["hidden_states"]

    return hook
