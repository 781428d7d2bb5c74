"""Decoders of several kinds, against texts that are read whole, one by one, without a cache and without padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from polydetox.core.errors import UserError
from polydetox.generation import engines
from polydetox.generation.engines import Sampling, TransformersEngine
from polydetox.generation.sampling import sample, uniforms
from polydetox.metrics.fluency import ReferenceModel, common_prefix
from polydetox.models import decoders
from polydetox.models.checkpoints import load_causal_lm
from tiny import TEXTS, tiny_tokenizer

FAST, SLOW = ("in padded batches", "in padded batches"), ("through generate", "text by text")
# Attention, a sliding window shorter than the texts, both beside recurrent layers, and recurrent layers alone.
WAYS = {"llama": FAST, "gemma3_text": FAST, "qwen3_5_text": SLOW, "lfm2": SLOW, "mamba": SLOW, "minimax": SLOW,
        "rwkv": ("through generate without a cache", "text by text")}  # fmt: skip

PROMPTS = [*TEXTS[:3], "A", *TEXTS[:2], "今日は"]
ENDINGS = [" nobody knows", " x", "s of it", " heute", " sehr laut und niemand", " a b c d e f", "。"]


def configuration(family: str, vocabulary: int):
    tokens = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 256, **tokens}  # fmt: skip
    states = {"hidden_size": 32, "num_hidden_layers": 2, **tokens}
    return {
        "llama": lambda: transformers.LlamaConfig(**sizes),
        "gemma3_text": lambda: transformers.Gemma3TextConfig(**sizes, head_dim=8, sliding_window=6,
                                                             sliding_window_pattern=2),
        "qwen3_5_text": lambda: transformers.Qwen3_5TextConfig(
            **sizes, head_dim=8, layer_types=["linear_attention", "full_attention"], linear_key_head_dim=8,
            linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4),
        "lfm2": lambda: transformers.Lfm2Config(**sizes, layer_types=["conv", "full_attention"]),
        "mamba": lambda: transformers.MambaConfig(**states, state_size=8),
        "minimax": lambda: transformers.MiniMaxConfig(**sizes, head_dim=8, num_local_experts=2, block_size=8),
        "rwkv": lambda: transformers.RwkvConfig(**states, attention_hidden_size=32),
    }[family]()  # fmt: skip


@pytest.fixture(scope="module", params=WAYS)
def decoder(request, tmp_path_factory):
    """A family and the folder of a tiny random model of it."""
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration(request.param, len(tokenizer)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.dim() > 1 else None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_continuations_are_those_of_whole_texts(decoder, temperature):
    """Token by token: what follows from the logits of the whole text so far and the uniform number of its place."""
    family, folder = decoder
    engine = TransformersEngine(folder, "float32")
    assert engine.way == WAYS[family][0]
    n, steps, names = 2, 6, [str(number) for number in range(len(PROMPTS))]
    sampling = Sampling(n=n, temperature=temperature, top_p=0.9, max_new_tokens=steps, seed=3)
    for name, prompt, continuations in zip(names, PROMPTS, engine.sample(names, PROMPTS, sampling), strict=True):
        uniform = uniforms(3, name, n, steps)
        for place, found in enumerate(continuations):
            ids, expected = engine.tokenizer(prompt)["input_ids"], []
            for step in range(steps):
                scores = decoders.next_logits(engine.model, ids)[-1:]
                token = int(sample(scores, uniform[place : place + 1, step], temperature, 0.9))
                if token == 1:
                    break
                ids, expected = [*ids, token], [*expected, token]
            assert found.tokens == expected and found.truncated == (len(expected) == steps)


@pytest.mark.parametrize("method", ["conditional", "published"])
def test_perplexities_are_those_of_whole_texts(decoder, method):
    family, folder = decoder
    reference = ReferenceModel(folder, "float32", batch_size=3, method=method)

    def nll(ids, start):
        scores = decoders.next_logits(reference.model, ids).log_softmax(-1)
        return [-float(scores[at - 1, ids[at]]) for at in range(start, len(ids))]

    expected = []
    for prompt, ending in zip(PROMPTS, ENDINGS, strict=True):
        before, whole = reference.tokenizer(prompt)["input_ids"], reference.tokenizer(prompt + ending)["input_ids"]
        if method == "conditional":
            expected.append(np.exp(np.mean(nll(whole, max(1, common_prefix(before, whole))))))
        else:
            added = len(whole) - len(before)
            expected.append(np.exp((sum(nll(whole, 1)) - sum(nll(before, 1))) / added) if added > 0 else np.nan)
    assert reference.perplexities(PROMPTS, ENDINGS) == pytest.approx(expected, rel=1e-3, nan_ok=True)
    assert reference.way == WAYS[family][1]


def test_a_cache_that_holds_more_than_keys_and_values_is_not_shared(decoder):
    family, folder = decoder
    model = load_causal_lm(folder, torch.float32)
    output = model(torch.tensor([[2, 300, 301]]), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    assert (cache is not None and decoders.keeps_keys_and_values(cache)) == (WAYS[family] == FAST)


def test_a_way_that_is_not_exact_is_not_taken(tiny_checkpoints, monkeypatch):
    """Not trusted but tried: positions that begin at the padding spoil the batches of a model with learned ones."""
    forward = TransformersEngine._forward

    def from_the_padding_on(self, ids, mask, cache):
        return forward(self, ids, torch.ones_like(mask), cache)

    monkeypatch.setattr(TransformersEngine, "_forward", from_the_padding_on)
    monkeypatch.setattr(engines, "print", lambda *_: None, raising=False)
    engine = TransformersEngine(tiny_checkpoints["gpt2"], "float32")
    assert engine.way == "through generate"
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"sampling with model type 'gpt2' is not exact .*ZeroDivisionError"):
        TransformersEngine(tiny_checkpoints["gpt2"], "float32")


@pytest.mark.parametrize(
    ("off", "taken"),
    [((0.01, 0.0), "first"), ((0.2, 0.01), "second"), ((0.12, 0.08), "first"), ((None, 0.3), "second")],
)
def test_in_16_bits_rounding_is_no_reason_to_be_slow_or_to_refuse(tiny_checkpoints, off, taken, capsys):
    model = load_causal_lm(tiny_checkpoints["llama"], torch.bfloat16)

    def trial(value):
        if value is None:
            raise TypeError
        return value

    ways = {"first": lambda: trial(off[0]), "second": lambda: trial(off[1])}
    assert decoders.first_exact(model, "sampling", ways, [2, 300, 301, 302]) == taken
    assert ("which is slower" in capsys.readouterr().out) == (taken == "second")


def test_what_is_no_decoder_is_refused_by_its_configuration(tmp_path):
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    for configured, reason in (
        (transformers.T5Config(vocab_size=99, d_model=32), "'t5' is an encoder-decoder"),
        (transformers.BertConfig(**sizes), "'bert' is an encoder, whose predictions depend on the text that follows"),
        (transformers.ViTConfig(hidden_size=32), "'vit' is of no causal language model"),
    ):
        configured.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=reason):
            load_causal_lm(tmp_path, torch.float32)
    decoders.check_decoder(transformers.BertConfig(**sizes, is_decoder=True), "bert")


def test_what_depends_on_the_text_that_follows_is_refused():
    """Where a configuration does not tell it (CPM-Ant, for one), the model does."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    )).eval()  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(20.0) if weight.dim() > 1 else None
    with pytest.raises(UserError, match="depends on the text that follows"):
        decoders.first_exact(model, "sampling", {}, tokenizer(TEXTS[0])["input_ids"])


