"""Conditional perplexity of continuations under a judge model (Li et al. 2024, section 3.2).

The judge of the paper is mT5-XL; any causal or encoder-decoder checkpoint works. A prompt is read once and its cache
shared by its continuations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from polydetox.models.checkpoints import device, inference_dtype, load_causal_lm, load_tokenizer, use_threads

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
    """A checkpoint that tells how likely a continuation is after its prompt."""

    def __init__(self, weights: Path, dtype: str, batch_size: int = 64):
        from transformers import AutoConfig

        use_threads()
        self.batch_size = batch_size
        self.tokenizer = load_tokenizer(weights)
        if AutoConfig.from_pretrained(weights).is_encoder_decoder:
            from transformers import AutoModelForSeq2SeqLM

            self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(weights, dtype=inference_dtype(dtype))
            self.model = self.model.to(device()).eval()
            self._score = self._score_encoder_decoder
        else:
            self.model = load_causal_lm(weights, inference_dtype(dtype))
            self._score = self._score_causal

    def perplexities(self, prompts: Sequence[str], continuations: Sequence[str]) -> Float[np.ndarray, " n"]:
        """exp of the mean negative log-likelihood a token of each continuation; NaN for an empty one.

        Rows of one prompt should be neighbours: they then share its cache.
        """
        result = np.full(len(prompts), np.nan)
        groups: dict[str, list[int]] = {}
        for position, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
            if continuation.strip():
                groups.setdefault(prompt, []).append(position)
        with torch.inference_mode():
            for prompt, positions in tqdm(groups.items(), desc="perplexity", unit="prompt"):
                for start in range(0, len(positions), self.batch_size):
                    chunk = positions[start : start + self.batch_size]
                    nll, count = self._score(prompt, [continuations[position] for position in chunk])
                    result[chunk] = (nll / count).exp().cpu().numpy()
        return result

    def _score_causal(self, prompt: str, continuations: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        whole = [self.tokenizer(prompt + text)["input_ids"] for text in continuations]
        prefix = self.tokenizer(prompt)["input_ids"]
        # Tokens may merge across the boundary. What a row shares with its prompt counts as the prompt, at least one
        # token; what all rows share is read once.
        starts = [max(1, common_prefix(prefix, row)) for row in whole]
        shared = min(starts) if len({tuple(row[: min(starts)]) for row in whole}) == 1 else 0
        if shared == 0:  # a tokenizer without a beginning-of-sequence token, and not even the first token in common
            parts = [self._score_causal(prompt, [text]) for text in continuations]
            return torch.cat([nll for nll, _ in parts]), torch.cat([count for _, count in parts])
        width = max(len(row) for row in whole) - shared
        ids = torch.zeros((len(whole), width), dtype=torch.long)
        targets = torch.full((len(whole), width), -100)
        for number, (row, start) in enumerate(zip(whole, starts, strict=True)):
            ids[number, : len(row) - shared] = torch.tensor(row[shared:])
            targets[number, start - shared : len(row) - shared] = torch.tensor(row[start:])
        ids, targets = ids.to(self.model.device), targets.to(self.model.device)  # (rows, width)

        head = torch.tensor([whole[0][:shared]], device=self.model.device)
        output = self.model(input_ids=head, use_cache=True, logits_to_keep=1)
        first = output.logits[:, -1:].expand(len(whole), -1, -1)  # (rows, 1, vocabulary): predicts the first token
        if width == 1:
            return token_nll(first, targets)
        cache = output.past_key_values
        cache.batch_repeat_interleave(len(whole))
        # Padding is on the right, where no counted position looks at it, so a mask of ones is right for each row.
        mask = torch.ones(len(whole), shared + width - 1, dtype=torch.long, device=self.model.device)
        rest = self.model(input_ids=ids[:, :-1], attention_mask=mask, past_key_values=cache, use_cache=False).logits
        nll_first, count_first = token_nll(first, targets[:, :1])
        nll_rest, count_rest = token_nll(rest, targets[:, 1:])
        return nll_first + nll_rest, count_first + count_rest

    def _score_encoder_decoder(self, prompt: str, continuations: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.tokenizer([prompt], return_tensors="pt").to(self.model.device)
        encoded = self.model.get_encoder()(**inputs)
        encoded.last_hidden_state = encoded.last_hidden_state.expand(len(continuations), -1, -1)
        labels = self.tokenizer([text.strip() for text in continuations], return_tensors="pt", padding=True)
        targets = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100).to(self.model.device)
        mask = inputs["attention_mask"].expand(len(continuations), -1)
        return token_nll(self.model(encoder_outputs=encoded, attention_mask=mask, labels=targets).logits, targets)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the longest common beginning of two sequences."""
    length = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        length += 1
    return length
