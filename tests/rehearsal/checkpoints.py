"""Random models with the configurations, vocabularies and file layouts of the published ones, in a cache of the Hub.

Every layer is narrow and there are two of them; the vocabularies have their real sizes, the tokenizers are of the real
kinds. A run finds them where `huggingface-hub` keeps what it has downloaded, so that model files and scorers stay as
they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import chain, product
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import yaml

HEAD = 32  # width of an attention head: the least that vLLM's kernels know
HIDDEN = 2 * HEAD
WIDE = 256  # of a feed-forward layer: twice as many neurons in two layers as the paper takes for sources, and more
PARAMS = Path(__file__).resolve().parents[2] / "params"
NEWEST = "f" * 40  # stands for the commit of what is not pinned


@cache
def sentences() -> dict[str, list[str]]:
    """The project's evaluation prompts in each language, parallel."""
    rows = yaml.safe_load((PARAMS / "prompts/evaluation.yaml").read_text("utf-8"))
    languages = [key for key in rows[0] if len(key) == 2]
    return {language: [row[language] for row in rows] for language in languages}


# --- tokenizers -------------------------------------------------------------------------------------------------


def _corpus() -> list[str]:
    return [text for texts in sentences().values() for text in texts]


@cache
def _byte_level() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Tokens and merges of a byte-level byte-pair encoding of the project's prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return tuple(model["vocab"]), tuple(map(tuple, model["merges"]))


