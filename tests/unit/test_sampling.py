"""The sampling distribution, against transformers' own processors and by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from polydetox.generation import sampling


def reference(logits, temperature, top_p, top_k):
    """The distribution that transformers' processors define, in generate's order."""
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(dim=-1)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(0.9, 0.8, 0), (1.0, 1.0, 0), (0.7, 0.95, 5), (1.5, 0.3, 0), (1.0, 1.0, 3)]
)
def test_distribution_is_that_of_transformers(temperature, top_p, top_k):
    """A fine grid of uniforms turns the inverse transform into the distribution itself."""
    torch.manual_seed(0)
    logits = torch.randn(1, 40) * 3
    grid = 4000
    uniform = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    tokens = sampling.sample(logits.expand(grid, -1), uniform, temperature, top_p, top_k)
    share = torch.bincount(tokens, minlength=40) / grid
    assert torch.allclose(share, reference(logits, temperature, top_p, top_k)[0], atol=2e-3)


def test_experts_reweigh_the_base_models_nucleus_by_hand():
    """Probabilities 0.5, 0.3 and 0.2 and a nucleus of 0.7: the third stays out, whatever the experts make of it."""
    logits, expert, anti = torch.tensor([[0.5, 0.3, 0.2], [2.0, 1.0, 8.0], [1.0, 0.5, 1.0]]).unsqueeze(1)
    logits, alpha, temperature = logits.log(), 0.5, 2.0
    steering = alpha * (expert - anti)  # 0.5, 0.25, 3.5
    grid = 4000
    uniform = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid

    def fractions(top_p, top_k=0):
        tokens = sampling.sample((logits * temperature).expand(grid, -1), uniform, temperature, top_p, top_k,
                                 steering.expand(grid, -1))  # fmt: skip
        return (torch.bincount(tokens, minlength=3) / grid).tolist()

    # By hand: 0.5 exp(0.5 / 2) and 0.3 exp(0.25 / 2), of their sum; with all three, 0.2 exp(3.5 / 2) as well.
    first, second, third = 0.5 * 1.284025, 0.3 * 1.133148, 0.2 * 5.754603
    two, three = first + second, first + second + third
    assert fractions(0.7) == pytest.approx([first / two, second / two, 0.0], abs=1e-3)
    assert fractions(1.0, top_k=2) == pytest.approx([first / two, second / two, 0.0], abs=1e-3)
    assert fractions(1.0) == pytest.approx([first / three, second / three, third / three], abs=1e-3)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.8, 0), (1.0, 0), (0.9, 7)])
def test_experts_that_agree_change_no_token(monkeypatch, top_p, top_k):
    """In chunks, and with nuclei of every width."""
    torch.manual_seed(4)
    logits = torch.randn(60, 3000) * torch.linspace(0.1, 6, 60).unsqueeze(-1)
    uniform = torch.rand(60, dtype=torch.float64)
    plain = sampling.sample(logits, uniform, 0.9, top_p, top_k)
    monkeypatch.setattr(sampling, "_CHUNK", 3000 * 16)
    assert torch.equal(sampling.sample(logits, uniform, 0.9, top_p, top_k, torch.zeros_like(logits)), plain)
    huge = torch.randn_like(logits) * 1e6  # beyond what exp can hold
    steered = sampling.sample(logits, uniform, 0.9, top_p, top_k, huge)
    kept = torch.stack([reference(row[None], 0.9, top_p, top_k)[0] > 0 for row in logits])
    assert torch.equal(steered, huge.masked_fill(~kept, float("-inf")).argmax(dim=-1))


def test_a_nucleus_wider_than_the_guess_is_sorted_in_full(monkeypatch):
    torch.manual_seed(1)
    logits = torch.randn(6, 200) * torch.tensor([[0.01], [0.1], [1.0], [3.0], [5.0], [0.5]])
    uniform = torch.rand(6, dtype=torch.float64)
    whole = sampling.sample(logits, uniform, 1.0, 0.9)
    monkeypatch.setattr(sampling, "_NUCLEUS_GUESSES", (2, 8))
    assert torch.equal(sampling.sample(logits, uniform, 1.0, 0.9), whole)


def test_the_largest_logits_are_found_in_blocks():
    torch.manual_seed(2)
    logits = torch.randn(5, 64 * 40 + 17)
    logits[0, 100:130] += 9.0  # many in two neighbouring blocks
    logits[1, -3:] += 9.0  # in the tokens that fill no block
    values, tokens = sampling.largest(logits, 10)
    assert torch.equal(values, logits.topk(10).values) and torch.equal(logits.gather(-1, tokens), values)


def test_a_large_vocabulary_has_the_distribution_of_transformers():
    torch.manual_seed(3)
    logits = torch.randn(1, 20_000) * 2
    expected = reference(logits, 0.9, 0.8, 0)[0].double()
    order = expected.argsort(descending=True)
    # The middle of each token's stretch of the cumulative distribution, and of none outside the nucleus.
    kept = order[expected[order] > 0]
    edges = expected[order].cumsum(0)[: len(kept)]
    uniform = edges - expected[kept] / 2
    drawn = sampling.sample(logits.expand(len(kept), -1), uniform, 0.9, 0.8)
    assert len(kept) > 512 and torch.equal(drawn, kept)


def test_by_hand():
    # Probabilities 0.5, 0.3, 0.2; top-p 0.6 keeps the first two, renormalised to 0.625 and 0.375.
    logits = torch.log(torch.tensor([[0.3, 0.5, 0.2]])).expand(4, -1)
    uniform = torch.tensor([0.0, 0.62, 0.63, 0.999999], dtype=torch.float64)
    assert sampling.sample(logits, uniform, 1.0, 0.6).tolist() == [1, 1, 0, 0]
    assert sampling.sample(logits, uniform, 0.0, 1.0).tolist() == [1, 1, 1, 1]


def test_zero_probability_is_never_drawn():
    logits = torch.tensor([[0.0, float("-inf"), 0.0, float("-inf")]]).expand(1001, -1)
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for top_p in (1.0, 0.9):
        assert set(sampling.sample(logits, uniform, 1.0, top_p).tolist()) <= {0, 2}


def test_seeds_are_the_prompts_own():
    assert sampling.prompt_seed(0, "a") != sampling.prompt_seed(0, "b") != sampling.prompt_seed(1, "b")
    assert torch.equal(sampling.uniforms(0, "a", 3, 5), sampling.uniforms(0, "a", 3, 5))
    assert not torch.equal(sampling.uniforms(0, "a", 3, 5), sampling.uniforms(1, "a", 3, 5))
