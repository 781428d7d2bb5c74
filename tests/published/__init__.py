"""What the published code of paper A computed on tiny random models, and those models, made again from their seeds.

`dpo.json` holds token ids and numbers, recorded by running the published scripts (TRL 0.8.6,
transformers 4.41.2, torch 2.3.1, transformer-lens 2.1.0; float32, CPU). Texts are not needed: a test's tokenizer makes
the same ids of words that are named by them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

FOLDER = Path(__file__).parent
_SIZE: dict[str, Any] = {"vocab_size": 2000}
_GPT2 = _SIZE | {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "bos_token_id": 0}
# Seed, factor of the weights, configuration.
_CONFIGS: dict[str, tuple[int, float, PretrainedConfig]] = {
    "mGPT": (0, 3, GPT2Config(**_GPT2, eos_token_id=0)),
    "bloom": (2, 3, BloomConfig(**_SIZE, hidden_size=64, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2)),
    "llama": (3, 6, LlamaConfig(**_SIZE, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                                num_attention_heads=4, max_position_embeddings=512)),
    "e-mGPT": (10, 3, GPT2Config(**_GPT2, eos_token_id=5)),
}  # fmt: skip
_CONFIGS["other"] = (11, *_CONFIGS["e-mGPT"][1:])

# Of the weights, so that a release of torch that draws other numbers is not taken for another loss.
_SHA256 = {
    "mGPT": "3893e3d7e985d39f775fc1a67da1853c96dee4a59947b20621075e199412b25f",
    "bloom": "d4cc1ab3e7a6730d9e859d7facba40bc3312d40a09d23103229d9e5e290792f4",
    "llama": "bf1a3627e2cb1799b56bb0cc4518147b6679b8773ec1764cac73b72f685d3217",
    "e-mGPT": "f67328f89758c6ed324b2835c264cf84e70cd0dea5e5bb6d21d4af833b802cd5",
    "e-mGPT-dpo": "f5ff536d4fd4815d097e7691c88803a71bc3639ae5f32fcf608ab774def9b403",
}


def recorded(name: str) -> dict[str, Any]:
    """The values of one file."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


@cache
def _weights(name: str) -> PreTrainedModel:
    seed, scale, config = _CONFIGS[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight, value in model.named_parameters():
            if weight == "model.norm.weight":
                continue
            if "ln" in weight or "norm" in weight:
                value.add_(0.3 * torch.randn_like(value))
            else:
                value.mul_(scale)
    return model


def _digest(model: PreTrainedModel) -> str:
    found = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        found.update(name.encode() + value.detach().numpy().tobytes())
    return found.hexdigest()


def model(name: str) -> PreTrainedModel:
    """A model that values were recorded on, in evaluation mode: mGPT, bloom, llama, e-mGPT or its twin e-mGPT-dpo."""
    found = copy.deepcopy(_weights(name.removesuffix("-dpo")))
    if name == "e-mGPT-dpo":
        with torch.no_grad():
            for value, other in zip(found.parameters(), _weights("other").parameters(), strict=True):
                value.add_(0.1 * other)
    assert _digest(found) == _SHA256[name], f"this torch ({torch.__version__}) makes another random model of {name}"
    return found


def word(number: int) -> str:
    """The word that is a token by itself; with a stop, so that none is the beginning of another."""
    return f"w{number}."


def tokenizer(bos: int | None = None, eos: int = 0, template: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of 2,000 words; with ``template`` it puts BOS in front of a text."""
    words = Tokenizer(WordLevel({word(number): number for number in range(2000)}, unk_token=word(3)))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"eos_token": word(eos)} | ({} if bos is None else {"bos_token": word(bos)})
    if template:
        opening = word(bos or 0)
        words.post_processor = TemplateProcessing(single=f"{opening} $A", special_tokens=[(opening, bos)])
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def words(ids: list[int]) -> str:
    """The text whose tokens they are."""
    return "".join(f" {word(number)}" for number in ids)
