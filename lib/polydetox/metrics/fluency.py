"""Conditional perplexity of continuations under a reference model (Li et al. 2024, section 3.2).

The paper's is mT5-XL; any causal or encoder-decoder checkpoint works. Continuations are read in batches of like length;
what belongs to a prompt is computed once for all its continuations.
"""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
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

# Logits that are turned into probabilities at once: a chunk stays in a CPU's cache.
_CHUNK = 1 << 19


def token_nll(
    logits: Float[torch.Tensor, "rows tokens vocabulary"], targets: Int[torch.Tensor, "rows tokens"]
) -> tuple[Float[torch.Tensor, " rows"], Int[torch.Tensor, " rows"]]:
    """Each row's summed negative log-likelihood (nats) and its number of targets; -100 marks padding."""
    flat = logits.flatten(0, 1)  # (rows * tokens, vocabulary)
    chosen = targets.clamp(min=0).flatten().unsqueeze(-1)
    size = max(1, _CHUNK // flat.shape[-1])
    chunks = zip(flat.split(size), chosen.split(size), strict=True)
    nll = torch.cat([
        chunk.float().logsumexp(dim=-1) - chunk.gather(-1, target).squeeze(-1).float() for chunk, target in chunks
    ])  # fmt: skip
    counted = targets != -100
    return (nll.view_as(targets) * counted).sum(dim=-1), counted.sum(dim=-1)


class _Text(NamedTuple):
    """A text for a causal model: which of its tokens others begin with too, and from which one on they count."""

    tokens: list[int]
    head: int  # 0: it is read whole, by itself
    start: int


class ReferenceModel:
    """A checkpoint that tells how likely a continuation is after its prompt.

    Args:
        weights: a causal or an encoder-decoder checkpoint.
        dtype: of the weights where there is a GPU.
        batch_size: continuations a forward pass.
        method: ``conditional``, the likelihood of the continuation's tokens after its prompt, which an encoder reads
            where there is one; or ``published``, what the code of Li et al. computes: the likelihood of the whole text
            less that of the prompt. With a causal model the two are the same wherever the prompt's tokens begin the
            whole text's. With an encoder-decoder they are not: the published code lets the encoder read the whole
            text, continuation included, and takes of T tokens the mean loss times T - 1.
    """

    def __init__(self, weights: Path, dtype: str, batch_size: int = 64, method: str = "conditional"):
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        self.batch_size = batch_size
        configuration = AutoConfig.from_pretrained(weights)
        self._limit = context_length(configuration) or sys.maxsize  # mT5's positions are relative, and have no limit
        self._published = method == "published"
        self._progress = tqdm(disable=True)
        self.tokenizer = load_tokenizer(weights, closing=configuration.is_encoder_decoder)
        self._opening, _ = affixes(self.tokenizer)
        if configuration.is_encoder_decoder:
            model = AutoModelForSeq2SeqLM.from_pretrained(weights, dtype=inference_dtype(dtype))
            self.model: Any = model.to(device()).eval()
            self._log_perplexities = self._whole_texts if self._published else self._after_encoder
        else:
            self.model = load_causal_lm(weights, inference_dtype(dtype))
            self._log_perplexities = self._causal
            self.way = self._exact_way()

    def perplexities(self, prompts: Sequence[str], continuations: Sequence[str]) -> Float[np.ndarray, " n"]:
        """exp of the mean negative log-likelihood a token of each continuation; NaN for an empty one.

        A prompt is read once for all its continuations, wherever they are. NaN also where a published perplexity is
        not defined: the continuation adds no token to its prompt's.
        """
        result = np.full(len(prompts), np.nan)
        rows = [position for position, text in enumerate(continuations) if text.strip()]
        if rows:
            bar = tqdm(total=len(rows), desc="perplexity", unit="text")
            with torch.inference_mode(), np.errstate(over="ignore"), bar as self._progress:
                found = self._log_perplexities([prompts[row] for row in rows], [continuations[row] for row in rows])
                result[rows] = np.exp(found)
        return result

    # --- causal models ------------------------------------------------------------------------------------------

    def _exact_way(self) -> str:
        """How texts are read: what a prompt's have in common once, where that is exact for this model, else each whole.

        It is tried on a few texts, in batches with padding.
        """
        prompts = ["The weather in the mountains", "One", "One", "One or two of them"]
        texts, _ = self._texts(prompts, [" is good again", " a", " of the others is", " say so"], published=False)

        def means(read: Callable[..., Any], chosen: list[_Text]) -> Float[np.ndarray, " texts"]:
            with torch.inference_mode():
                return read(chosen) / [len(text.tokens) - text.start for text in chosen]

        alone = np.concatenate([means(self._each_whole, [text]) for text in texts])
        ways = {
            "in padded batches": lambda: float(np.abs(means(self._after_heads, texts) - alone).max()),
            "text by text": lambda: float(np.abs(means(self._each_whole, texts) - alone).max()),
        }
        return first_exact(self.model, "perplexity", ways, texts[0].tokens)

    def _causal(self, prompts: list[str], continuations: list[str]) -> Float[np.ndarray, " n"]:
        """Mean negative log-likelihoods with a causal model; a text of more tokens than its positions is read alone."""
        texts, of_prompt = self._texts(prompts, continuations, published=self._published)
        self._progress.reset(total=len(texts))
        nll, count = np.zeros(len(texts)), np.array([max(0, len(text.tokens) - text.start) for text in texts])
        shared = np.array([text.head > 0 and self.way == "in padded batches" for text in texts])
        for chosen, read in ((shared, self._after_heads), (~shared, self._each_whole)):
            if chosen.any():
                nll[chosen] = read([texts[number] for number in np.flatnonzero(chosen)])
        nll, count = (each[: len(prompts)] - np.append(each, 0)[of_prompt] for each in (nll, count))
        return np.divide(nll, count, out=np.full(len(prompts), np.nan), where=count > 0)

    def _texts(
        self, prompts: list[str], continuations: list[str], *, published: bool
    ) -> tuple[list[_Text], Int[np.ndarray, " n"]]:
        """The texts to read: of each continuation, then prompts; and which one is each continuation's (-1: none).

        Of a text of more tokens than the model has positions the last ones are read, and none count where these hold
        no token of the prompt. A published perplexity is then the conditional one.
        """
        joined = [prompt + text for prompt, text in zip(prompts, continuations, strict=True)]
        whole, owners = self.tokenizer(joined)["input_ids"], list(dict.fromkeys(prompts))
        prefixes = dict(zip(owners, self.tokenizer(owners)["input_ids"], strict=True))
        # Tokens may merge across the boundary: what a text has in common with its prompt counts as the prompt, at
        # least one token, as the first has no likelihood.
        starts = [max(1, common_prefix(prefixes[prompt], ids)) for prompt, ids in zip(prompts, whole, strict=True)]
        cuts = [len(ids) - len(last_tokens(ids, self._limit, self._opening)) for ids in whole]
        heads: dict[str, int] = {}
        for prompt, start, cut in zip(prompts, starts, cuts, strict=True):
            if not cut:
                heads[prompt] = min(start, heads.get(prompt, start))
        texts = []
        for prompt, ids, start, cut in zip(prompts, whole, starts, cuts, strict=True):
            if cut:
                read = last_tokens(ids, self._limit, self._opening)
                texts.append(_Text(read, 0, start - cut if start > cut else len(read)))
            else:
                texts.append(_Text(ids, heads[prompt], heads[prompt] if published else start))
        places = {prompt: len(texts) + number for number, prompt in enumerate(heads if published else ())}
        texts += [_Text(prefixes[prompt], heads[prompt], heads[prompt]) for prompt in places]
        of_prompt = [-1 if cut else places.get(prompt, -1) for prompt, cut in zip(prompts, cuts, strict=True)]
        return texts, np.array(of_prompt)

    def _each_whole(self, texts: list[_Text]) -> Float[np.ndarray, " texts"]:
        """Negative log-likelihoods of whole texts, those of one length together, so that nothing is padded."""
        nll, by_size = np.zeros(len(texts)), defaultdict(list)
        for number, text in enumerate(texts):
            by_size[len(text.tokens)].append(number)
        for length in sorted(by_size.keys() - {1}, reverse=True):
            for batch in by_length(by_size[length], self.batch_size, lambda _: 0):
                ids = torch.tensor([texts[number].tokens for number in batch], device=self.model.device)
                logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
                counted = self._counted(ids, [texts[number].start for number in batch])  # (rows, length)
                nll[batch] = token_nll(logits[:, :-1], counted[:, 1:])[0].cpu().numpy()
                self._progress.update(len(batch))
        return nll

    def _after_heads(self, texts: list[_Text]) -> Float[np.ndarray, " texts"]:
        """Negative log-likelihoods of texts whose heads are read once; heads of one length together, not padded."""
        nll = np.zeros(len(texts))
        owned: dict[int, dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, text in enumerate(texts):
            if len(text.tokens) > text.head:
                owned[text.head][tuple(text.tokens[: text.head])].append(number)
        for length, numbers in owned.items():
            for heads in by_length(list(numbers), self.batch_size, len):
                ids = torch.tensor(heads, device=self.model.device)  # (heads, length)
                output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
                if not keeps_keys_and_values(output.past_key_values):
                    raise TypeError("the cache is not one of keys and values")
                tails = [(owner, number) for owner, head in enumerate(heads) for number in numbers[head]]
                for batch in by_length(tails, self.batch_size, lambda tail: len(texts[tail[1]].tokens)):
                    chosen = [texts[number] for _, number in batch]
                    targets = padded([text.tokens[length:] for text in chosen], -100).to(ids.device)  # (rows, width)
                    counted = self._counted(targets, [text.start - length for text in chosen])
                    mask = torch.ones(len(batch), length + targets.shape[1] - 1, dtype=torch.long, device=ids.device)
                    owners = torch.tensor([owner for owner, _ in batch], device=ids.device)
                    found, _ = self._after(output, owners, targets, counted, "input_ids", attention_mask=mask)
                    nll[[number for _, number in batch]] = found.cpu().numpy()
                    self._progress.update(len(batch))
        return nll

    @staticmethod
    def _counted(targets: Int[torch.Tensor, "rows width"], starts: Sequence[int]) -> Int[torch.Tensor, "rows width"]:
        """Targets of which those before each row's start do not count."""
        places = torch.arange(targets.shape[1], device=targets.device)
        return targets.masked_fill(places < torch.tensor(starts, device=targets.device).unsqueeze(1), -100)

    def _after(
        self, output: Any, owners: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor, name: str, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood and number of the counted tokens of rows that continue beginnings.

        ``output`` is of the beginnings, with their cache; its last logits predict each row's first token. ``owners``
        (rows,) says which one a row continues, ``name`` which of the model's inputs its tokens are.
        """
        nll, count = token_nll(output.logits[owners, -1:], counted[:, :1])
        if targets.shape[1] == 1:
            return nll, count
        # Padding is on the right, where no counted position looks at it, so a mask of ones is right for each row.
        inputs |= {name: targets[:, :-1].clamp(min=0), "past_key_values": rows_of(output.past_key_values, owners)}
        rest, of_rest = token_nll(self.model(**inputs, use_cache=False).logits, counted[:, 1:])
        return nll + rest, count + of_rest

    # --- encoder-decoders ---------------------------------------------------------------------------------------

    def _after_encoder(self, prompts: list[str], continuations: list[str]) -> Float[np.ndarray, " n"]:
        """Mean negative log-likelihoods of what the decoder says after the encoder has read the prompt.

        Each prompt is encoded once, and its keys and values for the decoder's cross-attention are made once.
        """
        from transformers.modeling_outputs import BaseModelOutput

        targets = self.tokenizer([text.strip() for text in continuations])["input_ids"]
        owned = defaultdict(list)
        for position, prompt in enumerate(prompts):
            if len(targets[position]) <= self._limit:
                owned[prompt].append(position)
        result = np.full(len(prompts), np.nan)
        owners = list(owned)
        read = self.tokenizer(owners)["input_ids"] if owners else []
        encoded = {
            prompt: last_tokens(ids, self._limit, self._opening) for prompt, ids in zip(owners, read, strict=True)
        }
        for bundle in by_length(owners, self.batch_size, lambda prompt: len(encoded[prompt])):
            ids = padded([encoded[prompt] for prompt in bundle], -1).to(self.model.device)
            mask = (ids != -1).long()
            states = self.model.get_encoder()(input_ids=ids.clamp(min=0), attention_mask=mask).last_hidden_state
            begin = torch.full((len(bundle), 1), self.model.config.decoder_start_token_id, device=ids.device)
            output = self.model(encoder_outputs=BaseModelOutput(last_hidden_state=states), attention_mask=mask,
                                decoder_input_ids=begin, use_cache=True)  # fmt: skip
            rows = [(number, position) for number, prompt in enumerate(bundle) for position in owned[prompt]]
            for batch in by_length(rows, self.batch_size, lambda row: len(targets[row[1]])):
                owner = torch.tensor([number for number, _ in batch], device=ids.device)
                wanted = padded([targets[position] for _, position in batch], -100).to(ids.device)
                nll, count = self._after(
                    output, owner, wanted, wanted, "decoder_input_ids",
                    encoder_outputs=BaseModelOutput(last_hidden_state=states[owner]), attention_mask=mask[owner],
                )  # fmt: skip
                result[[position for _, position in batch]] = (nll / count).cpu().numpy()
                self._progress.update(len(batch))
        return result

    def _whole_texts(self, prompts: list[str], continuations: list[str]) -> Float[np.ndarray, " n"]:
        """Log-perplexities as published: encoder and decoder both have the whole text, and the prompt, once each."""
        texts = [prompt + text for prompt, text in zip(prompts, continuations, strict=True)]
        distinct = list(dict.fromkeys([*texts, *prompts]))
        tokens = dict(zip(distinct, self.tokenizer(distinct)["input_ids"], strict=True))
        distinct = [text for text in distinct if len(tokens[text]) <= self._limit]
        losses = dict.fromkeys(tokens, np.nan)
        self._progress.reset(total=len(distinct))
        for batch in by_length(distinct, self.batch_size, lambda text: len(tokens[text])):
            targets = padded([tokens[text] for text in batch], -100).to(self.model.device)  # (rows, width)
            mask = (targets != -100).long()
            logits = self.model(input_ids=targets.clamp(min=0), attention_mask=mask, labels=targets).logits
            nll, count = token_nll(logits, targets)
            losses |= dict(zip(batch, (nll / count * (count - 1)).tolist(), strict=True))
            self._progress.update(len(batch))
        added = np.array([len(tokens[text]) - len(tokens[prompt]) for text, prompt in zip(texts, prompts, strict=True)])
        loss = np.array([losses[text] - losses[prompt] for text, prompt in zip(texts, prompts, strict=True)])
        return np.divide(loss, added, out=np.full(len(texts), np.nan), where=added > 0)


def by_length(items: Sequence[Item], size: int, length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Batches of like length, the longest first: if one does not fit into memory, that shows at once."""
    ordered = sorted(items, key=length, reverse=True)
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def padded(rows: Sequence[Sequence[int]], value: int) -> Int[torch.Tensor, "rows width"]:
    """Rows of token ids as one tensor, padded on the right."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def rows_of(cache: Any, owners: Int[torch.Tensor, " rows"]) -> Any:
    """A cache whose row i is row ``owners[i]`` of ``cache``, which is left as it is."""
    chosen = copy.deepcopy(cache)
    chosen.batch_select_indices(owners)
    return chosen


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the longest common beginning of two sequences."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
