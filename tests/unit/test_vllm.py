"""vLLM's offline engine on three families; its CPU build does as well.

Greedy tokens are those of transformers, samples are the prompt's own, and an end of sequence ends a continuation.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vllm is not installed (pip install 'polydetox[gpu]')")

from polydetox.generation import engines
from polydetox.generation.engines import Sampling, TransformersEngine, VLLMEngine
from tiny import FAMILIES, tiny_tokenizer

PROMPTS = ["The neighbours", "La capital de Francia es una", "Der", "今日はとても"]
IDS = ["a", "b", "c", "d"]

# The end of one engine takes down what all engines of a process share; a stage starts one, these tests three.
_ALIVE: list[VLLMEngine] = []


def wide_model(family: str, vocabulary: int):
    """Two layers with heads of 32, the least that vLLM's attention on a CPU knows."""
    import torch
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig

    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    configuration = {
        "gpt2": GPT2Config(vocab_size=vocabulary, n_positions=256, n_embd=64, n_layer=2, n_head=2, **tokens),
        "bloom": BloomConfig(vocab_size=vocabulary, hidden_size=64, n_layer=2, n_head=2, **tokens),
        "llama": LlamaConfig(vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
                             num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, **tokens),
    }[family]  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.dim() > 1 else None
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory) -> tuple[VLLMEngine, TransformersEngine]:
    """The two engines on the weights of one family."""
    tokenizer, weights = tiny_tokenizer(), tmp_path_factory.mktemp(request.param)
    wide_model(request.param, len(tokenizer)).save_pretrained(weights)
    tokenizer.save_pretrained(weights)
    _ALIVE.append(VLLMEngine(weights, "float32"))
    return _ALIVE[-1], TransformersEngine(weights, "float32")


def test_greedy_tokens_equal_those_of_transformers(both):
    vllm, plain = both
    sampling = Sampling(n=1, temperature=0.0, max_new_tokens=8)
    assert vllm.draw(IDS, PROMPTS, sampling) == plain.draw(IDS, PROMPTS, sampling)


def test_an_end_of_sequence_ends_a_continuation(both, monkeypatch):
    vllm, plain = both
    stop = frozenset(range(0, len(plain.tokenizer), 9))
    for engine in both:
        monkeypatch.setattr(engine, "_stop", stop)
    sampling = Sampling(n=1, temperature=0.0, max_new_tokens=12)
    drawn = vllm.draw(IDS, PROMPTS, sampling)
    assert drawn == plain.draw(IDS, PROMPTS, sampling)
    sampled = [one for row in vllm.draw(IDS, PROMPTS, Sampling(n=8, max_new_tokens=12)) for one in row]
    assert {one.truncated for one in sampled} == {True, False}
    assert all(one.truncated == (len(one.tokens) == 12) for one in sampled)
    assert not any(token in stop for one in sampled for token in one.tokens)


def test_samples_are_the_prompts_own(both):
    vllm, _ = both
    sampling = Sampling(n=5, max_new_tokens=8, seed=3)
    together = vllm.draw(IDS, PROMPTS, sampling)
    assert [len(row) for row in together] == [5] * 4
    assert len({tuple(one.tokens) for one in together[0]}) > 1
    assert vllm.draw(IDS, PROMPTS, sampling) == together
    assert vllm.draw(IDS[1:3], PROMPTS[1:3], sampling) == together[1:3]
    assert vllm.draw(IDS, PROMPTS, Sampling(n=5, max_new_tokens=8, seed=4)) != together


def test_it_is_chosen_only_where_there_is_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(engines, "device", lambda: torch.device("cpu"))
    assert engines.choose_engine("auto") == "transformers" and engines.choose_engine("vllm") == "vllm"
    monkeypatch.setattr(engines, "device", lambda: torch.device("cuda"))
    assert engines.choose_engine("auto") == "vllm"
