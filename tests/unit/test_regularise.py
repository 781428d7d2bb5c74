"""The mathematics of attribute control, against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from notebook_cells import run_cell
from polydetox.attribute_control.head import NadoForCausalLM, NadoHead
from polydetox.attribute_control.nado import target_log_probabilities
from tiny import FAMILIES, tiny_model

LOSSES = run_cell("regularise", "regularise-head-losses", torch=torch)
LOSSES |= run_cell("regularise", "regularise-model-losses", **LOSSES)
head_bce, consistency_loss, token_kl, regularised_loss = (
    LOSSES[name] for name in ("head_bce", "consistency_loss", "token_kl", "regularised_loss")
)
make_head = run_cell("regularise", "regularise-new-head", torch=torch, NadoHead=NadoHead)["make_head"]

VOCABULARY, LENGTH = 3, 4
TEXTS = list(itertools.product(range(VOCABULARY), repeat=LENGTH))


class Toy:
    """A language model over three tokens and texts of four, with an oracle, all of it enumerated."""

    def __init__(self, seed: int, allowed: set[tuple[int, ...]]):
        generator = torch.Generator().manual_seed(seed)
        self.allowed = allowed
        self.log_p = {
            prefix: torch.randn(VOCABULARY, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
            for length in range(LENGTH)
            for prefix in itertools.product(range(VOCABULARY), repeat=length)
        }

        self._p = {text: self._product(text) for text in TEXTS}
        self._values: dict[tuple[int, ...], float] = {}

    def _product(self, text: tuple[int, ...]) -> float:
        return math.exp(sum(float(self.log_p[text[:place]][token]) for place, token in enumerate(text)))

    def text(self, text: tuple[int, ...]) -> float:
        """p(y)."""
        return self._p[text]

    def value(self, prefix: tuple[int, ...]) -> float:
        """R(y<i) from its definition: the probability under p that a text that begins so satisfies the oracle."""
        if prefix not in self._values:
            begun = [text for text in TEXTS if text[: len(prefix)] == prefix]
            total = sum(self.text(text) for text in begun)
            self._values[prefix] = sum(self.text(text) for text in begun if text in self.allowed) / total
        return self._values[prefix]

    def log_q(self, prefix: tuple[int, ...]) -> torch.Tensor:
        """The token form, with a head that knows R."""
        values = torch.tensor([self.value((*prefix, token)) for token in range(VOCABULARY)], dtype=torch.float64)
        return target_log_probabilities(self.log_p[prefix], torch.logit(values))


@st.composite
def toys(draw) -> Toy:
    allowed = draw(st.sets(st.sampled_from(TEXTS), min_size=1))
    return Toy(draw(st.integers(0, 10_000)), allowed)


@settings(max_examples=30, deadline=None)
@given(toys())
def test_the_token_form_multiplies_out_to_the_target_and_never_leaves_the_constraint(toy):
    constant = toy.value(())
    log_q = {prefix: toy.log_q(prefix) for prefix in toy.log_p}
    for text in TEXTS:
        steps = [log_q[text[:place]][token] for place, token in enumerate(text)]
        product = math.exp(float(sum(steps))) if all(step.isfinite() for step in steps) else 0.0
        expected = toy.text(text) / constant if text in toy.allowed else 0.0
        assert product == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(toys())
def test_the_divergence_is_minus_log_r_and_the_sum_of_the_tokens_divergences(toy):
    constant = toy.value(())
    target = {text: toy.text(text) / constant for text in toy.allowed}
    whole = sum(q * (math.log(q) - math.log(toy.text(text))) for text, q in target.items())
    assert whole == pytest.approx(-math.log(constant), abs=1e-10)
    by_token = 0.0
    for prefix, log_p in toy.log_p.items():
        reached = sum(q for text, q in target.items() if text[: len(prefix)] == prefix)
        if reached:
            by_token += reached * float(token_kl(toy.log_q(prefix), log_p))
    assert by_token == pytest.approx(whole, abs=1e-10)


def test_the_divergences_by_hand():
    log_p, log_q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.75, 0.0]]).log()
    forward = 0.25 * math.log(0.5) + 0.75 * math.log(3)
    assert token_kl(log_q, log_p).item() == pytest.approx(forward)
    assert token_kl(log_p, log_p, "reverse").item() == pytest.approx(0.0)
    both = torch.tensor([[0.25, 0.5, 0.25]]).log()
    reverse = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert token_kl(both, log_p, "reverse").item() == pytest.approx(reverse)
    assert token_kl(log_q, log_p, "reverse").item() == math.inf


def test_the_exponent_and_a_prefix_without_hope():
    log_p = torch.tensor([0.5, 0.5]).log()
    head = torch.logit(torch.tensor([0.8, 0.2]))
    assert target_log_probabilities(log_p, head).exp().tolist() == pytest.approx([0.8, 0.2])
    squared = target_log_probabilities(log_p, head, alpha=2.0).exp()
    assert squared.tolist() == pytest.approx([0.64 / 0.68, 0.04 / 0.68])
    hopeless = target_log_probabilities(log_p, torch.full((2,), -math.inf))
    assert hopeless.tolist() == [-math.inf, -math.inf]


def test_an_exact_head_is_consistent_and_another_is_not():
    toy = Toy(3, {text for text in TEXTS if 2 not in text})
    prefixes = [prefix for prefix in toy.log_p if prefix and 2 not in prefix and len(prefix) < LENGTH]
    log_p = torch.stack([toy.log_p[prefix] for prefix in prefixes])
    head = torch.stack(
        [torch.logit(torch.tensor([toy.value((*prefix, v)) for v in range(3)], dtype=torch.float64), eps=1e-9)
         for prefix in prefixes]
    )  # fmt: skip
    own = torch.logit(torch.tensor([toy.value(prefix) for prefix in prefixes], dtype=torch.float64))
    assert consistency_loss(log_p, head, own).item() == pytest.approx(0.0, abs=1e-6)
    expected = 0.7
    off = consistency_loss(torch.tensor([[0.5, 0.5]]).log(), torch.logit(torch.tensor([[0.9, 0.5]])),
                           torch.logit(torch.tensor([0.4])))  # fmt: skip
    by_hand = expected * math.log(expected / 0.4) + 0.3 * math.log(0.3 / 0.6)
    assert off.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_head_loss_counts_the_positions_of_the_text_alone():
    logits = torch.logit(torch.tensor([[0.9, 0.5, 0.2], [0.4, 0.3, 0.7]]))
    mask = torch.tensor([[False, True, True], [True, True, False]])
    loss = head_bce(logits, torch.tensor([1.0, 0.0]), mask)
    terms = [-math.log(0.5), -math.log(0.2), -math.log(0.6), -math.log(0.7)]
    assert loss.item() == pytest.approx(sum(terms) / 4, rel=1e-5)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradients_of_the_regularised_loss(direction):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    tokens, weights = torch.tensor([0, 3, 2, 2]), torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64)

    log_q = target_log_probabilities(logits.log_softmax(-1), head).detach()

    def loss(given):
        log_p = given.log_softmax(-1)
        return regularised_loss(log_p, tokens, token_kl(log_q, log_p, direction), weights)

    assert torch.autograd.gradcheck(loss, (logits,))
    if direction == "forward":
        # d/dlogits of -log p(y) is p - 1[y]; of KL(q || p) with q held fixed it is p - q.
        gradient = torch.autograd.grad(loss(logits), logits)[0]
        p, one_hot = logits.softmax(-1), torch.nn.functional.one_hot(tokens, 5)
        by_hand = ((p - one_hot) + weights[:, None] * (p - log_q.exp())) / 4
        assert torch.allclose(gradient, by_hand)


def test_gradients_of_the_head_losses():
    generator = torch.Generator().manual_seed(2)
    head = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    prefix = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    log_p = torch.randn(4, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda a, b: consistency_loss(log_p, a, b), (head, prefix))
    mask, labels = torch.rand(4, 5, generator=generator) > 0.4, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: head_bce(a, labels, mask), (head,))


def test_the_losses_check_the_shapes_of_what_they_are_given():
    logits, labels, mask = torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3, dtype=torch.bool)
    log_p, tokens, lambdas = torch.zeros(4, 5), torch.zeros(4, dtype=torch.long), torch.zeros(4)
    for wrong in (
        lambda: head_bce(logits, labels, mask[:, :2]),
        lambda: consistency_loss(log_p, log_p, lambdas[:3]),
        lambda: token_kl(log_p, log_p[:, :4]),
        lambda: regularised_loss(log_p, lambdas, lambdas, lambdas),
    ):
        with pytest.raises(TypeCheckError):
            wrong()
    assert regularised_loss(log_p, tokens, lambdas, lambdas).item() == 0.0


# --- the head and the decoding model ----------------------------------------------------------------------------


def trained_head(model, kind: str):
    """A head with weights that say something."""
    head = make_head(model, kind, rank=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return head


@pytest.mark.parametrize("kind", ["full", "low-rank", "tied"])
def test_a_new_head_changes_nothing_and_one_token_is_the_gathered_vocabulary(kind, tmp_path):
    model = tiny_model("llama", 300)
    hidden, embedding = torch.randn(2, 5, 32), model.get_output_embeddings().weight
    new = make_head(model, kind, rank=4, prior=0.25)
    assert torch.allclose(new(hidden, embedding).sigmoid(), torch.tensor(0.25))
    head = trained_head(model, kind)
    tokens = torch.randint(300, (2, 5))
    everything = head(hidden, embedding)
    assert everything.std() > 0.1
    gathered = everything.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(head.of_tokens(hidden, tokens, embedding), gathered, atol=1e-5)
    head.save(tmp_path / "head", alpha=1.0)
    loaded = type(head).load(tmp_path / "head")
    assert torch.equal(loaded(hidden, embedding), everything)


@pytest.mark.parametrize("separate", [False, True], ids=["own backbone", "separate backbone"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoding_model_gives_log_q_with_and_without_a_cache(family, separate, tmp_path):
    from transformers import AutoModelForCausalLM

    model, other = tiny_model(family, 300), tiny_model(family, 300, seed=1)
    head = trained_head(model, "low-rank")
    ids = torch.randint(3, 300, (2, 7))
    with torch.inference_mode():
        backbone = other if separate else model
        hidden = backbone(ids, output_hidden_states=True).hidden_states[-1]
        log_p = model(ids).logits.log_softmax(-1)
        expected = target_log_probabilities(log_p, head(hidden, model.get_output_embeddings().weight), alpha=1.5)
    nado = NadoForCausalLM.assemble(model, head, 1.5, other.base_model if separate else None)
    nado.save_pretrained(tmp_path / "nado")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "nado").eval()
    with torch.inference_mode():
        for decoder in (nado, loaded):
            assert torch.allclose(decoder(ids).logits, expected, atol=1e-4)
        cache, steps = None, []
        for place in range(ids.shape[1]):
            output = loaded(ids[:, place : place + 1], attention_mask=torch.ones(2, place + 1, dtype=torch.long),
                            past_key_values=cache, use_cache=True)  # fmt: skip
            cache = output.past_key_values
            steps.append(output.logits)
    assert torch.allclose(torch.cat(steps, dim=1), expected, atol=1e-4)
    greedy = loaded.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    with torch.inference_mode():
        for place in range(7, 11):
            assert torch.equal(loaded(greedy[:, :place]).logits[:, -1].argmax(-1), greedy[:, place])
