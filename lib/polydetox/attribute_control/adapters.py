"""The adapters of attribute control: of the model that is tuned, and of the body of the NADO head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polydetox.core.parameters import Settings

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel


def adapter_options(model: PreTrainedModel, settings: Settings, task: str = "CAUSAL_LM") -> LoraConfig:
    """An adapter of every linear layer of a model but the output layer, to be merged after the training."""
    from peft import LoraConfig

    from polydetox.preference.dpo import linear_layers

    backbone: Any = model.base_model
    return LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, task_type=task,
                      target_modules=linear_layers(backbone, embeddings=False))  # fmt: skip
