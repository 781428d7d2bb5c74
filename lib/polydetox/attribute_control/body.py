"""The body of the NADO head: the untuned model, whose last hidden state the head reads; frozen, or adapted by LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from polydetox.attribute_control.adapters import adapter_options
from polydetox.attribute_control.rows import Row, collate
from polydetox.core.artifacts import atomic_path
from polydetox.core.parameters import Settings
from polydetox.models.checkpoints import device, inference_dtype, load_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def last_hidden_state(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """What the output layer of a causal language model reads (rows, tokens, hidden)."""
    output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True,
                   use_cache=False, logits_to_keep=1)  # fmt: skip
    return output.hidden_states[-1]


class Body(torch.nn.Module):
    """The untuned model as the head reads it.

    ``embedding`` is its output embedding (vocabulary, size), which a tied head reads as well.
    """

    def __init__(self, weights: Path, settings: Settings, dtype: str, adapter: Path | None = None):
        super().__init__()
        self.adapted = settings.body == "lora"
        model: Any = load_causal_lm(weights, torch.float32 if self.adapted else inference_dtype(dtype))
        self.embedding = model.get_output_embeddings().weight
        if self.adapted:
            from peft import PeftModel, get_peft_model

            if adapter:
                model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
            else:
                model = get_peft_model(model, adapter_options(model, settings))
        else:
            model.requires_grad_(False)
        self.model: Any = model

    def hidden(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The last hidden state (rows, tokens, hidden)."""
        return last_hidden_state(self.model, inputs)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter, where there is one."""
        if self.adapted:
            self.model.save_pretrained(folder)


class Features:
    """The last hidden states of texts under a model that does not change, computed once.

    Where ``file`` is given, they are kept there for the next process that needs them.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[Row], padding: int, batch_size: int,
                 file: Path | None = None):  # fmt: skip
        self._states: dict[int, torch.Tensor] = {}
        if file and file.is_file():
            self._states = {int(name): state for name, state in load_file(file).items()}
            return
        ordered = sorted(rows, key=lambda row: len(row.ids))
        with torch.no_grad():
            for first in range(0, len(ordered), batch_size):
                batch = ordered[first : first + batch_size]
                inputs = {name: value.to(device()) for name, value in collate(batch, padding).items()}
                states = last_hidden_state(model, inputs).cpu()
                self._states |= {
                    row.row: state[: len(row.ids)].clone() for row, state in zip(batch, states, strict=True)
                }
        if file:
            with atomic_path(file) as temporary:
                save_file({str(row): state for row, state in self._states.items()}, temporary)

    def of(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The hidden states of a batch (rows, tokens, hidden); zero where it is padded."""
        states = [self._states[int(row)] for row in inputs["row"]]
        length = inputs["input_ids"].shape[1]
        padded = torch.stack([torch.nn.functional.pad(state, (0, 0, 0, length - len(state))) for state in states])
        return padded.to(inputs["input_ids"].device)
