"""Adapters of a base whose output layer shares the embedding's weight, and adapters that cannot be merged."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from notebook_cells import merge
from polydetox.core.errors import UserError
from polydetox.models.checkpoints import load_causal_lm
from polydetox.training.shared import linear_layers
from tiny import tiny_model, tiny_tokenizer

EMBEDDING = {"gpt2": "wte", "bloom": "word_embeddings", "gemma3_text": "embed_tokens", "cohere": "embed_tokens"}
IDS = torch.tensor([[2, 300, 301, 302]])


def tied_model(family: str, vocabulary: int):
    if family in ("gpt2", "bloom"):
        return tiny_model(family, vocabulary)
    kind = {"gemma3_text": transformers.Gemma3TextConfig, "cohere": transformers.CohereConfig}[family]
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(kind(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )).eval()  # fmt: skip


def saved(folder, family: str, configuration) -> torch.Tensor:
    """Save a base with tied embeddings and an adapter of it that changes something; returns its logits."""
    base = tied_model(family, len(tiny_tokenizer()))
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    base.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    adapted = get_peft_model(base, configuration).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name:  # a copy of the layer, trained whole
                weight.add_(0.1 * torch.randn_like(weight))
    adapted.save_pretrained(folder / "adapter")
    with torch.inference_mode():
        return adapted(IDS).logits


@pytest.mark.parametrize("family", EMBEDDING)
@pytest.mark.parametrize(
    ("adapts", "tied"),
    [
        ({"target_modules": ["lm_head"]}, False),
        ({"target_modules": ["embedding"]}, False),
        ({"target_modules": ["embedding", "lm_head"]}, False),
        ({"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": "all-linear", "modules_to_save": ["embedding", "lm_head"]}, False),
        ({"target_modules": "all-linear"}, True),
    ],
)
def test_an_adapter_of_a_tied_layer_changes_no_other(tmp_path, family, adapts, tied):
    torch.manual_seed(1)
    named = {key: [EMBEDDING[family] if name == "embedding" else name for name in value] if value != "all-linear"
             else value for key, value in adapts.items()}  # fmt: skip
    adapter = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **named)
    expected = saved(tmp_path, family, adapter)
    weights, difference = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert difference < 1e-3
    merged = load_causal_lm(weights, torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-3)
    assert merged.config.tie_word_embeddings == tied
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("kind", [PrefixTuningConfig, PromptTuningConfig])
def test_an_adapter_that_changes_no_weights_is_refused_by_its_type(tmp_path, kind):
    saved(tmp_path, "gpt2", kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UserError, match=r"adapter: an adapter of type PR.*_TUNING changes no weights"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged/weights").exists()


def test_an_adapter_that_peft_loads_in_part_is_refused(tmp_path):
    """PEFT takes GPT-2's ``wte`` for no embedding, ties nothing, and then drops the output layer's tensors unsaid."""
    saved(tmp_path, "gpt2", LoraConfig(r=4, init_lora_weights=False, target_modules=["wte", "lm_head"],
                                       ensure_weight_tying=True))  # fmt: skip
    with pytest.raises(UserError, match=r"PEFT does not load 2 tensors of this adapter \(as .*lm_head.*lora_A"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def test_layers_are_named_so_that_nothing_else_is_meant():
    """CTRL numbers its feed-forward layers, as it numbers its blocks; Mamba's kernels go past one layer's adapter."""
    sizes = {"vocab_size": 99, "n_embd": 32, "dff": 64, "n_layer": 3, "n_head": 4}
    ctrl = transformers.AutoModelForCausalLM.from_config(transformers.CTRLConfig(**sizes))
    names = linear_layers(ctrl, embeddings=True)
    numbered = [f"transformer.h.{block}.ffn.{layer}" for block in range(3) for layer in (0, 2)]
    assert names == ["Wk", "Wq", "Wv", "dense", *numbered, "w"]
    get_peft_model(ctrl, LoraConfig(target_modules=names))
    mamba = transformers.AutoModelForCausalLM.from_config(
        transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, state_size=8)
    )
    assert linear_layers(mamba, embeddings=False) == ["dt_proj", "in_proj", "x_proj"]
    get_peft_model(mamba, LoraConfig(target_modules=linear_layers(mamba, embeddings=True)))
