"""Every family of decoders: an MLP is the sum of its neurons, and a cached batch decodes as a lone prompt does."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch

from polydetox.core.errors import UserError
from polydetox.generation.engines import continuation_text
from polydetox.mechanism.architectures import FAMILIES, MLPs
from polydetox.mechanism.decoding import batches, greedy, hooked, mean_over_new_tokens, recorded
from polydetox.mechanism.representations import pooled
from polydetox.models.checkpoints import load_causal_lm, load_tokenizer
from tiny import TEXTS, tiny_tokenizer

WATCHED = [(0, 3), (1, 5), (0, 1)]
SHIFT = ([(0, 2), (1, 1)], -2.0)  # neurons, and what is added to their activations


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
    if family == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 16, "patch_size": 4}  # fmt: skip
        sizes[family] = {"text_config": {**other, **tokens}, "vision_config": vision}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes.get(family, other), **tokens))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request, tokenizer):
    return random_model(request.param, len(tokenizer))


def layer_of(model, number: int):
    return model.get_submodule(FAMILIES[model.config.model_type].layers)[number]


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


def double(model):
    """A copy in float64, in which sums of a few dozen terms are exact to some 1e-12."""
    return copy.deepcopy(model).double()


def test_an_mlp_is_the_sum_of_its_neurons(model, tokenizer):
    exact = double(model)
    mlps = MLPs(exact)
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    for layer in range(len(mlps)):
        activations, output = seen(mlps.output(layer), lambda: exact(**inputs))
        neurons = activations.unsqueeze(-1) * mlps.matrix(layer)
        bias = mlps.output(layer).bias
        total = neurons.sum(dim=-2) + (0.0 if bias is None else bias)
        assert neurons.shape[-2] == mlps.neurons(layer)
        torch.testing.assert_close(total, output, rtol=0, atol=1e-11)


def test_the_activation_of_a_gated_neuron_is_gate_times_up(model, tokenizer):
    mlps = MLPs(model)
    mlp = getattr(layer_of(model, 1), "mlp", None)
    gated = hasattr(mlp, "gate_proj")
    assert gated == (model.config.model_type not in ("gpt2", "bloom", "falcon", "gpt_neox", "opt"))
    inputs = tokenizer(TEXTS[2], return_tensors="pt")
    activations, _ = seen(mlps.output(1), lambda: model(**inputs))
    if gated:
        _, gate = seen(mlp.gate_proj, lambda: model(**inputs))
        _, up = seen(mlp.up_proj, lambda: model(**inputs))
        wanted = mlp.act_fn(gate) * up
    else:
        first = {"gpt2": "mlp.c_fc", "opt": "fc1"}.get(model.config.model_type, "mlp.dense_h_to_4h")
        _, before = seen(layer_of(model, 1).get_submodule(first), lambda: model(**inputs))
        wanted = torch.relu(before) if model.config.model_type == "opt" else torch.nn.functional.gelu(before)
    torch.testing.assert_close(activations, wanted, rtol=1e-3, atol=2e-3)  # families approximate GELU differently


def test_value_vectors_add_up_to_what_the_residual_stream_gains(model, tokenizer):
    """Against the layer with its MLP silenced: what its output then lacks is what the neurons and the bias add."""
    exact = double(model)
    mlps = MLPs(exact)
    inputs = tokenizer(TEXTS[1], return_tensors="pt")
    activations, output = seen(mlps.output(1), lambda: exact(**inputs))

    def stream() -> torch.Tensor:
        entered, _ = seen(mlps.final_norm, lambda: exact(**inputs))
        return entered.reshape(-1, entered.shape[-1])

    whole = stream()
    silent = mlps.output(1).register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))
    gained = whole - stream()
    silent.remove()
    after = FAMILIES[model.config.model_type].after
    # In 32 bits, as Gemma's norms are. What norm there is divides all neurons of a position by one number.
    value, matrix = mlps.value_vectors(1).double(), mlps.matrix(1)
    size = output.square().mean(dim=-1, keepdim=True).add(1e-6).sqrt() if after else 1.0
    bias = mlps.output(1).bias
    total = (activations @ value + (0.0 if bias is None else bias)) / size
    torch.testing.assert_close(total.reshape(gained.shape), gained, rtol=0, atol=1e-4)
    assert torch.allclose(value, matrix, rtol=0, atol=1e-5) == (after is None)


def test_directions_through_the_final_norm_and_the_unembedding_give_the_logits(model, tokenizer):
    """The norm's linear part over the size of what enters it, plus the bias, is what it puts out."""
    mlps = MLPs(model)
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    stream, normed = seen(mlps.final_norm, lambda: model(**inputs))
    centred = stream - stream.mean(dim=-1, keepdim=True) if "RMS" not in type(mlps.final_norm).__name__ else stream
    size = centred.square().mean(dim=-1, keepdim=True).sqrt()
    bias = getattr(mlps.final_norm, "bias", None)
    head = model.get_output_embeddings().weight.detach()
    raw = normed @ head.T
    wanted = mlps.logits(stream) / size + (0.0 if bias is None else bias @ head.T)
    torch.testing.assert_close(raw, wanted, rtol=1e-3, atol=1e-3)
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
    raw = raw.reshape(logits.shape)
    assert (raw.argsort(dim=-1)[:, -3:] == logits.argsort(dim=-1)[:, -3:]).all(), "scaled or capped, not reordered"