@cache
def _pieces() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Tokens and merges of a byte-pair encoding of characters, with ``▁`` for a space, as SentencePiece has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(_corpus(), trainers.BpeTrainer(vocab_size=2500, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    return tuple(model["vocab"]), tuple(map(tuple, model["merges"]))


def vocabulary(tokens: tuple[str, ...], size: int, fixed: Mapping[int, str]) -> dict[str, int]:
    """A vocabulary of the real size: tokens with ids of their own, those that texts are made of, and filler.

    Filler is two of the tokens in one, which no merge makes: a random model says it, and no text holds it.
    """
    words = chain(tokens, map("".join, product([token for token in tokens if len(token) < 6], repeat=2)))
    found = {token: number for number, token in fixed.items()}
    free = iter(number for number in range(size) if number not in fixed)
    while len(found) < size:
        word = next(words)
        if word not in found:
            found[word] = next(free)
    return dict(sorted(found.items(), key=itemgetter(1)))


def _added(fixed: Mapping[int, str]) -> list[dict[str, Any]]:
    return [{"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for number, token in sorted(fixed.items())]  # fmt: skip


def _template(token: str, number: int) -> dict[str, Any]:
    """A template that puts one token before every text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {"type": "TemplateProcessing", "single": [begin, first], "pair": [begin, first, begin, second],
            "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}}}  # fmt: skip


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _fast(model: dict[str, Any], added: Mapping[int, str], **parts: Any) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    empty = {"truncation": None, "padding": None, "normalizer": None, "post_processor": None}
    return {"version": "1.0", **empty, "added_tokens": _added(added), "decoder": _BYTES, "pre_tokenizer": _BYTES,
            "model": model, **parts}  # fmt: skip


def _bpe(size: int, fixed: Mapping[int, str], **options: Any) -> dict[str, Any]:
    tokens, merges = _byte_level()
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocabulary(tokens, size, fixed), "merges": list(merges), **options}  # fmt: skip


Files = dict[str, Any]  # name -> content: a text, bytes, or what is written as JSON


def mgpt_tokenizer() -> Files:
    """GPT-2's: vocabulary and merges in files of their own, no token before a text."""
    fixed = {0: "<unk>", 1: "<pad>", 2: "<s>", 5: "<|endoftext|>"}
    model = _bpe(100_000, fixed)
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<pad>"}
    return {"vocab.json": model["vocab"], "merges.txt": merges, "special_tokens_map.json": names,
            "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", **names}}  # fmt: skip


@cache
def bloom_tokenizer() -> Files:
    """BLOOM's: 200 tokens fewer than the model has embeddings, padding on the left, no token before a text."""
    fixed = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "<pad>"}
    split = {
        "type": "Split",
        "pattern": {"Regex": " ?[^(\\s|[.,!?…。，、।۔،])]+"},
        "behavior": "Isolated",
        "invert": False,
    }
    before = {"type": "Sequence", "pretokenizers": [split, _BYTES | {"use_regex": False}]}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return {"tokenizer.json": _fast(_bpe(250_680, fixed), fixed, pre_tokenizer=before, post_processor=_BYTES),
            "special_tokens_map.json": names,
            "tokenizer_config.json": {"tokenizer_class": "BloomTokenizerFast", "padding_side": "left",
                                      "add_prefix_space": False, **names}}  # fmt: skip


@cache
def llama_tokenizer() -> Files:
    """Llama's and Llama 2's: SentencePiece's pieces with bytes to fall back on, BOS before a text, no padding token."""
    special = {0: "<unk>", 1: "<s>", 2: "</s>"}
    fixed = special | {3 + byte: f"<0x{byte:02X}>" for byte in range(256)}
    tokens, merges = _pieces()
    model = _bpe(32_000, fixed) | {"vocab": vocabulary(tokens, 32_000, fixed), "merges": list(merges),
                                   "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}  # fmt: skip
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [
        back,
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {
        "tokenizer.json": _fast(
            model, special, pre_tokenizer=None, post_processor=_template("<s>", 1),
            normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
            decoder={"type": "Sequence", "decoders": decoders},
        ),
        "special_tokens_map.json": names,
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
                                  "legacy": False, "pad_token": None, "padding_side": "right", "sp_model_kwargs": {},
                                  "clean_up_tokenization_spaces": False, "model_max_length": int(1e30), **names},
    }  # fmt: skip


def llama_3_tokenizer() -> Files:
    """Llama 3's: 256 special tokens after 128,000 of bytes, BOS before a text, no padding token."""
    fixed = {128_000: "<|begin_of_text|>", 128_001: "<|end_of_text|>"}
    fixed |= {number: f"<|reserved_special_token_{number - 128_002}|>" for number in range(128_002, 128_256)}
    begin = _template("<|begin_of_text|>", 128_000)
    parts = {"post_processor": {"type": "Sequence", "processors": [_BYTES, begin]}}
    return {"tokenizer.json": _fast(_bpe(128_000, {}, ignore_merges=True), fixed, **parts),
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": fixed[128_000], "eos_token": fixed[128_001],
                "model_input_names": ["input_ids", "attention_mask"], "model_max_length": int(1e30)}}  # fmt: skip


def cohere_tokenizer() -> Files:
    """Cohere's: fewer tokens than the model has embeddings, those of turns at the end, BOS before a text."""
    first = ["<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<EOP_TOKEN>"]
    last = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", *(f"<|EXTRA_{number}_TOKEN|>" for number in range(27))]
    fixed = dict(enumerate(first)) | dict(enumerate(last, 255_000))
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]}
    return {"tokenizer.json": _fast(_bpe(255_029, fixed), fixed, normalizer={"type": "NFC"}, pre_tokenizer=digits,
                                    post_processor=_template("<BOS_TOKEN>", 5)),
            "tokenizer_config.json": {
                "tokenizer_class": "CohereTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True,
                "bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>",
                "unk_token": None, "sp_model_kwargs": {}, "model_max_length": int(1e30)}}  # fmt: skip


def falcon_tokenizer() -> Files:
    """Falcon's: no token before a text, none for padding."""
    fixed = dict(enumerate([">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", ">>SUMMARY<<", ">>COMMENT<<",
                            ">>ANSWER<<", ">>QUESTION<<", ">>DOMAIN<<", ">>PREFIX<<", ">>SUFFIX<<", ">>MIDDLE<<",
                            "<|endoftext|>"]))  # fmt: skip
    punctuation = {"type": "Punctuation", "behavior": "Contiguous"}
    before = {
        "type": "Sequence",
        "pretokenizers": [punctuation, _BYTES, {"type": "Digits", "individual_digits": False}],
    }
    return {"tokenizer.json": _fast(_bpe(65_024, fixed), fixed, pre_tokenizer=before),
            "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False,
                                      "eos_token": "<|endoftext|>", "model_max_length": 2048}}  # fmt: skip


