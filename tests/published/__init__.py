"""What the published code of paper A computed on tiny random models, and those models, made again from their seeds.

`dpo.json` and `mechanism.json` hold token ids and numbers, recorded by running the published scripts (TRL 0.8.6,
transformers 4.41.2, torch 2.3.1, transformer-lens 2.1.0; float32, CPU); `trained_probe` and `retrieval` with the
versions that this project pins. Texts are not needed: a tokenizer makes the same ids of words that are named by them.
`control.json` holds the losses of the code by paper B's first author (LLM-PR-Finetune) on a tiny GPT-2 and made-up
samples, with the versions that this project pins (torch 2.13.0, transformers 5.19.0).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 2000
RECORDED, MECHANISM = (
    json.loads((Path(__file__).parent / f"{name}.json").read_text("utf-8")) for name in ("dpo", "mechanism")
)
_GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512,
                         "bos_token_id": 0}  # fmt: skip
# Seed, factor of the weights, configuration.
_MODELS = {
    "mGPT": (0, 3, GPT2Config(**_GPT2, eos_token_id=0)),
    "bloom": (2, 3, BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=3, n_head=4)),
    "llama": (3, 6, LlamaConfig(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                                num_attention_heads=4, max_position_embeddings=512)),
    "e-mGPT": (10, 3, GPT2Config(**_GPT2, eos_token_id=5)),
    "e-mGPT-dpo": (11, 3, GPT2Config(**_GPT2, eos_token_id=5)),  # what a tenth of is added to e-mGPT
}  # fmt: skip
# Of the weights, so that a release of torch that draws other numbers is not taken for another loss.
_SHA256 = {
    "mGPT": "3893e3d7e985d39f775fc1a67da1853c96dee4a59947b20621075e199412b25f",
    "bloom": "d4cc1ab3e7a6730d9e859d7facba40bc3312d40a09d23103229d9e5e290792f4",
    "llama": "bf1a3627e2cb1799b56bb0cc4518147b6679b8773ec1764cac73b72f685d3217",
    "e-mGPT": "f67328f89758c6ed324b2835c264cf84e70cd0dea5e5bb6d21d4af833b802cd5",
    "e-mGPT-dpo": "f5ff536d4fd4815d097e7691c88803a71bc3639ae5f32fcf608ab774def9b403",
}


def model(name: str) -> PreTrainedModel:
    """A model that values were recorded on: mGPT, bloom, llama, e-mGPT, or its tuned twin e-mGPT-dpo."""
    found = _random(name)
    if name == "e-mGPT-dpo":
        noise, found = found, _random("e-mGPT")
        with torch.no_grad():
            for value, added in zip(found.parameters(), noise.parameters(), strict=True):
                value.add_(0.1 * added)
    digest = hashlib.sha256()
    for weight, value in sorted(found.named_parameters()):
        digest.update(weight.encode() + value.detach().numpy().tobytes())
    assert digest.hexdigest() == _SHA256[name], f"torch {torch.__version__} makes another random model of {name}"
    return found


def _random(name: str) -> PreTrainedModel:
    seed, scale, configuration = _MODELS[name]
    torch.manual_seed(seed)
    found = AutoModelForCausalLM.from_config(configuration)
    with torch.no_grad():
        for weight, value in found.named_parameters():
            if "ln" not in weight and "norm" not in weight:
                value.mul_(scale)
            elif weight != "model.norm.weight":
                value.add_(0.3 * torch.randn_like(value))
    return found


def tokenizer(name: str, template: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of a word a token, with the model's BOS; with ``template`` it puts BOS in front of a text itself."""
    configuration = _MODELS[name][2]
    bos, eos = configuration.bos_token_id, configuration.eos_token_id
    found = Tokenizer(WordLevel({_word(number): number for number in range(VOCABULARY)}, unk_token=_word(3)))
    found.pre_tokenizer = WhitespaceSplit()
    if template:
        found.post_processor = TemplateProcessing(single=f"{_word(bos)} $A", special_tokens=[(_word(bos), bos)])
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token=_word(bos), eos_token=_word(eos))


def words(ids: list[int]) -> str:
    """The text whose tokens they are."""
    return "".join(f" {_word(number)}" for number in ids)


def _word(number: int) -> str:
    return f"w{number}."  # with a stop, so that none is the beginning of another
