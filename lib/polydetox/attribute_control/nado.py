"""The mathematics of neurally-decomposed oracles and of the regulariser, as pure functions of tensors.

An oracle C(x, y) in {0, 1} says whether a text y that follows a prompt x satisfies a constraint. Under a language model
p, R(x, y<i) is the probability that the text still will, once it begins with y<i. The nearest distribution to p in
which every text satisfies the constraint is q*(y|x) = p(y|x) C(x, y) / R(x, empty), and token by token

    q*(v | x, y<i) = p(v | x, y<i) R(x, y<i + v) / R(x, y<i)                         (Meng et al. 2022, eq. 3)

A head R_phi gives a logit for every token v of the vocabulary at every position: sigmoid(logit) estimates
R(x, y<i + v).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus


def target_log_probabilities(
    log_p: Float[torch.Tensor, "*positions vocabulary"],
    head_logits: Float[torch.Tensor, "*positions vocabulary"],
    alpha: float = 1.0,
) -> Float[torch.Tensor, "*positions vocabulary"]:
    """log q(v) = log p(v) + alpha log R(v), normalised over the vocabulary (Meng et al. 2022, eq. 3).

    R of the prefix cancels in the normalisation, so it is not needed, and there is no 0/0. ``log_p`` need not be
    normalised. Where no token has any probability left, which no prefix that q itself can draw leads to, all are -inf.
    """
    scores = torch.add(log_p, logsigmoid(head_logits), alpha=alpha)
    log_q = scores.log_softmax(dim=-1)
    # Of a row without any probability every entry is NaN now; a look at the first tells, in place of a pass over all.
    suspect = scores[..., :1].isneginf() & log_q[..., :1].isnan()
    if not bool(suspect.any()):
        return log_q
    return log_q.masked_fill(scores.isneginf().all(dim=-1, keepdim=True), -torch.inf)  # but no other NaN is hidden


def token_kl(
    log_q: Float[torch.Tensor, "*positions vocabulary"],
    log_p: Float[torch.Tensor, "*positions vocabulary"],
    direction: str = "forward",
) -> Float[torch.Tensor, "*positions"]:
    """KL(q || p) (``forward``) or KL(p || q) (``reverse``) at each position, in nats, over the whole vocabulary.

    A token that the first distribution never draws adds nothing, whatever the second says (0 log 0 = 0).
    """
    first, second = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    difference = first - second
    never = first.isneginf()
    if bool(never.any()):
        difference = torch.where(never, 0.0, difference)
    return (first.exp() * difference).sum(dim=-1)


def head_bce(
    chosen_logits: Float[torch.Tensor, "texts positions"],
    labels: Float[torch.Tensor, " texts"],
    mask: Bool[torch.Tensor, "texts positions"],
) -> Float[torch.Tensor, ""]:
    """Binary cross-entropy of R_phi(x, y<=i) against C(x, y), mean over all positions i (Meng et al. 2022, eq. 6).

    ``chosen_logits`` are the head's for the token that each text has next; ``mask`` marks the positions of y.
    """
    expanded = labels.unsqueeze(-1).expand_as(chosen_logits)
    return binary_cross_entropy_with_logits(chosen_logits[mask], expanded[mask])


def consistency_loss(
    log_p: Float[torch.Tensor, "positions vocabulary"],
    head_logits: Float[torch.Tensor, "positions vocabulary"],
    prefix_logits: Float[torch.Tensor, " positions"],
) -> Float[torch.Tensor, ""]:
    """How far sum_v p(v | y<i) R_phi(y<i + v) is from R_phi(y<i), mean over positions (Meng et al. 2022, eq. 7).

    The KL from the Bernoulli distribution of the former to that of the latter; both are trained.
    ``prefix_logits`` is what the head said of the last token of y<i, one position earlier.
    """
    expected = (log_p.exp() * head_logits.sigmoid()).sum(dim=-1).clamp(1e-6, 1 - 1e-6)  # (positions,)
    entropy = -torch.special.entr(expected) - torch.special.entr(1 - expected)
    # log sigmoid(z) = -softplus(-z), log(1 - sigmoid(z)) = -softplus(z)
    cross = expected * softplus(-prefix_logits) + (1 - expected) * softplus(prefix_logits)
    return (entropy + cross).mean()


def regularised_loss(
    log_p: Float[torch.Tensor, "positions vocabulary"],
    tokens: Int[torch.Tensor, " positions"],
    kl: Float[torch.Tensor, " positions"],
    weights: Float[torch.Tensor, " positions"],
) -> Float[torch.Tensor, ""]:
    """mean over positions of -log p(y_i | y<i) + lambda_i KL_i (Meng et al. 2024, section 3).

    ``weights`` is lambda at each position: the same everywhere, or one for each domain (adaptive).
    """
    next_token = -log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return (next_token + weights * kl).mean()