def recomputed(model, tokenizer, prompt: str, steps: int, shift: tuple | None) -> tuple[list[int], np.ndarray]:
    """Greedy decoding by the book: the whole prefix again at every step, activations read by hooks of its own."""
    mlps = MLPs(model)
    found: dict[int, torch.Tensor] = {}

    def hook(layer: int):
        def inner(_, inputs):
            changed = inputs[0].clone()
            for at, place in shift[0] if shift else ():
                if at == layer:
                    changed[..., place] += shift[1]
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


def shift_some(mlps, shifts):
    """A hook a layer that adds to the activations of the texts that have a shift."""

    def add(layer, activations):
        activations = activations.clone()
        for row, (neurons, offset) in ((row, shift) for row, shift in enumerate(shifts) if shift):
            activations[row, :, [place for at, place in neurons if at == layer]] += offset
        return activations

    return {mlps.output(layer): partial(add, layer) for layer in range(len(mlps))}


def test_a_cached_batch_decodes_as_each_prompt_alone(model, tokenizer):
    """Half of the prompts are shifted, and all share one left-padded batch."""
    mlps, shifts = MLPs(model), [SHIFT if position % 2 else None for position in range(len(TEXTS))]
    with hooked(len(TEXTS), shift_some(mlps, shifts)), recorded(mlps, WATCHED, len(TEXTS)) as passes:
        together = greedy(model, tokenizer, TEXTS, 4)
    activations = mean_over_new_tokens(passes, together.counted)
    for position, (text, shift) in enumerate(zip(TEXTS, shifts, strict=True)):
        tokens, means = recomputed(model, tokenizer, text, 4, shift)
        np.testing.assert_allclose(activations[position], means, rtol=1e-3, atol=2e-4)
        kept = [token for token in tokens if token != tokenizer.eos_token_id]
        assert together.continuations[position] == continuation_text(tokenizer, tokenizer(text)["input_ids"], kept)