def _scored(size: int, fixed: Mapping[int, str]) -> list[list[Any]]:
    """Pieces of a unigram model with their scores; filler has so low a one that texts are never cut that way."""
    tokens, _ = _pieces()
    known = {token: -4.0 - number / 1000 for number, token in enumerate(tokens)}
    return [[token, 0.0 if number in fixed else known.get(token, -40.0)]
            for token, number in vocabulary(tokens, size, fixed).items()]  # fmt: skip


def _unigram(scored: list[list[Any]], fixed: Mapping[int, str], unknown: int, single: list[str]) -> dict[str, Any]:
    ids = {token: number for number, token in fixed.items()}
    parts = [{"Sequence": {"id": "A", "type_id": 0}} if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}}
             for part in single]  # fmt: skip
    used = {part: {"id": part, "ids": [ids[part]], "tokens": [part]} for part in single if part != "$A"}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    template = {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": used}
    return _fast({"type": "Unigram", "unk_id": unknown, "vocab": scored, "byte_fallback": False}, fixed,
                 pre_tokenizer=space, decoder=space, post_processor=template)  # fmt: skip


def mt5_tokenizer() -> Files:
    """mT5's: a SentencePiece model alone, which the packages of the extra `gpu` read; without them a tokenizer.json."""
    special = {0: "<pad>", 1: "</s>", 2: "<unk>"}
    fixed = special | {3 + byte: f"<0x{byte:02X}>" for byte in range(256)}
    scored = _scored(250_100, fixed)
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    files: Files = {
        "special_tokens_map.json": names,
        "tokenizer_config.json": {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": 0,
            "additional_special_tokens": None,
            **names,
        },
    }
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        return files | {"tokenizer.json": _unigram(scored, special, 2, ["$A", "</s>"])}
    from sentencepiece import SentencePieceTrainer

    trained = BytesIO()  # for its normaliser
    SentencePieceTrainer.train(sentence_iterator=iter(_corpus()), model_writer=trained, vocab_size=2000,
                               model_type="unigram", normalization_rule_name="nmt_nfkc", minloglevel=2)  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto()
    proto.normalizer_spec.CopyFrom(sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue()).normalizer_spec)
    kinds = proto.SentencePiece
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    for name, number in (("pad", 0), ("eos", 1), ("unk", 2), ("bos", -1)):
        setattr(proto.trainer_spec, f"{name}_id", number)
    proto.trainer_spec.byte_fallback = True
    for number, (piece, score) in enumerate(scored):
        kind = kinds.NORMAL if number > 258 else kinds.BYTE
        kind = {0: kinds.CONTROL, 1: kinds.CONTROL, 2: kinds.UNKNOWN}.get(number, kind)
        proto.pieces.add(piece=piece, score=score, type=kind)
    return files | {"spiece.model": proto.SerializeToString()}


@cache
def xlm_roberta_tokenizer() -> Files:
    """XLM-R's."""
    fixed = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", 250_001: "<mask>"}
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>",
             "pad_token": "<pad>", "mask_token": "<mask>"}  # fmt: skip
    return {"tokenizer.json": _unigram(_scored(250_002, fixed), fixed, 3, ["<s>", "$A", "</s>"]),
            "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512,
                                      **names}}  # fmt: skip


# --- models -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """One repository of the Hub: its config.json as published but for the sizes, and how its files are laid out."""

    config: dict[str, Any]
    tokenizer: Callable[[], Files] | None
    dtype: str  # of the published weights
    pickled: bool = False  # pytorch_model.bin alone, no safetensors
    generation: dict[str, Any] | None = None  # generation_config.json
    left_over: tuple[str, ...] = ()  # buffers that old releases saved beside the weights, of each layer
    scale: float = 1.0  # by which the model multiplies its logits


