"""The target of neurally-decomposed oracles, as a pure function of tensors; the losses are in the notebook regularise.

An oracle C(x, y) in {0, 1} says whether a text y that follows a prompt x satisfies a constraint. Under a language model
p, R(x, y<i) is the probability that the text still will, once it begins with y<i. The nearest distribution to p in
which every text satisfies the constraint is q*(y|x) = p(y|x) C(x, y) / R(x, empty), and token by token

    q*(v | x, y<i) = p(v | x, y<i) R(x, y<i + v) / R(x, y<i)                         (Meng et al. 2022, eq. 3)

A head R_phi gives a logit for every token v of the vocabulary at every position: sigmoid(logit) estimates
R(x, y<i + v).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch.nn.functional import logsigmoid


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
