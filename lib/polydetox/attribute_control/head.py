"""The NADO head, and the decoding model that it makes of a language model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from polydetox.attribute_control.nado import target_log_probabilities
from polydetox.core.artifacts import atomic_folder, read_json, write_json
from polydetox.core.errors import UserError
from polydetox.models.texts import context_length


class NadoHead(torch.nn.Module):
    """R_phi: a logit for every token of the vocabulary, from the last hidden state h of a backbone.

    Every kind is a value of the prefix, the same for all tokens, plus a part of each token:

    - ``full``: a (vocabulary, hidden) matrix times h;
    - ``low-rank``: the same with a matrix of rank ``rank``;
    - ``tied``: E A h with the language model's output embedding E (vocabulary, embedding), which is not trained; what
      is learnt of one token then holds for those of like meaning, which helps where there are few samples.

    It begins at R = 1/2 everywhere.
    """

    def __init__(self, kind: str, hidden: int, vocabulary: int, rank: int, embedding: int):
        super().__init__()
        self.options = {"kind": kind, "hidden": hidden, "vocabulary": vocabulary, "rank": rank, "embedding": embedding}
        self.kind = kind
        # Typical length of an output embedding, by which a tied head's vectors are made of unit length: families differ
        # in it, and a step of training changes a logit in proportion to it.
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(()))
        self.prefix = torch.nn.Linear(hidden, 1)
        self.token_bias = torch.nn.Parameter(torch.zeros(vocabulary))
        torch.nn.init.zeros_(self.prefix.weight)
        torch.nn.init.zeros_(self.prefix.bias)
        if kind == "full":
            self.up = torch.nn.Parameter(torch.zeros(vocabulary, hidden))
        elif kind == "low-rank":
            self.down = torch.nn.Linear(hidden, rank, bias=False)
            self.up = torch.nn.Parameter(torch.zeros(vocabulary, rank))
        else:
            self.down = torch.nn.Linear(hidden, embedding, bias=False)
            torch.nn.init.zeros_(self.down.weight)

    def _parts(self, hidden: torch.Tensor, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Value of the prefix (*positions, 1), a query (*positions, size), each token's vector (vocabulary, size)."""
        # Families differ in the scale of their hidden states by orders of magnitude.
        hidden = torch.nn.functional.layer_norm(hidden.to(self.prefix.weight.dtype), hidden.shape[-1:])
        query = hidden if self.kind == "full" else self.down(hidden) / self.scale
        return self.prefix(hidden), query, embedding.detach() if self.kind == "tied" else self.up

    def forward(
        self, hidden: Float[torch.Tensor, "*positions hidden"], embedding: Float[torch.Tensor, "vocabulary size"]
    ) -> Float[torch.Tensor, "*positions vocabulary"]:
        """The logits of R for every token that may come next. ``embedding`` is E; only ``tied`` looks at it."""
        value, query, vectors = self._parts(hidden, embedding)
        return query @ vectors.to(query.dtype).T + self.token_bias + value

    def of_tokens(
        self,
        hidden: Float[torch.Tensor, "*positions hidden"],
        tokens: Int[torch.Tensor, "*positions"],
        embedding: Float[torch.Tensor, "vocabulary size"],
    ) -> Float[torch.Tensor, "*positions"]:
        """The logit of R for one token a position: :meth:`forward` gathered, without the rest of the vocabulary."""
        value, query, vectors = self._parts(hidden, embedding)
        return (query * vectors[tokens].to(query.dtype)).sum(dim=-1) + self.token_bias[tokens] + value.squeeze(-1)

    def save(self, folder: Path, **facts: Any) -> None:
        """Write ``head.safetensors`` and ``head.json``, all or nothing."""
        with atomic_folder(folder) as temporary:
            save_file({name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()},
                      temporary / "head.safetensors")  # fmt: skip
            write_json(temporary / "head.json", {**self.options, **facts})

    @classmethod
    def load(cls, folder: Path) -> NadoHead:
        """What :meth:`save` wrote."""
        options = read_json(folder / "head.json")
        head = cls(**{name: options[name] for name in ("kind", "hidden", "vocabulary", "rank", "embedding")})
        head.load_state_dict(load_file(folder / "head.safetensors"))
        return head


class NadoConfig(PreTrainedConfig):
    """The configuration of a decoding model: that of its language model, of its head, and alpha."""

    model_type = "polydetox_nado"

    def __init__(
        self, language_model: dict[str, Any] | None = None, head: dict[str, Any] | None = None, alpha: float = 1.0,
        separate_backbone: bool = False, **named: Any,
    ):  # fmt: skip
        self.language_model = language_model or {}
        self.head = head or {}
        self.alpha = alpha
        self.separate_backbone = separate_backbone
        if self.language_model:
            # Families name these differently; transformers' decoding and caches ask by the common names.
            inner = AutoConfig.for_model(**self.language_model)
            for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
                named.setdefault(name, getattr(inner, name, None))  # Mamba has no attention heads
            named.setdefault("max_position_embeddings", context_length(inner))
        named.setdefault("tie_word_embeddings", False)  # the language model ties its own
        super().__init__(**named)