_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
    "intermediate_size": WIDE, "num_attention_heads": 2, "num_hidden_layers": 2, "initializer_range": 0.02,
    "tie_word_embeddings": False, "use_cache": True,
}  # fmt: skip
_LLAMA_2 = _LLAMA | {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 32_000,
    "rope_scaling": None,
    "pretraining_tp": 1,
}
_ROTARY = ("model.layers.{}.self_attn.rotary_emb.inv_freq",)
_BLOOM = {
    "architectures": ["BloomForCausalLM"], "model_type": "bloom", "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 3, "hidden_dropout": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True, "n_embed": HIDDEN, "n_inner": None, "n_layer": 2, "num_attention_heads": 2,
    "offset_alibi": 100, "pretraining_tp": 2, "seq_length": 2048, "skip_bias_add": True, "slow_but_exact": False,
    "unk_token_id": 0, "use_cache": True, "vocab_size": 250_880,
}  # fmt: skip
_XLM_R = {
    "architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta", "hidden_size": 32,
    "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 514,
    "type_vocab_size": 1, "vocab_size": 250_002, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    "layer_norm_eps": 1e-05, "hidden_act": "gelu", "position_embedding_type": "absolute",
}  # fmt: skip


def _labels(*names: str, **more: Any) -> dict[str, Any]:
    return _XLM_R | {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} | more


_BLOOM_SETTINGS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_LLAMA_SETTINGS = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.9}

REPOSITORIES: dict[str, Published] = {
    "ai-forever/mGPT": Published(
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
         "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "bos_token_id": 2, "eos_token_id": 5,
         "pad_token_id": 1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_ctx": 2048, "n_embd": HIDDEN,
         "n_head": 2, "n_inner": None, "n_layer": 2, "n_positions": 2048, "vocab_size": 100_000, "use_cache": True},
        mgpt_tokenizer, "float32", pickled=True, left_over=("transformer.h.{}.attn.masked_bias",),
    ),
    "bigscience/bloom-1b7": Published(_BLOOM, bloom_tokenizer, "float16", generation=_BLOOM_SETTINGS),
    "BatsResearch/bloom-1b7-detox": Published(_BLOOM, None, "float32", generation=_BLOOM_SETTINGS),
    "bigscience/bloom-7b1": Published(_BLOOM, bloom_tokenizer, "float16"),
    "meta-llama/Llama-2-7b-hf": Published(
        _LLAMA_2 | {"max_position_embeddings": 4096, "num_key_value_heads": 2, "rms_norm_eps": 1e-05},
        llama_tokenizer, "float16", generation=_LLAMA_SETTINGS, left_over=_ROTARY,
    ),
    "huggyllama/llama-7b": Published(
        _LLAMA_2 | {"max_position_embeddings": 2048, "max_sequence_length": 2048, "pad_token_id": 0,
                    "rms_norm_eps": 1e-06},
        llama_tokenizer, "float16", left_over=_ROTARY,
        generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "meta-llama/Meta-Llama-3-8B": Published(
        _LLAMA | {"bos_token_id": 128_000, "eos_token_id": 128_001, "vocab_size": 128_256, "rope_theta": 500_000.0,
                  "rope_scaling": None, "max_position_embeddings": 8192, "num_key_value_heads": 1,
                  "rms_norm_eps": 1e-05, "attention_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1},
        llama_3_tokenizer, "bfloat16",
        generation=_LLAMA_SETTINGS | {"bos_token_id": 128_000, "eos_token_id": 128_001},
    ),
    "CohereLabs/aya-23-8B": Published(
        {"architectures": ["CohereForCausalLM"], "model_type": "cohere", "attention_bias": False,
         "attention_dropout": 0.0, "bos_token_id": 5, "eos_token_id": 255_001, "pad_token_id": 0,
         "hidden_act": "silu", "hidden_size": HIDDEN,
         "initializer_range": 0.02, "intermediate_size": WIDE, "layer_norm_eps": 1e-05, "logit_scale": 0.0625,
         "max_position_embeddings": 8192, "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
         "rope_theta": 10_000, "use_cache": True, "use_qk_norm": False, "vocab_size": 256_000},
        cohere_tokenizer, "float16", generation={"bos_token_id": 5, "eos_token_id": 255_001, "pad_token_id": 0},
        scale=0.0625,
    ),
    "tiiuae/falcon-7b": Published(
        {"architectures": ["FalconForCausalLM"], "model_type": "falcon", "alibi": False, "attention_dropout": 0.0,
         "apply_residual_connection_post_layernorm": False, "bias": False, "bos_token_id": 11, "eos_token_id": 11,
         "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig",
                      "AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM"},
         "hidden_dropout": 0.0, "hidden_size": HIDDEN, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
         "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 2, "num_hidden_layers": 2,
         "parallel_attn": True, "use_cache": True, "vocab_size": 65_024},
        falcon_tokenizer, "bfloat16", generation={"bos_token_id": 11, "eos_token_id": 11},
    ),
    "google/mt5-xl": Published(
        {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5", "d_ff": 64, "d_kv": HEAD,
         "d_model": HIDDEN,
         "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
         "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "num_decoder_layers": 2,
         "num_heads": 2, "num_layers": 2, "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
         "tie_word_embeddings": False, "tokenizer_class": "T5Tokenizer", "use_cache": True, "vocab_size": 250_112},
        mt5_tokenizer, "float32", pickled=True,
    ),
    "unitary/multilingual-toxic-xlm-roberta": Published(
        _labels("toxic"), xlm_roberta_tokenizer, "float32", pickled=True
    ),
    "textdetox/xlmr-large-toxicity-classifier-v2": Published(
        _labels("LABEL_0", "LABEL_1", problem_type="single_label_classification"), xlm_roberta_tokenizer, "float32"
    ),
    "abacusai/Toxicity-Lens": Published(
        _labels("TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT",
                problem_type="multi_label_classification"),
        xlm_roberta_tokenizer, "float32",
    ),
}  # fmt: skip


