"""Where each family of causal language models keeps its MLP neurons, and how they write to the residual stream.

An MLP is a sum over neurons: neuron ``i`` has an activation ``a_i`` (``act(gate) * up`` in a gated MLP) and a value
vector ``v_i``, and the MLP's output is ``sum_i a_i v_i`` plus a bias (Geva et al. 2021). Whatever the family, the
activations are what enters the MLP's last linear layer, and the value vectors are the columns of its weight. So a
family needs no more than the names of four modules.

In Gemma 2 and 3 an RMS norm follows the MLP. What is added to the residual stream is then
``gain * (sum_i a_i v_i) / rms(sum_i a_i v_i)``: the direction in which neuron ``i`` writes is ``gain * v_i``, and all
neurons share the positive factor ``1 / rms``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from polydetox.core.errors import UserError


@dataclass(frozen=True)
class Family:
    """The module names of one family: ``layers`` and ``norm`` from the model, the others from a layer."""

    layers: str  # the list of decoder layers
    output: str  # the MLP's last linear layer
    norm: str  # the norm between the last layer and the unembedding
    after: str | None = None  # the norm between an MLP and the residual stream


_LLAMA = Family("model.layers", "mlp.down_proj", "model.norm")
_GEMMA = replace(_LLAMA, after="post_feedforward_layernorm")

# By ``config.model_type``.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("transformer.h", "mlp.c_proj", "transformer.ln_f"),
    "bloom": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    "falcon": Family("transformer.h", "mlp.dense_4h_to_h", "transformer.ln_f"),
    "gpt_neox": Family("gpt_neox.layers", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),
    "opt": Family("model.decoder.layers", "fc2", "model.decoder.final_layer_norm"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "cohere", "cohere2", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    # Gemma 3 from 4B on, whose decoder sits beside a vision tower.
    "gemma3": replace(_GEMMA, layers="model.language_model.layers", norm="model.language_model.norm"),
}


def check_known(configuration: PreTrainedConfig) -> None:
    """Refuse a family that cannot be taken apart, by its configuration alone."""
    kind = str(configuration.model_type)
    if kind not in FAMILIES:
        raise UserError(
            f"model type {kind!r}: its MLP is not known (known are {', '.join(sorted(FAMILIES))}); add an entry to "
            "FAMILIES in lib/polydetox/mechanism/architectures.py with the names of its layers, the MLP's last linear "
            "layer, and its final norm"
        )
    if not getattr(configuration, "do_layer_norm_before", True):  # OPT 350M
        raise UserError(
            f"{configuration.name_or_path or kind}: its norms follow the sum with the residual stream, so that a "
            "neuron does not add to it; only models whose norms come before the MLP can be taken apart"
        )


class MLPs:
    """The MLP neurons of one model, layer by layer."""

    def __init__(self, model: PreTrainedModel):
        check_known(model.config)
        family = FAMILIES[str(model.config.model_type)]
        self.model = model
        layers: Any = model.get_submodule(family.layers)
        self._outputs: list[Any] = [layer.get_submodule(family.output) for layer in layers]
        self._after = [layer.get_submodule(family.after) if family.after else None for layer in layers]
        self.final_norm: torch.nn.Module = model.get_submodule(family.norm)

    def __len__(self) -> int:
        return len(self._outputs)

    def output(self, layer: int) -> torch.nn.Module:
        """The linear layer whose input are the activations of a layer's neurons."""
        module: torch.nn.Module = self._outputs[layer]
        return module

    def neurons(self, layer: int) -> int:
        """How many neurons a layer's MLP has."""
        return int(self.matrix(layer).shape[0])

    def matrix(self, layer: int) -> Float[torch.Tensor, "neurons hidden"]:
        """The value vectors as the MLP's last linear layer holds them, before any norm that follows: a view of it."""
        module = self._outputs[layer]
        weight: torch.Tensor = module.weight.detach()
        return weight if isinstance(module, Conv1D) else weight.T  # Conv1D keeps its weight as (in, out)

    def value_vectors(self, layer: int) -> Float[torch.Tensor, "neurons hidden"]:
        """The direction in which each neuron writes to the residual stream, float32.

        The value vector itself, or, where an RMS norm follows the MLP, the value vector times that norm's gain.
        """
        return self.matrix(layer).float() * self.gain(layer)

    def gain(self, layer: int) -> Float[torch.Tensor, " hidden"]:
        """By what the norm after the MLP multiplies each direction of the residual stream; one where there is none."""
        norm, matrix = self._after[layer], self.matrix(layer)
        return torch.ones(matrix.shape[1], device=matrix.device) if norm is None else _gain(norm)

    def logits(self, directions: Float[torch.Tensor, "... hidden"]) -> Float[torch.Tensor, "... vocabulary"]:
        """What directions of the residual stream add to the logits, but for the scale and bias of the final norm.

        That is the part of the norm that is linear: a layer norm takes away each direction's mean, and every norm
        multiplies by its gain; then the unembedding. float32.
        """
        wide = directions.float()
        if "RMS" not in type(self.final_norm).__name__:
            wide = wide - wide.mean(dim=-1, keepdim=True)
        unembedding: Any = self.model.get_output_embeddings()
        return (wide * _gain(self.final_norm)) @ unembedding.weight.detach().float().T


def _gain(norm: Any) -> torch.Tensor:
    """By what a norm multiplies each direction, float32; Gemma's norms hold the difference from one."""
    weight: torch.Tensor = norm.weight.detach().float()
    return weight + 1.0 if type(norm).__name__.startswith("Gemma") else weight
