"""Divergences between a student p and a teacher q over the same outcomes.

Every divergence is a sum over outcomes of `terms`, and comes with the `reward` of
an outcome: the gradient of the divergence in the student's logits is that of

    - sum_v sg[p(v) (reward(v) - b)] log p(v)

for any b that does not depend on v, as long as the outcomes are complete. For an
f-divergence D = E_p f(u), u = q/p, the reward is u f'(u) - f(u) up to a constant;
the constant is chosen so that the reward vanishes where p = q. Arguments are
log-probabilities, functions are elementwise.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tutelage.ops.logprobs import log_complement

LogProbs = Float[Tensor, "*S K"]
Elementwise = Float[Tensor, "*S"]
Mask = Bool[Tensor, "*S K"] | None


def total(terms: Float[Tensor, "*S K"], mask: Mask = None) -> Float[Tensor, "*S"]:
    """Sum over the outcomes that count."""
    return (terms if mask is None else torch.where(mask, terms, 0.0)).sum(-1)


def rest(logprobs: LogProbs, mask: Bool[Tensor, "*S K"]) -> Float[Tensor, "*S 1"]:
    """Log-probability of everything that the mask leaves out, as one outcome."""
    return log_complement(logprobs.masked_fill(~mask, -torch.inf)).unsqueeze(-1)


def bucketed(
    terms: Callable[[Tensor, Tensor], Tensor],
    student: LogProbs,
    teacher: LogProbs,
    mask: Bool[Tensor, "*S K"],
) -> Float[Tensor, "*S"]:
    """A divergence on some outcomes and one lumped outcome for the rest."""
    tail = terms(rest(student, mask), rest(teacher, mask)).squeeze(-1)
    return total(terms(student, teacher), mask) + tail


def reverse_kl(student: LogProbs, teacher: LogProbs, mask: Mask = None) -> Float[Tensor, "*S"]:
    """KL(student || teacher) at each state, in nats.

    This is the exact value whose one-sample estimate is `k1`.
    """
    return total(reverse_kl_terms(student, teacher), mask)


def forward_kl(student: LogProbs, teacher: LogProbs, mask: Mask = None) -> Float[Tensor, "*S"]:
    """KL(teacher || student) at each state, in nats."""
    return total(forward_kl_terms(student, teacher), mask)


def reverse_kl_terms(student: Elementwise, teacher: Elementwise) -> Elementwise:
    """p (log p - log q)."""
    return student.exp() * (student - teacher)


def reverse_kl_reward(student: Elementwise, teacher: Elementwise) -> Elementwise:
    """log u."""
    return teacher - student


def forward_kl_terms(student: Elementwise, teacher: Elementwise) -> Elementwise:
    """q (log q - log p)."""
    return teacher.exp() * (teacher - student)


def forward_kl_reward(student: Elementwise, teacher: Elementwise) -> Elementwise:
    """u - 1."""
    return (teacher - student).expm1()


def jsd_terms(student: Elementwise, teacher: Elementwise, beta: float) -> Elementwise:
    """beta q log(q / m) + (1 - beta) p log(p / m), m = beta q + (1 - beta) p.

    The sum divided by 1 - beta tends to the reverse KL as beta -> 1, divided by
    beta to the forward KL as beta -> 0.
    """
    mixture = log_mixture(teacher, student, beta)
    return beta * teacher.exp() * (teacher - mixture) + (1 - beta) * student.exp() * (
        student - mixture
    )


def jsd_reward(student: Elementwise, teacher: Elementwise, beta: float) -> Elementwise:
    """(1 - beta) log(m / p)."""
    return (1 - beta) * (log_mixture(teacher, student, beta) - student)


def skew_reverse_terms(student: Elementwise, teacher: Elementwise, alpha: float) -> Elementwise:
    """p log(p / m), m = alpha p + (1 - alpha) q (skew KL, 2402.03898)."""
    return student.exp() * (student - log_mixture(student, teacher, alpha))


def skew_reverse_reward(student: Elementwise, teacher: Elementwise, alpha: float) -> Elementwise:
    """log(m / p) + alpha (p / m - 1)."""
    ratio = log_mixture(student, teacher, alpha) - student
    return ratio + alpha * (-ratio).expm1()


def skew_forward_terms(student: Elementwise, teacher: Elementwise, alpha: float) -> Elementwise:
    """q log(q / m), m = alpha q + (1 - alpha) p."""
    return teacher.exp() * (teacher - log_mixture(teacher, student, alpha))


def skew_forward_reward(student: Elementwise, teacher: Elementwise, alpha: float) -> Elementwise:
    """(1 - alpha) (q / m - 1)."""
    return (1 - alpha) * (teacher - log_mixture(teacher, student, alpha)).expm1()


def power_terms(student: Elementwise, teacher: Elementwise, alpha: float) -> Elementwise:
    """p^(a+1) / (a+1) - q^a p + a/(a+1) q^(a+1).

    The sum divided by alpha tends to the reverse KL as alpha -> 0; alpha = 1 is
    half the squared distance. Merging outcomes may raise it.
    """
    p, q, a = student, teacher, alpha
    return ((a + 1) * p).exp() / (a + 1) - (a * q + p).exp() + a / (a + 1) * ((a + 1) * q).exp()


def power_reward(student: Elementwise, teacher: Elementwise, alpha: float) -> Elementwise:
    """q^alpha - p^alpha (2606.17199)."""
    return (alpha * teacher).exp() - (alpha * student).exp()


def log_mixture(one: Elementwise, other: Elementwise, share: float) -> Elementwise:
    """log(share one + (1 - share) other)."""
    return torch.logaddexp(one + math.log(share), other + math.log1p(-share))
