"""The sampling distribution, as pure functions of tensors.

Tokens are sampled by inverse transform: one uniform number a token, fixed by the seed, the prompt's id, the sample and
the position. A continuation therefore does not depend on which other prompts share its batch, nor on whether the run
was interrupted in between; in bfloat16 this holds for the same batches only, since rounding differs between others and
often decides which token is sampled.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int

# A nucleus at top-p 0.8 mostly lies within the first so many tokens, and nearly always within the second; rows where
# it does not are sorted in full.
_NUCLEUS_GUESSES = (64, 512)

# Tokens of a block: the k largest logits lie in the k blocks with the largest maxima, which are quick to find.
_BLOCK = 64

# Logits that are worked on at once on a CPU.
_CHUNK = 1 << 19


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
    steering: Float[torch.Tensor, "rows vocabulary"] | None = None,
) -> Int[torch.Tensor, " rows"]:
    """Sample one token a row from the distribution that transformers' processors define.

    Temperature first, then top-k, then top-p: the smallest set of most probable tokens whose mass reaches ``top_p``
    (the token that crosses it is kept). Temperature 0 means greedy decoding. ``steering`` is added to the logits of the
    tokens that these cuts leave (:func:`steered`), as in DExperts; it takes a temperature above 0.
    """
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    # On a CPU a large vocabulary's logits are worked on in chunks that stay in its cache.
    rows = max(1, _CHUNK // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    if len(logits) > rows:
        chunks = [slice(start, start + rows) for start in range(0, len(logits), rows)]
        return torch.cat([sample(logits[chunk], uniform[chunk], temperature, top_p, top_k,
                                 steering[chunk] if steering is not None else None) for chunk in chunks])  # fmt: skip
    logits = logits.float() / temperature
    vocabulary = logits.shape[-1]
    steering = steering / temperature if steering is not None else None
    if top_k == 0 and top_p >= 1.0:
        return pick(steered(logits.softmax(dim=-1).double(), steering).cumsum(dim=-1), uniform)
    if top_k:
        # The mass that top-p cuts is that of the k tokens.
        values, tokens = largest(logits, min(top_k, vocabulary))
        return _pick_in_nucleus(values.softmax(dim=-1).double(), tokens, uniform, top_p, steering)

    # Without top-k, it is that of the whole vocabulary: exp(logit - largest) / total.
    greatest = logits.amax(dim=-1, keepdim=True)  # (rows, 1)
    total = (logits - greatest).exp_().sum(dim=-1, keepdim=True)
    chosen = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    open_rows = torch.arange(len(logits), device=logits.device)  # whose nucleus has not been found yet
    for width in (*_NUCLEUS_GUESSES, vocabulary):
        values, tokens = largest(logits, min(width, vocabulary))  # most probable first
        probabilities = ((values - greatest).exp() / total).double()
        found = probabilities.sum(dim=-1) >= (top_p if width < vocabulary else 0.0)
        if bool(found.all()):
            chosen[open_rows] = _pick_in_nucleus(probabilities, tokens, uniform, top_p, steering)
            break
        added = steering[found] if steering is not None else None
        chosen[open_rows[found]] = _pick_in_nucleus(probabilities[found], tokens[found], uniform[found], top_p, added)
        wide = ~found
        open_rows, logits, uniform = open_rows[wide], logits[wide], uniform[wide]
        greatest, total = greatest[wide], total[wide]
        steering = steering[wide] if steering is not None else None
    return chosen


def steered(
    probabilities: Float[torch.Tensor, "rows tokens"], steering: Float[torch.Tensor, "rows tokens"] | None
) -> Float[torch.Tensor, "rows tokens"]:
    """softmax(z) as softmax(z + steering) up to its scale, among the tokens that it does not exclude.

    In DExperts (Liu et al. 2021, section 2) ``steering`` is alpha * (expert's - anti-expert's logits), and only tokens
    of the base model's nucleus are candidates: the experts choose among what is fluent.
    """
    if steering is None:
        return probabilities
    added = steering.double().masked_fill(probabilities == 0.0, float("-inf"))
    return probabilities * (added - added.amax(dim=-1, keepdim=True)).exp()


def largest(
    logits: Float[torch.Tensor, "rows vocabulary"], width: int
) -> tuple[Float[torch.Tensor, "rows width"], Int[torch.Tensor, "rows width"]]:
    """The ``width`` largest logits of each row and their tokens, in descending order.

    Where the vocabulary is many times as large, only the blocks of tokens that can hold them are looked at.
    """
    rows, vocabulary = logits.shape
    blocks = vocabulary // _BLOCK
    if blocks < 4 * width or logits.device.type != "cpu":
        return logits.topk(width, dim=-1)
    body = logits[:, : blocks * _BLOCK].view(rows, blocks, _BLOCK)
    best = body.amax(dim=-1).topk(width, dim=-1, sorted=False).indices  # (rows, width)
    tokens = (best.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    rest = torch.arange(blocks * _BLOCK, vocabulary).expand(rows, -1)  # the tokens that fill no block
    tokens = torch.cat([tokens, rest], dim=-1)
    values, place = logits.gather(-1, tokens).topk(width, dim=-1)
    return values, tokens.gather(-1, place)


def _pick_in_nucleus(
    probabilities: Float[torch.Tensor, "rows width"],
    tokens: Int[torch.Tensor, "rows width"],
    uniform: Float[torch.Tensor, " rows"],
    top_p: float,
    steering: Float[torch.Tensor, "rows vocabulary"] | None = None,
) -> Int[torch.Tensor, " rows"]:
    """Sample from the nucleus of probabilities that are sorted in descending order."""
    before = probabilities.cumsum(dim=-1) - probabilities  # mass of the more probable tokens
    nucleus = torch.where(before < top_p, probabilities, 0.0)
    nucleus = steered(nucleus, steering.gather(-1, tokens) if steering is not None else None)
    return tokens.gather(-1, pick(nucleus.cumsum(dim=-1), uniform).unsqueeze(-1)).squeeze(-1)
