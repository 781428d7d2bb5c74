"""vLLM's offline engine on every family of `params/models`; its CPU build does as well.

Greedy tokens are those of transformers, a seed means the same to both engines, samples have the same distribution, and
an end of sequence ends a continuation.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="vllm is not installed (pip install --no-deps -r requirements-gpu.txt)")

from polydetox.generation import engines
from polydetox.generation.engines import Sampling, TransformersEngine, VLLMEngine
from tiny import CHECKOUT, tiny_tokenizer

PROMPTS = ["The neighbours", "La capital de Francia es una", "Der", "今日はとても"]
IDS = ["a", "b", "c", "d"]

# How a model's name in params/models begins -> its family. mT5 judges fluency and generates nothing.
FAMILIES = {
    "aya": "cohere", "bloom": "bloom", "falcon": "falcon", "gemma-3": "gemma3", "llama": "llama", "mgpt": "gpt2",
}  # fmt: skip

# The end of one engine takes down what all engines of a process share; a stage starts one, these tests three.
_ALIVE: list[VLLMEngine] = []


def wide_model(family: str, vocabulary: int):
    """Two layers with heads of 32, the least that vLLM's attention on a CPU knows; of the published models' layout."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    tokens = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    sizes = tokens | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    grouped = sizes | {"intermediate_size": 64, "num_key_value_heads": 1, "max_position_embeddings": 256}
    configuration = {
        "gpt2": lambda: transformers.GPT2Config(**tokens, n_positions=256, n_embd=64, n_layer=2, n_head=2),
        "bloom": lambda: transformers.BloomConfig(**tokens, hidden_size=64, n_layer=2, n_head=2),
        "llama": lambda: transformers.LlamaConfig(**grouped),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **grouped, head_dim=32, sliding_window=8, sliding_window_pattern=2, query_pre_attn_scalar=32),
        "cohere": lambda: transformers.CohereConfig(**grouped),
        "falcon": lambda: transformers.FalconConfig(**sizes, multi_query=True, parallel_attn=True, bias=False,
                                                    alibi=False, new_decoder_architecture=False),
    }[family]()  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.dim() > 1 else None
    return model.eval()


@pytest.fixture(scope="module", params=sorted(FAMILIES.values()))
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
    assert vllm.sample(IDS, PROMPTS, sampling) == plain.sample(IDS, PROMPTS, sampling)


def test_an_end_of_sequence_ends_a_continuation(both, monkeypatch):
    vllm, plain = both
    stop = frozenset(range(0, len(plain.tokenizer), 9))
    for engine in both:
        monkeypatch.setattr(engine, "_stop", stop)
    sampling = Sampling(n=1, temperature=0.0, max_new_tokens=12)
    sampled = vllm.sample(IDS, PROMPTS, sampling)
    assert sampled == plain.sample(IDS, PROMPTS, sampling)
    sampled = [one for row in vllm.sample(IDS, PROMPTS, Sampling(n=8, max_new_tokens=12)) for one in row]
    assert {one.truncated for one in sampled} == {True, False}
    assert all(one.truncated == (len(one.tokens) == 12) for one in sampled)
    assert not any(token in stop for one in sampled for token in one.tokens)


def test_a_seed_means_the_same_to_both(both):
    """A sample is that of its seed, its prompt's id and its number, whatever else is sampled with it."""
    sampling = Sampling(n=5, max_new_tokens=8, seed=3)
    for engine in both:
        together = engine.sample(IDS, PROMPTS, sampling)
        assert [len(row) for row in together] == [5] * 4
        assert len({tuple(one.tokens) for one in together[0]}) > 1
        assert engine.sample(IDS, PROMPTS, sampling) == together
        assert engine.sample(IDS[1:3], PROMPTS[1:3], sampling) == together[1:3]
        assert engine.sample(IDS, PROMPTS, replace(sampling, n=2)) == [row[:2] for row in together]
        assert engine.sample(IDS, PROMPTS, replace(sampling, seed=4)) != together
        twins = engine.sample(["a", "other"], PROMPTS[:1] * 2, sampling)
        assert twins[0] == together[0] and twins[1] != together[0]


def test_samples_have_the_same_distribution(both):
    """Both draw a first token from the nucleus at ``top_p``, as often as its probability there."""
    import torch

    _, plain = both
    sampling = Sampling(n=4000, temperature=0.9, top_p=0.6, max_new_tokens=1, seed=5)
    inputs = plain.tokenizer(PROMPTS[0], return_tensors="pt")
    with torch.inference_mode():
        logits = plain.model(**inputs.to(plain.model.device)).logits[0, -1].double().cpu()
    probabilities, tokens = (logits / sampling.temperature).softmax(dim=-1).sort(descending=True)
    nucleus = probabilities.cumsum(dim=-1) - probabilities < sampling.top_p
    expected = torch.zeros_like(logits)
    expected[tokens[nucleus]] = probabilities[nucleus] / probabilities[nucleus].sum()
    assert 1 < nucleus.sum() < len(logits)
    for engine in both:
        stops = engine._stop
        (sampled,) = engine.sample(IDS[:1], PROMPTS[:1], sampling)
        first = [one.tokens[0] if one.tokens else min(stops) for one in sampled]
        observed = torch.bincount(torch.tensor(first), minlength=len(logits)).double() / sampling.n
        assert not observed[expected == 0].any()
        # Five standard errors of a frequency, and five samples more for rare tokens.
        allowed = 5 * (expected * (1 - expected) / sampling.n).sqrt() + 5 / sampling.n
        assert ((observed - expected).abs() <= allowed).all()


def test_every_family_of_the_projects_models_is_tested():
    names = {file.stem for file in (CHECKOUT / "params/models").glob("*.yaml")} - {"mt5-xl"}
    assert names and all(any(name.startswith(family) for family in FAMILIES) for name in names)


def test_it_is_chosen_only_where_there_is_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(engines, "device", lambda: torch.device("cpu"))
    assert engines.choose_engine("auto") == "transformers" and engines.choose_engine("vllm") == "vllm"
    monkeypatch.setattr(engines, "device", lambda: torch.device("cuda"))
    assert engines.choose_engine("auto") == "vllm"
