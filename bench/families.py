"""Every decoder family of the installed transformers: how a tiny random model of it is sampled, scored and trained.

    python bench/families.py [family ...] > families.md

A row a family: how continuations are sampled and perplexities computed (padded batches with a shared cache are the
fast way; the others are taken where that is not exact for the class), the largest relative difference of a perplexity,
many texts at once against one text alone without cache or padding, and of the greedy tokens how many differ from those
of running the whole text again for each; how far a padded batch's log-probabilities with a LoRA adapter on every
linear layer and the embedding are from single ones, and the merged model's logits from the adapter's (idle: adapters
of layers that give no gradient); and whether the mechanism's stages know its MLP. A family that is refused says why.
Exits with status 1 if anything differs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import dataclasses
import io
import logging
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from polydetox.core.errors import UserError
from polydetox.generation import engines
from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.decoding import greedy, mean_over_new_tokens, recorded
from polydetox.metrics import fluency
from polydetox.models.decoders import check_decoder, next_logits
from polydetox.training.shared import linear_layers
from tiny import TEXTS, tiny_tokenizer

MOST = 3e7  # parameters of a model that is tried
WRONG = 1e-3
PATIENCE = 120  # seconds a family, some of which have no code for a CPU but loops

_NAMES = {
    64: "intermediate_size ffn_dim d_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size",
    32: "hidden_size d_model n_embd dim embed_dim embedding_size attention_hidden_size word_embed_proj_dim lru_width "
        "mamba_d_ssm shared_intermediate_size",
    16: "q_lora_rank kv_lora_rank moe_intermediate_size shared_expert_intermediate_size qk_head_dim",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim mamba_d_head "
       "mamba_n_heads n_mamba_heads mamba_headdim mamba_d_state mamba_chunk_size chunk_size mamba_num_heads "
       "mamba_head_dim state_size ssm_state_size sliding_window attention_window attention_window_size block_size",
    4: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_attention_heads n_head n_heads num_heads "
       "decoder_attention_heads encoder_attention_heads num_experts num_local_experts n_routed_experts "
       "moe_num_experts linear_num_value_heads rotary_dim mamba_dt_rank time_step_rank",
    2: "num_key_value_heads num_experts_per_tok linear_num_key_heads expand mamba_expand bos_token_id",
    1: "n_group topk_group n_shared_experts first_k_dense_replace n_groups mamba_n_groups mamba_ngroups "
       "encoder_layers eos_token_id",
    256: "max_position_embeddings n_positions",
}  # fmt: skip
SIZES: dict[str, Any] = {name: value for value, names in _NAMES.items() for name in names.split()}
SIZES |= {"pad_token_id": 0, "use_mamba_kernels": False, "is_decoder": True}

# What a family needs besides.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 16},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "ernie4_5_moe": {"moe_k": 2},
    "falcon_h1": {"mamba_n_heads": 4},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": 900, "hidden_size_per_layer_input": 8,
    },
    "gemma4_text": {
        "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 900, "hidden_size_per_layer_input": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"ffn_hidden_size": 64, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

PROMPTS = [*TEXTS[:3], "A", *TEXTS[:3], "今日は"]
ENDINGS = [" nobody knows", " x", "s of it", " heute wieder", " sehr laut und niemand", " a b c d e f", "。", " again"]


def tiny_values(kind: type, vocabulary: int) -> dict[str, Any]:
    """The values that make a configuration class's model tiny, and those of the models inside it."""
    known = {field.name for field in dataclasses.fields(kind)}
    default = vars(kind())
    values = {name: value for name, value in (SIZES | {"vocab_size": vocabulary}).items()
              if name in known and default.get(name, 0) is not None}  # fmt: skip
    if "kv_lora_rank" in known:
        values["num_key_value_heads"] = 4
    if default.get("layer_types") and "layer_types" in known:
        values["layer_types"] = (list(dict.fromkeys(default["layer_types"])) * 4)[:4]
    for name, part in (kind.sub_configs or {}).items():  # type: ignore[attr-defined]
        if isinstance(part, type) and part.__name__ != "AutoConfig":
            values[name] = tiny_values(part, vocabulary)
    return values | OWN.get(kind.model_type, {})  # type: ignore[attr-defined]


def tiny_of(family: str, vocabulary: int) -> transformers.PreTrainedModel:
    """A tiny random model of a family, its weights large enough that a wrong distribution shows."""
    kind = CONFIG_MAPPING[family]
    configuration = kind(**tiny_values(kind, vocabulary))
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(configuration)
    size = sum(weight.numel() for weight in empty.parameters())
    if size > MOST:
        raise MemoryError(f"its smallest model has {size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configuration).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.dim() > 1 else None
    return model


def true_perplexities(model: Any, tokenizer: Any) -> np.ndarray:
    """Of each ending after its prompt, from one forward pass over the text alone."""
    values = []
    for prompt, ending in zip(PROMPTS, ENDINGS, strict=True):
        before, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + ending)["input_ids"]
        start = max(1, fluency.common_prefix(before, whole))
        scores = next_logits(model, whole).log_softmax(-1)
        values.append(np.exp(-np.mean([float(scores[at - 1, whole[at]]) for at in range(start, len(whole))])))
    return np.array(values)


