"""The sampling distribution, as pure functions of tensors.

Tokens are drawn by inverse transform: one uniform number a token, fixed by the seed, the prompt's id, the sample and
the position. A continuation therefore does not depend on which other prompts share its batch, nor on whether the run
was interrupted in between.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int

# A nucleus at top-p 0.8 nearly always lies within so many tokens; rows where it does not are sorted in full.
_NUCLEUS_GUESS = 256

# Logits that are worked on at once on a CPU.
_PIECE = 1 << 19


def prompt_seed(seed: int, prompt_id: str) -> int:
    """A seed of its own for each prompt: 63 bits of a hash of the run's seed and the prompt's id."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def uniforms(seed: int, prompt_id: str, n: int, max_new_tokens: int) -> Float[torch.Tensor, "n tokens"]:
    """Uniform numbers in [0, 1) for ``n`` continuations of one prompt."""
    generator = torch.Generator().manual_seed(prompt_seed(seed, prompt_id))
    return torch.rand(n, max_new_tokens, generator=generator, dtype=torch.float64)


def pick(
    cumulative: Float[torch.Tensor, "rows tokens"], uniform: Float[torch.Tensor, " rows"]
) -> Int[torch.Tensor, " rows"]:
    """Inverse transform: the first position whose cumulative probability exceeds ``uniform`` times the total."""
    total = cumulative[:, -1:].contiguous()  # (rows, 1)
    position = torch.searchsorted(cumulative, uniform.to(cumulative).unsqueeze(-1) * total, right=True).squeeze(-1)
    # Rounding may put the threshold on the total itself; the last token with any probability is then meant.
    last = torch.searchsorted(cumulative, total).squeeze(-1)
    return torch.minimum(position, last)


def sample(
    logits: Float[torch.Tensor, "rows vocabulary"],
    uniform: Float[torch.Tensor, " rows"],
    temperature: float,
    top_p: float,
    top_k: int = 0,
) -> Int[torch.Tensor, " rows"]:
    """Draw one token a row from the distribution that transformers' processors define.

    Temperature first, then top-k, then top-p: the smallest set of most probable tokens whose mass reaches ``top_p``
    (the token that crosses it is kept). Temperature 0 means greedy decoding.
    """
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    # On a CPU a large vocabulary's logits are worked on in pieces that stay in its cache.
    rows = max(1, _PIECE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    pieces = zip(logits.split(rows), uniform.split(rows), strict=True)
    return torch.cat([_sample(piece, part, temperature, top_p, top_k) for piece, part in pieces])


def _sample(
    logits: Float[torch.Tensor, "rows vocabulary"],
    uniform: Float[torch.Tensor, " rows"],
    temperature: float,
    top_p: float,
    top_k: int,
) -> Int[torch.Tensor, " rows"]:
    logits = logits.float() / temperature
    vocabulary = logits.shape[-1]
    if top_k == 0 and top_p >= 1.0:
        return pick(logits.softmax(dim=-1).double().cumsum(dim=-1), uniform)

    width = min(top_k or _NUCLEUS_GUESS, vocabulary)
    values, tokens = logits.topk(width, dim=-1)  # (rows, width), most probable first
    # With top-k, the mass that top-p cuts is that of the k tokens; without it, of the whole vocabulary.
    total = values.logsumexp(-1, keepdim=True) if top_k else logits.logsumexp(-1, keepdim=True)
    chosen = _pick_in_nucleus((values - total).exp().double(), tokens, uniform, top_p)
    if not top_k and width < vocabulary:
        wide = (values - total).exp().double().sum(dim=-1) < top_p
        if wide.any():
            ordered, tokens = logits[wide].sort(dim=-1, descending=True)
            probabilities = (ordered - total[wide]).exp().double()
            chosen[wide] = _pick_in_nucleus(probabilities, tokens, uniform[wide], top_p)
    return chosen


def _pick_in_nucleus(
    probabilities: Float[torch.Tensor, "rows width"],
    tokens: Int[torch.Tensor, "rows width"],
    uniform: Float[torch.Tensor, " rows"],
    top_p: float,
) -> Int[torch.Tensor, " rows"]:
    """Draw from the nucleus of probabilities that are sorted in descending order."""
    before = probabilities.cumsum(dim=-1) - probabilities  # mass of the more probable tokens
    nucleus = torch.where(before < top_p, probabilities, 0.0)
    return tokens.gather(-1, pick(nucleus.cumsum(dim=-1), uniform).unsqueeze(-1)).squeeze(-1)