def test_a_run_refuses_by_name_before_it_starts(checkout, tmp_path):
    """From what the model's folder says of itself: its architecture, its family for the mechanism, its adapter."""
    import yaml
    from peft import PromptTuningConfig

    from polydetox import preflight
    from polydetox.workflow import load

    def problems(configured, **changes):
        configured.save_pretrained(tmp_path / "model")
        file = checkout / "params/models/tiny.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"path": str(tmp_path / "model")} | changes))
        return preflight.problems(load("tiny"))

    assert problems(transformers.LlamaConfig()) == []
    assert "tiny: model type 't5' is an encoder-decoder" in problems(transformers.T5Config())[0]
    found = problems(transformers.MambaConfig())
    assert len(found) == 1 and found[0].startswith("model type 'mamba': its MLP is not known (known are bloom, cohere")
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3).save_pretrained(tmp_path / "adapter")
    found = problems(transformers.LlamaConfig(), tuned={"path": str(tmp_path / "adapter")})
    assert len(found) == 2 and "mechanism: probe: texts: is needed" in found[1]  # a published model samples no pairs
    assert "adapter: an adapter of type PROMPT_TUNING changes no weights" in found[0]
    # Without the mechanism, a family that keeps a recurrent state is as good as any.
    file = checkout / "params/profiles/tiny.yaml"
    profile = yaml.safe_load(file.read_text())
    del profile["mechanism"]
    file.write_text(yaml.safe_dump(profile))
    assert problems(transformers.MambaConfig(), tuned=None) == []