def wrong_tokens(model: Any, tokenizer: Any, drawn: list[list[engines.Continuation]]) -> int:
    """How many greedy tokens are not those of the whole text read again for each."""
    wrong = 0
    for prompt, continuations in zip(PROMPTS, drawn, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        for token in continuations[0].tokens:
            scores = next_logits(model, ids)[-1]
            wrong += int(float(scores.max() - scores[token]) > 1e-4)
            ids = [*ids, token]
        wrong += sum(one.tokens != continuations[0].tokens for one in continuations)
    return wrong


def adapter_difference(model: Any, tokenizer: Any) -> tuple[float, int]:
    """Log-probabilities in a batch padded on the right, and logits after merging, against single texts' with LoRA.

    Also how many adapters get no gradient: they stay as they begin, at no change.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    names = linear_layers(model, embeddings=True)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False)).eval()
    rows = [tokenizer(text)["input_ids"] for text in PROMPTS[:4]]
    ids = fluency.padded(rows, 0)
    mask = (fluency.padded(rows, -1) != -1).long()
    logits = adapted(input_ids=ids, attention_mask=mask, use_cache=False).logits
    alone = [next_logits(adapted, row) for row in rows]
    worst = max(float((logits[at, : len(row)].log_softmax(-1) - one.log_softmax(-1)).abs().max())
                for at, (row, one) in enumerate(zip(rows, alone, strict=True)))  # fmt: skip
    logits.float().square().mean().backward()
    idle = [weight for _, weight in adapted.named_parameters() if weight.requires_grad and weight.grad is None]
    for weight in idle:
        weight.data.zero_()
    alone[0] = next_logits(adapted, rows[0])
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if not tied:  # a tied model is merged by merge_adapter, which the tests hold to the same
        merged = next_logits(adapted.merge_and_unload(), rows[0])
        worst = max(worst, float((merged.log_softmax(-1) - alone[0].log_softmax(-1)).abs().max()))
    return worst, len(idle) // 2


def mechanism(model: Any, tokenizer: Any) -> str:
    """Whether activations in a batch are those of single texts, or that the family is not known."""
    try:
        mlps = MLPs(model)
    except UserError:
        return "refused"
    neurons = [(layer, place) for layer in range(len(mlps)) for place in (0, 3)]

    def watched(prompts: list[str]) -> tuple[list[str], np.ndarray]:
        with recorded(mlps, neurons, len(prompts)) as passes:
            decoded = greedy(model, tokenizer, prompts, 5)
        return decoded.continuations, mean_over_new_tokens(passes, decoded.counted)

    texts, activations = watched(PROMPTS[:4])
    alone = [watched([prompt]) for prompt in PROMPTS[:4]]
    same = texts == [text for (text,), _ in alone]
    close = np.allclose(activations, np.concatenate([one for _, one in alone]), rtol=1e-3, atol=1e-4)
    return "yes" if same and close else "WRONG"


def row(family: str, tokenizer: Any, folder: Path) -> tuple[list[str], bool]:
    """The cells of one family, and whether all is right."""
    try:
        check_decoder(CONFIG_MAPPING[family](), family)
    except UserError as error:
        return [f"refused: {str(error).split(' is ')[1].split(';')[0]}"], True
    except Exception:  # a class that has no defaults
        pass
    try:
        model = tiny_of(family, len(tokenizer))
        next_logits(model, [2, 300, 301])
    except (Exception, SystemExit) as error:
        return [f"not tried: {type(error).__name__}: {str(error).splitlines()[0][:90]}"], True
    model.save_pretrained(folder)
    try:
        engine = engines.TransformersEngine(folder, "float32")
        sampling = engines.Sampling(n=2, temperature=0.0, max_new_tokens=6)
        drawn = engine.sample([str(number) for number in range(len(PROMPTS))], PROMPTS, sampling)
        reference = fluency.ReferenceModel(folder, "float32", batch_size=3)
        found = reference.perplexities(PROMPTS, ENDINGS)
    except UserError as error:
        return [f"refused: {str(error).split(': ', 1)[1][:110]}"], True
    wrong = wrong_tokens(engine.model, tokenizer, drawn)
    relative = float(np.abs(found / true_perplexities(reference.model, tokenizer) - 1).max())
    watched = mechanism(engine.model, tokenizer)
    try:
        trained, idle = adapter_difference(reference.model, tokenizer)
        lora = f"{trained:.0e}" + (f" ({idle} idle)" if idle else "")
    except Exception as error:
        trained, lora = 0.0, f"fails: {type(error).__name__}: {str(error).splitlines()[0][:60]}"
    right = not wrong and relative < WRONG and trained < 10 * WRONG and watched != "WRONG"
    return [engine.way, reference.way, f"{relative:.0e}", str(wrong), lora, watched], right


def too_slow(*_: Any) -> None:
    """What the alarm does."""
    raise KeyboardInterrupt  # which no stage catches


def main() -> int:
    signal.signal(signal.SIGALRM, too_slow)
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    tokenizer = tiny_tokenizer()
    # One tokenizer for all: some families' own class would read the tiny one differently.
    engines.load_tokenizer = fluency.load_tokenizer = lambda weights: tiny_tokenizer()
    wrong = []
    print("| family | sampling | perplexity | differs by | greedy tokens wrong | LoRA | mechanism |")
    print("|---" * 7 + "|")
    for family in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        quiet = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stderr(quiet),
            contextlib.redirect_stdout(quiet),
        ):
            signal.alarm(PATIENCE)
            try:
                cells, right = row(family, tokenizer, Path(folder))
            except KeyboardInterrupt:
                cells, right = [f"not tried: takes more than {PATIENCE} seconds"], True
            signal.alarm(0)
        wrong += [] if right else [family]
        print(f"| {family} | {' | '.join([*cells, *[''] * (6 - len(cells))])} |", flush=True)
    print(f"\nWrong: {', '.join(wrong) or 'none'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