def make(repository: str, revision: str | None, hub: Path) -> Path:
    """One random model in a cache of the Hub, at the commit that a model file pins; made once."""
    published = REPOSITORIES[repository]
    place = hub / f"models--{repository.replace('/', '--')}"
    folder = place / "snapshots" / (revision or NEWEST)
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs/main").write_text(folder.name)
    files = dict(published.tokenizer()) if published.tokenizer else {}
    config = published.config | {"torch_dtype": published.dtype, "transformers_version": "4.30.0"}
    if published.generation:
        files["generation_config.json"] = published.generation | {"_from_model_config": True}
    for name, content in files.items():
        data = content if isinstance(content, bytes) else (
            content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode()  # fmt: skip
        (folder / name).write_bytes(data)
    _write_weights(published, config, folder)
    (folder / "config.json").write_text(json.dumps(config))  # last, and not as the present transformers writes it
    return folder


def _write_weights(published: Published, config: dict[str, Any], folder: Path) -> None:
    import transformers

    kind = getattr(transformers, config["architectures"][0])
    options = {name: value for name, value in config.items() if name not in ("torch_dtype", "auto_map")}
    torch.manual_seed(0)
    model = kind(kind.config_class.from_dict(options))
    _sharpen(model, published.scale)
    model = model.to(getattr(torch, published.dtype))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name in published.left_over:
        state |= {name.format(layer): torch.tensor([1.0] * 16) for layer in range(2)}
    if published.pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, state_dict=state, max_shard_size="40MB")


def _sharpen(model: Any, scale: float) -> None:
    """Let the next token be about as uncertain as a trained model's: some words have most of the probability."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        return
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if module is not head and module is not embedding and weight is not None and weight.dim() > 1:
                weight.mul_(8.0 / scale**0.5)  # else a model with tied embeddings says each token again
        head.weight.normal_(0.0, 5.0 / HIDDEN**0.5 / scale)


def make_all(hub: Path, models: list[dict[str, Any]], scorers: dict[str, str | None]) -> None:
    """Every repository that some model files and scorers name; the ones of a file's ``tuned`` as well."""
    for model in models:
        for source in (model, model.get("tuned") or {}):
            if source.get("hub"):
                make(source["hub"], source.get("revision"), hub)
    for repository, revision in scorers.items():
        make(repository, revision, hub)
