"""Conditional perplexity of continuations under a judge model (Li et al. 2024, section 3.2).

The judge of the paper is mT5-XL; any causal or encoder-decoder checkpoint works. Continuations are judged in batches of
like length; what belongs to a prompt is computed once and shared by its continuations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from polydetox.models.checkpoints import device, inference_dtype, load_causal_lm, load_tokenizer
from polydetox.models.decoders import first_exact, keeps_keys_and_values
from polydetox.models.texts import context_length, last_tokens
from polydetox.models.tokenizers import affixes

Item = TypeVar("Item")

# Logits that are turned into probabilities at once: a piece stays in a CPU's cache.
_PIECE = 1 << 19


def token_nll(
    logits: Float[torch.Tensor, "rows tokens vocabulary"], targets: Int[torch.Tensor, "rows tokens"]
) -> tuple[Float[torch.Tensor, " rows"], Int[torch.Tensor, " rows"]]:
    """Each row's summed negative log-likelihood (nats) and its number of targets; -100 marks padding."""
    flat = logits.flatten(0, 1)  # (rows * tokens, vocabulary)
    chosen = targets.clamp(min=0).flatten().unsqueeze(-1)
    size = max(1, _PIECE // flat.shape[-1])
    pieces = zip(flat.split(size), chosen.split(size), strict=True)
    nll = torch.cat([
        piece.float().logsumexp(dim=-1) - piece.gather(-1, target).squeeze(-1).float() for piece, target in pieces
    ])  # fmt: skip
    counted = targets != -100
    return (nll.view_as(targets) * counted).sum(dim=-1), counted.sum(dim=-1)


class Judge:
    """A checkpoint that tells how likely a continuation is after its prompt.

    Args:
        weights: a causal or an encoder-decoder checkpoint.
        dtype: of the weights where there is a GPU.
        batch_size: continuations a forward pass.
        method: ``conditional``, the likelihood of the continuation's tokens after its prompt, which an encoder reads
            where there is one; or ``published``, what the code of Li et al. computes: the likelihood of the whole text
            less that of the prompt. With a causal judge the two are the same wherever the prompt's tokens begin the
            whole text's. With an encoder-decoder judge they are not: the published code lets the encoder read the whole
            text, continuation included, and takes of T tokens the mean loss times T - 1.
    """

    def __init__(self, weights: Path, dtype: str, batch_size: int = 64, method: str = "conditional"):
        from transformers import AutoConfig

        self.batch_size = batch_size
        configuration = AutoConfig.from_pretrained(weights)
        self._limit = context_length(configuration)
        if configuration.is_encoder_decoder:
            from transformers import AutoModelForSeq2SeqLM

            self.tokenizer = load_tokenizer(weights, closing=True)
            self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(weights, dtype=inference_dtype(dtype))
            self.model = self.model.to(device()).eval()
            self._log_perplexities = self._whole_texts if method == "published" else self._after_encoder
        else:
            self.tokenizer = load_tokenizer(weights)
            self.model = load_causal_lm(weights, inference_dtype(dtype))
            self._log_perplexities = partial(self._causal, less_prompt=method == "published")
        self._opening, _ = affixes(self.tokenizer)
        if not configuration.is_encoder_decoder:
            self.way = self._exact_way()

    def perplexities(self, prompts: Sequence[str], continuations: Sequence[str]) -> Float[np.ndarray, " n"]:
        """exp of the mean negative log-likelihood a token of each continuation; NaN for an empty one.

        A prompt is read once for all its continuations, wherever they are. NaN also where a published perplexity is
        not defined: the continuation adds no token to its prompt's.
        """
        result = np.full(len(prompts), np.nan)
        rows = [position for position, text in enumerate(continuations) if text.strip()]
        if rows:
            with torch.inference_mode(), tqdm(total=len(rows), desc="perplexity", unit="continuation") as progress:
                found = self._log_perplexities(
                    [prompts[row] for row in rows], [continuations[row] for row in rows], progress.update
                )
            with np.errstate(over="ignore"):
                result[rows] = np.exp(found)
        return result

    # --- causal judges ------------------------------------------------------------------------------------------

    def _exact_way(self) -> str:
        """How texts are read: what a prompt's have in common once, where that is exact for this model, else each whole.

        It is tried on a few texts, in batches with padding.
        """
        prompts = ["The weather in the mountains", "One", "One", "One or two of them"]
        continuations = [" is good again", " a", " of the others is", " say so"]

        def trial(judged: Callable[..., np.ndarray]) -> float:
            with torch.inference_mode():
                return float(np.abs(judged(prompts, continuations, less_prompt=False) - alone).max())

        with torch.inference_mode():
            alone = np.concatenate([self._each_whole([prompt], [text], less_prompt=False)
                                    for prompt, text in zip(prompts, continuations, strict=True)])  # fmt: skip
        ways = {
            "in padded batches": partial(trial, self._after_prefix),
            "text by text": partial(trial, self._each_whole),
        }
        return first_exact(self.model, "perplexity", ways, self.tokenizer(prompts[0] + continuations[0])["input_ids"])

    def _causal(
        self, prompts: list[str], continuations: list[str], done: Callable[[int], Any], *, less_prompt: bool
    ) -> Float[np.ndarray, " n"]:
        """Mean negative log-likelihoods with a causal judge; a text of more tokens than its positions is read alone."""
        judged = self._after_prefix if self.way == "in padded batches" else self._each_whole
        long = np.zeros(len(prompts), dtype=bool)
        if self._limit is not None:
            whole = self.tokenizer([prompt + text for prompt, text in zip(prompts, continuations, strict=True)])
            long = np.array([len(ids) > self._limit for ids in whole["input_ids"]])
        result = np.full(len(prompts), np.nan)
        for chosen, judge in ((~long, judged), (long, self._each_whole)):
            if chosen.any():
                rows = np.flatnonzero(chosen)
                result[rows] = judge([prompts[row] for row in rows], [continuations[row] for row in rows],
                                     done, less_prompt=less_prompt)  # fmt: skip
        return result

    def _each_whole(
        self, prompts: list[str], continuations: list[str], done: Callable[[int], Any] = int, *, less_prompt: bool
    ) -> Float[np.ndarray, " n"]:
        """Mean negative log-likelihoods from whole texts, those of one length together, so that nothing is padded.

        Of a text of more tokens than the judge has positions the last ones are read; NaN where these hold no token of
        the prompt. A published one is then the conditional one, the same wherever the prompt's tokens begin the text's.
        """
        tasks: list[tuple[list[int], int]] = []  # token ids, and from which on they count
        shares: list[tuple[int, int | None]] = []  # of each continuation its text among them, and its prompt
        for prompt, text in zip(prompts, continuations, strict=True):
            prefix, ids = (self.tokenizer(part)["input_ids"] for part in (prompt, prompt + text))
            read = last_tokens(ids, self._limit, self._opening)
            if less_prompt and len(read) == len(ids):
                shares.append((len(tasks), len(tasks) + 1))
                tasks += [(ids, 1), (prefix, 1)]
            else:
                start = max(1, common_prefix(prefix, ids)) - (len(ids) - len(read))
                shares.append((len(tasks), None))
                tasks.append((read, start if start > 0 else len(read)))
        nll, count = np.zeros(len(tasks)), np.array([len(ids) - start for ids, start in tasks])
        for length in sorted({len(ids) for ids, _ in tasks}, reverse=True):
            same = [number for number, (ids, _) in enumerate(tasks) if len(ids) == length > 1]
            for begun in range(0, len(same), self.batch_size):
                chunk = same[begun : begun + self.batch_size]
                ids = torch.tensor([tasks[number][0] for number in chunk], device=self.model.device)  # (rows, length)
                logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
                targets = ids[:, 1:].clone()
                for row, number in enumerate(chunk):
                    targets[row, : tasks[number][1] - 1] = -100
                nll[chunk] = token_nll(logits[:, :-1], targets)[0].cpu().numpy()
        result = np.full(len(prompts), np.nan)
        for position, (whole, opening) in enumerate(shares):
            counted = count[whole] - (0 if opening is None else count[opening])
            if counted > 0:
                result[position] = (nll[whole] - (0.0 if opening is None else nll[opening])) / counted
        done(len(prompts))
        return result

    def _after_prefix(
        self, prompts: list[str], continuations: list[str], done: Callable[[int], Any] = int, *, less_prompt: bool
    ) -> Float[np.ndarray, " n"]:
        """Mean negative log-likelihoods with a causal judge; what the texts of a prompt share is read once."""
        texts = [prompt + text for prompt, text in zip(prompts, continuations, strict=True)]
        whole: list[list[int]] = self.tokenizer(texts)["input_ids"]
        owners = list(dict.fromkeys(prompts))
        prefixes = dict(zip(owners, self.tokenizer(owners)["input_ids"], strict=True))
        groups: dict[str, list[int]] = {}
        for position, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(position)
        # What is read once, by its length: the beginning that all texts of a prompt share, and what follows it.
        heads: dict[int, list[tuple[list[int], list[_Tail]]]] = {}
        for prompt, positions in groups.items():
            prefix = prefixes[prompt]
            # Tokens may merge across the boundary: what a text shares with its prompt counts as the prompt, at least
            # one token.
            starts = {position: max(1, common_prefix(prefix, whole[position])) for position in positions}
            shared = min(starts.values())
            together = len({tuple(whole[position][:shared]) for position in positions}) == 1
            # A tokenizer without a beginning-of-sequence token may not even have the first token in common.
            for part in [positions] if together else [[position] for position in positions]:
                begun = min(starts[position] for position in part)
                tails = [_Tail(position, whole[position][begun:], 0 if less_prompt else starts[position] - begun)
                         for position in part]  # fmt: skip
                if less_prompt and len(prefix) > begun:
                    tails.append(_Tail(None, prefix[begun:], 0))
                heads.setdefault(begun, []).append((whole[part[0]][:begun], tails))
        result = np.full(len(prompts), np.nan)
        for length, found in heads.items():
            for start in range(0, len(found), self.batch_size):
                self._score_tails(length, found[start : start + self.batch_size], result, done, less_prompt)
        return result

    def _score_tails(
        self, length: int, heads: list[tuple[list[int], list[_Tail]]], result: np.ndarray, done: Callable[[int], Any],
        less_prompt: bool,
    ) -> None:  # fmt: skip
        """Score what follows heads of one length, so that no head is padded."""
        ids = torch.tensor([head for head, _ in heads], device=self.model.device)  # (heads, length)
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        if not keeps_keys_and_values(output.past_key_values):
            raise TypeError("the cache is not one of keys and values")
        tails = [(number, tail) for number, (_, tails) in enumerate(heads) for tail in tails]
        prompt_nll = np.zeros(len(heads))
        prompt_tokens = np.full(len(heads), length)
        found: dict[int, tuple[int, float, int]] = {}
        for batch in by_length(tails, self.batch_size, lambda item: len(item[1].tokens)):
            owners = torch.tensor([number for number, _ in batch], device=self.model.device)
            targets = padded([tail.tokens for _, tail in batch], -100).to(self.model.device)  # (rows, width)
            counted = targets.clone()
            for row, (_, tail) in enumerate(batch):
                counted[row, : tail.start] = -100
            nll, count = self._after(output.logits[:, -1:], output.past_key_values, owners, targets, counted, length)
            for (number, tail), value, tokens in zip(batch, nll.tolist(), count.tolist(), strict=True):
                if tail.position is None:
                    prompt_nll[number], prompt_tokens[number] = value, length + tokens
                else:
                    found[tail.position] = (number, value, tokens)
        for position, (number, value, tokens) in found.items():
            if less_prompt:
                value, tokens = value - prompt_nll[number], length + tokens - prompt_tokens[number]
            result[position] = value / tokens if tokens > 0 else np.nan
        done(len(found))

    def _after(
        self, first: torch.Tensor, cache: Any, owners: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor,
        length: int, **inputs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Negative log-likelihood and number of the counted tokens of rows that continue cached beginnings.

        ``first`` (beginnings, 1, vocabulary) predicts each row's first token, ``owners`` (rows,) says which beginning a
        row continues.
        """
        nll, count = token_nll(first[owners], counted[:, :1])
        if targets.shape[1] == 1:
            return nll, count
        tokens = targets[:, :-1].clamp(min=0)
        # Padding is on the right, where no counted position looks at it, so a mask of ones is right for each row.
        if inputs:
            inputs = {"decoder_input_ids": tokens, **inputs}
        else:
            mask = torch.ones(len(owners), length + tokens.shape[1], dtype=torch.long, device=tokens.device)
            inputs = {"input_ids": tokens, "attention_mask": mask}
        logits = self.model(**inputs, past_key_values=rows_of(cache, owners), use_cache=False).logits
        nll_rest, count_rest = token_nll(logits, counted[:, 1:])
        return nll + nll_rest, count + count_rest

    # --- encoder-decoder judges ---------------------------------------------------------------------------------

    def _after_encoder(
        self, prompts: list[str], continuations: list[str], done: Callable[[int], Any]
    ) -> Float[np.ndarray, " n"]:
        """Mean negative log-likelihoods of what the decoder says after the encoder has read the prompt.

        Each prompt is encoded once, and its keys and values for the decoder's cross-attention are made once.
        """
        from transformers.modeling_outputs import BaseModelOutput

        targets = self.tokenizer([text.strip() for text in continuations])["input_ids"]
        owners = list(dict.fromkeys(prompts))
        groups: dict[str, list[int]] = {prompt: [] for prompt in owners}
        for position, prompt in enumerate(prompts):
            if self._fits(targets[position]):
                groups[prompt].append(position)
        owners = [prompt for prompt in owners if groups[prompt]]
        result = np.full(len(prompts), np.nan)
        if not owners:
            return result
        read = (last_tokens(ids, self._limit, self._opening) for ids in self.tokenizer(owners)["input_ids"])
        encoded = dict(zip(owners, read, strict=True))
        for bundle in by_length(owners, self.batch_size, lambda prompt: len(encoded[prompt])):
            ids = padded([encoded[prompt] for prompt in bundle], 0).to(self.model.device)
            mask = (padded([encoded[prompt] for prompt in bundle], -1) != -1).long().to(self.model.device)
            states = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            begin = torch.full((len(bundle), 1), self.model.config.decoder_start_token_id, device=ids.device)
            output = self.model(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask,
                                decoder_input_ids=begin, use_cache=True)  # fmt: skip
            rows = [(number, position) for number, prompt in enumerate(bundle) for position in groups[prompt]]
            for batch in by_length(rows, self.batch_size, lambda row: len(targets[row[1]])):
                owner = torch.tensor([number for number, _ in batch], device=ids.device)
                wanted = padded([targets[position] for _, position in batch], -100).to(ids.device)
                nll, count = self._after(
                    output.logits, output.past_key_values, owner, wanted, wanted, 1,
                    encoder_outputs=BaseModelOutput(last_hidden_state=states[owner]), attention_mask=mask[owner],
                )  # fmt: skip
                result[[position for _, position in batch]] = (nll / count).cpu().numpy()
            done(len(rows))
        return result

    def _fits(self, ids: Sequence[int]) -> bool:
        """Whether an encoder-decoder has positions for a text; mT5's are relative, and have no limit."""
        return self._limit is None or len(ids) <= self._limit

    def _whole_texts(
        self, prompts: list[str], continuations: list[str], done: Callable[[int], Any]
    ) -> Float[np.ndarray, " n"]:
        """Log-perplexities as published: encoder and decoder both have the whole text, and the prompt, once each."""
        texts = [prompt + text for prompt, text in zip(prompts, continuations, strict=True)]
        distinct = list(dict.fromkeys([*texts, *prompts]))
        tokens = dict(zip(distinct, self.tokenizer(distinct)["input_ids"], strict=True))
        distinct = [text for text in distinct if self._fits(tokens[text])]
        asked, losses = set(texts), dict[str, float]()
        for batch in by_length(distinct, self.batch_size, lambda text: len(tokens[text])):
            targets = padded([tokens[text] for text in batch], -100).to(self.model.device)  # (rows, width)
            mask = (targets != -100).long()
            logits = self.model(input_ids=targets.clamp(min=0), attention_mask=mask, labels=targets).logits
            nll, count = token_nll(logits, targets)
            losses |= dict(zip(batch, (nll / count * (count - 1)).tolist(), strict=True))
            done(len(set(batch) & asked))
        result = np.full(len(texts), np.nan)
        for position, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            added = len(tokens[text]) - len(tokens[prompt]) if text in losses and prompt in losses else 0
            result[position] = (losses[text] - losses[prompt]) / added if added > 0 else np.nan
        return result


class _Tail(NamedTuple):
    """What follows a head: which result it belongs to (None: the prompt itself), and from which token on it counts."""

    position: int | None
    tokens: list[int]
    start: int


def by_length(items: Sequence[Item], size: int, length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Batches of like length, the longest first: if one does not fit into memory, that shows at once."""
    ordered = sorted(items, key=length, reverse=True)
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def padded(rows: Sequence[Sequence[int]], value: int) -> Int[torch.Tensor, "rows width"]:
    """Rows of token ids as one tensor, padded on the right."""
    table = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return torch.from_numpy(table)


def rows_of(cache: Any, owners: Int[torch.Tensor, " rows"]) -> Any:
    """A cache whose row i is row ``owners[i]`` of ``cache``, which is left as it is."""
    chosen = copy.copy(cache)
    if hasattr(cache, "cross_attention_cache"):
        chosen.self_attention_cache = rows_of(cache.self_attention_cache, owners)
        chosen.cross_attention_cache = rows_of(cache.cross_attention_cache, owners)
        chosen.is_updated = dict(cache.is_updated)
        return chosen
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(owners)  # gives each copied layer new tensors
    return chosen


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the longest common beginning of two sequences."""
    length = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        length += 1
    return length
