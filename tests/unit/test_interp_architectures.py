"""Every family of decoders: an MLP is the sum of its neurons, and a cached batch decodes as a lone prompt does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polydetox.errors import UserError
from polydetox.generation.engines import continuation_text
from polydetox.interp.architectures import FAMILIES, MLPs
from polydetox.interp.decoding import Shift, greedy
from tiny import TEXTS, tiny_tokenizer

WATCHED = [(0, 3), (1, 5), (0, 1)]
SHIFT = Shift([(0, 2), (1, 1)], -2.0)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def random_model(family: str, vocabulary: int):
    """A two-layer model of one family whose every weight is random, norms and biases included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokens = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    sizes = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "word_embed_proj_dim": 32},
    }  # fmt: skip
    other = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes.get(family, other), **tokens))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request, tokenizer):
    return random_model(request.param, len(tokenizer))


def seen(module, run):
    """What enters and what leaves a module during ``run``; copies, since a model may change them in place."""
    found = {}
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: found.update(entered=inputs[0].clone())),
        module.register_forward_hook(lambda _, inputs, output: found.update(left=output.clone())),
    ]
    with torch.inference_mode():
        run()
    for handle in handles:
        handle.remove()
    return found["entered"], found["left"]


def test_an_mlp_is_the_sum_of_its_neurons(model, tokenizer):
    mlps = MLPs(model)
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    for layer in range(len(mlps)):
        activations, output = seen(mlps.output(layer), lambda: model(**inputs))
        neurons = activations.unsqueeze(-1) * mlps.matrix(layer)
        bias = mlps.output(layer).bias
        total = neurons.sum(dim=-2) + (0.0 if bias is None else bias)
        assert neurons.shape[-2] == mlps.neurons(layer)
        torch.testing.assert_close(total, output, rtol=1e-4, atol=1e-4)


def test_contributions_add_up_to_what_the_residual_stream_gains(model, tokenizer):
    """Where a norm follows the MLP, what is added is its output, not the MLP's."""
    mlps = MLPs(model)
    family = FAMILIES[model.config.model_type]
    inputs = tokenizer(TEXTS[1], return_tensors="pt")
    activations, output = seen(mlps.output(1), lambda: model(**inputs))
    added = output
    if family.after:
        _, added = seen(mlps.layers[1].get_submodule(family.after), lambda: model(**inputs))
        assert not torch.allclose(added, output, atol=1e-2)
    values, bias = mlps.contributions(1, activations)
    torch.testing.assert_close(values.sum(dim=-2) + bias, added, rtol=1e-4, atol=1e-4)
    # A value vector is the direction of a neuron's contribution, whatever its activation.
    direction = mlps.value_vectors(1)
    cosine = torch.nn.functional.cosine_similarity(values, direction.expand_as(values), dim=-1)
    moved = activations.reshape(cosine.shape).abs() > 1e-4
    torch.testing.assert_close(cosine[moved], activations.reshape(cosine.shape)[moved].sign(), rtol=0, atol=1e-3)


def test_unembedding_and_final_gain_give_the_logits(model, tokenizer):
    """Logits of the last layer's stream: for an RMS norm, gain times stream over its size, unembedded."""
    mlps = MLPs(model)
    if "RMSNorm" not in type(mlps.final_norm).__name__:
        pytest.skip("a layer norm also centres")
    stream, normed = seen(mlps.final_norm, lambda: model(**tokenizer(TEXTS[0], return_tensors="pt")))
    size = stream.square().mean(dim=-1, keepdim=True).sqrt()
    torch.testing.assert_close(normed, stream / size * mlps.final_gain(), rtol=1e-3, atol=1e-3)
    assert mlps.unembedding().shape == (len(tokenizer), 32)


def recomputed(model, tokenizer, prompt: str, steps: int, shift: Shift | None) -> tuple[list[int], np.ndarray]:
    """Greedy decoding by the book: the whole prefix again at every step, activations read by hooks of its own."""
    mlps = MLPs(model)
    found: dict[int, torch.Tensor] = {}

    def hook(layer: int):
        def inner(_, inputs):
            changed = inputs[0].clone()
            for at, place in shift.neurons if shift else ():
                if at == layer:
                    changed[..., place] += shift.offset
            found[layer] = changed.reshape(-1, changed.shape[-1])[-1]
            return (changed,)

        return inner

    handles = [mlps.output(layer).register_forward_pre_hook(hook(layer)) for layer in range(len(mlps))]
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    tokens, rows = [], []
    with torch.inference_mode():
        for _ in range(steps):
            token = int(model(input_ids=ids).logits[0, -1].argmax())
            rows.append([float(found[layer][place]) for layer, place in WATCHED])
            tokens.append(token)
            if token == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, torch.tensor([[token]])], dim=-1)
    for handle in handles:
        handle.remove()
    return tokens, np.mean(rows, axis=0)


def test_a_cached_batch_decodes_as_each_prompt_alone(model, tokenizer):
    """Half of the prompts are shifted, and all share one left-padded batch."""
    shifts = [SHIFT if position % 2 else None for position in range(len(TEXTS))]
    together = greedy(model, tokenizer, TEXTS, new_tokens=4, watch=WATCHED, shifts=shifts)
    for position, (text, shift) in enumerate(zip(TEXTS, shifts, strict=True)):
        tokens, means = recomputed(model, tokenizer, text, 4, shift)
        np.testing.assert_allclose(together.activations[position], means, rtol=1e-3, atol=2e-4)
        kept = [token for token in tokens if token != tokenizer.eos_token_id]
        assert together.continuations[position] == continuation_text(tokenizer, tokenizer(text)["input_ids"], kept)


def test_what_is_shifted_changes_what_is_written(tokenizer):
    model = random_model("llama", len(tokenizer))
    far = Shift([(layer, place) for layer in range(2) for place in range(24)], 5.0)
    plain = greedy(model, tokenizer, TEXTS, new_tokens=4)
    moved = greedy(model, tokenizer, TEXTS, new_tokens=4, shifts=[far] * len(TEXTS))
    assert plain.continuations != moved.continuations
    again = greedy(model, tokenizer, TEXTS, new_tokens=4)
    assert again.continuations == plain.continuations, "a shift must not stay behind"


def test_an_unknown_family_says_what_to_add(tokenizer):
    model = random_model("llama", len(tokenizer))
    model.config.model_type = "mamba"
    with pytest.raises(UserError, match=r"'mamba'.*FAMILIES in lib/polydetox/interp/architectures.py"):
        MLPs(model)