class _TwoCaches(DynamicCache):
    """The cache of the language model, and with it that of a backbone of its own."""

    keys_and_values = True  # and nothing else

    def __init__(self) -> None:
        super().__init__()
        self.backbone = DynamicCache()

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.backbone.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.backbone.batch_select_indices(indices)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.backbone.reorder_cache(beam_idx)

    def crop(self, max_length: int) -> None:
        super().crop(max_length)
        self.backbone.crop(max_length)


class NadoForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model p whose next-token logits are log q, what the head R allows of p.

    It saves and loads like any checkpoint and decodes with a cache. The head reads the language model's own last hidden
    state, or that of a backbone of its own where ``separate_backbone`` says so (one that was adapted to the head).
    """

    config_class = NadoConfig
    config: NadoConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: NadoConfig):
        super().__init__(config)
        inner = AutoConfig.for_model(**config.language_model)
        self.language_model = AutoModelForCausalLM.from_config(inner)
        self.backbone = AutoModel.from_config(inner) if config.separate_backbone else None
        self.head = NadoHead(**config.head)
        # Not so BLOOM, which derives them from the attention mask, and recurrent models.
        self._takes_positions = "position_ids" in inspect.signature(self.language_model.forward).parameters
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Parts initialise themselves; all weights come from a checkpoint."""

    @classmethod
    def assemble(
        cls, language_model: PreTrainedModel, head: NadoHead, alpha: float, backbone: PreTrainedModel | None = None
    ) -> NadoForCausalLM:
        """The decoding model of a language model and a head that were trained."""
        config = NadoConfig(
            language_model=language_model.config.to_dict(), head=head.options, alpha=alpha,
            separate_backbone=backbone is not None,
            **{name: getattr(language_model.config, name, None)
               for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        )  # fmt: skip
        with torch.device("meta"):
            model = cls(config)
        model.language_model, model.backbone, model.head = language_model, backbone, head
        model.generation_config = GenerationConfig.from_model_config(config)
        model.generation_config.eos_token_id = language_model.generation_config.eos_token_id
        return model.eval()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # (texts, positions)
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **named: Any,
    ) -> CausalLMOutputWithPast:
        """``logits`` are log q (texts, positions kept, vocabulary), normalised."""
        if self.backbone is not None and use_cache and not isinstance(past_key_values, _TwoCaches):
            if past_key_values is not None and past_key_values.get_seq_length():
                raise ValueError("a cache that began without the head's backbone cannot be continued")
            past_key_values = _TwoCaches()
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache}
        if self._takes_positions:
            inputs["position_ids"] = position_ids
        output = self.language_model(**inputs, past_key_values=past_key_values, logits_to_keep=logits_to_keep,
                                     output_hidden_states=self.backbone is None)  # fmt: skip
        if self.backbone is None:
            hidden = output.hidden_states[-1]
        else:
            cache = past_key_values.backbone if isinstance(past_key_values, _TwoCaches) else None
            hidden = self.backbone(**inputs, past_key_values=cache).last_hidden_state
        hidden = hidden[:, -output.logits.shape[1] :]
        head_logits = self.head(hidden, self.get_output_embeddings().weight)
        log_p = output.logits.float().log_softmax(-1)
        log_q: Any = target_log_probabilities(log_p, head_logits.float(), self.config.alpha)
        loss = self.loss_function(log_q, labels, log_q.shape[-1]) if labels is not None else None
        return CausalLMOutputWithPast(loss=loss, logits=log_q, past_key_values=getattr(output, "past_key_values", None))


# With these, transformers' auto classes load a decoding model like any other checkpoint.
AutoConfig.register(NadoConfig.model_type, NadoConfig)
AutoModelForCausalLM.register(NadoConfig, NadoForCausalLM)


def engine_of(weights: Path, wanted: str) -> str:
    """The engine for a checkpoint: vLLM does not know a NADO checkpoint, so that takes transformers.

    Raises:
        UserError: vLLM was asked for by name, for a NADO checkpoint.
    """
    if read_json(weights / "config.json").get("model_type") != NadoConfig.model_type:
        return wanted
    if wanted == "vllm":
        raise UserError("vLLM cannot decode with a NADO head; set engine: transformers (or auto) for nado")
    return "transformers"