def test_a_cached_batch_in_bfloat16_sees_what_the_whole_prefix_would_give(model, tokenizer):
    """The tokens of the cached path, given to the naive one: activations and choices agree but for rounding."""
    rounded = copy.deepcopy(model).bfloat16()
    mlps = MLPs(rounded)
    with recorded(mlps, WATCHED, len(TEXTS)) as passes:
        decoded = greedy(rounded, tokenizer, TEXTS, 4)
    tokens, counted = decoded.tokens, decoded.counted
    cached = torch.stack(passes, dim=1)  # (texts, steps, neurons)
    assert cached.dtype == torch.float32 and torch.isfinite(cached).all()
    for row, text in enumerate(TEXTS):
        prompt = tokenizer(text, return_tensors="pt")["input_ids"]
        for step in range(int(counted[row].sum())):
            ids = torch.cat([prompt, tokens[row : row + 1, :step]], dim=-1)
            naive = []
            for layer, place in WATCHED:
                entered, _ = seen(mlps.output(layer), lambda ids=ids: rounded(input_ids=ids))
                naive.append(entered.reshape(-1, entered.shape[-1])[-1, place].float())
            with torch.inference_mode():
                logits = rounded(input_ids=ids).logits[0, -1].float()
            size = entered.float().abs().max()
            torch.testing.assert_close(cached[row, step], torch.stack(naive), rtol=0.05, atol=float(0.03 * size))
            spread = logits.max() - logits.min()
            assert logits.max() - logits[tokens[row, step]] < 0.05 * spread, "another token than rounding allows"


def test_pooled_streams_are_those_of_each_text_alone(model, tokenizer, tmp_path, checkout):
    """Against the model's own hidden states of one unpadded text; the last is taken before the final norm."""
    model.save_pretrained(tmp_path / "weights")
    tokenizer.save_pretrained(tmp_path / "weights")
    loaded = load_tokenizer(tmp_path / "weights")  # Qwen's class splits texts in its own way
    saved, mlps = load_causal_lm(tmp_path / "weights", torch.float32), MLPs(model)
    every, last = (pooled(saved, loaded, TEXTS, depth) for depth in ("layers", "last"))
    for row, text in enumerate(TEXTS):
        inputs, states = loaded(text, return_tensors="pt"), []
        entered, _ = seen(mlps.final_norm, lambda i=inputs, s=states: s.extend(
            model(**i, output_hidden_states=True).hidden_states))  # fmt: skip
        wanted = [states[1][0].mean(dim=0), entered.reshape(-1, entered.shape[-1]).mean(dim=0)]
        np.testing.assert_allclose(every[row], torch.stack(wanted), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(last[:, 0], every[:, -1], rtol=1e-4, atol=1e-5)


def test_what_is_shifted_changes_what_is_written(tokenizer):
    model = random_model("llama", len(tokenizer))
    mlps, far = MLPs(model), ([(layer, place) for layer in range(2) for place in range(24)], 5.0)
    plain = greedy(model, tokenizer, TEXTS, 4)
    with hooked(len(TEXTS), shift_some(mlps, [far] * len(TEXTS))):
        assert plain.continuations != greedy(model, tokenizer, TEXTS, 4).continuations
    assert greedy(model, tokenizer, TEXTS, 4).continuations == plain.continuations, "a shift must not stay behind"


def test_a_checkpoints_own_settings_of_generation_are_not_followed(tokenizer):
    model = random_model("llama", len(tokenizer))
    plain = greedy(model, tokenizer, TEXTS, 6)
    model.generation_config.update(repetition_penalty=50.0, temperature=0.3, do_sample=True, max_new_tokens=2)
    again = greedy(model, tokenizer, TEXTS, 6)
    assert again.continuations == plain.continuations


def test_batches_have_texts_of_like_length_and_miss_none():
    assert list(batches(["aaa", "a", "aaaa", "aa", "b"], 2)) == [[1, 4], [3, 0], [2]]


def test_an_unknown_family_says_what_to_add(tokenizer):
    model = random_model("llama", len(tokenizer))
    model.config.model_type = "mamba"
    with pytest.raises(UserError, match=r"'mamba'.*FAMILIES in lib/polydetox/mechanism/architectures.py"):
        MLPs(model)


def test_norms_behind_the_residual_sum_are_refused(tokenizer):
    """As in OPT 350M: a neuron does not add to the stream there."""
    from transformers import AutoModelForCausalLM, OPTConfig

    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "word_embed_proj_dim": 32}  # fmt: skip
    model = AutoModelForCausalLM.from_config(OPTConfig(vocab_size=50, do_layer_norm_before=False, **sizes))
    with pytest.raises(UserError, match="norms follow the sum"):
        MLPs(model)
