"""Divergences between a student p and a teacher q over the same outcomes.

Arguments are log-probabilities over the last axis. A divergence of the
f-family is D = E_p f(u) with u = q/p; its gradient is that of the surrogate
-sum_v sg[p(v) (phi(v) - b)] log p(v), with phi = u f'(u) - f(u) and any b that
does not depend on v. `mask` leaves outcomes out of the sum.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LogProbs = Float[Tensor, "*S K"]
PerState = Float[Tensor, "*S"]
Mask = Bool[Tensor, "*S K"] | None


def _total(terms: Tensor, mask: Tensor | None) -> Tensor:
    return (terms if mask is None else torch.where(mask, terms, 0.0)).sum(-1)


def reverse_kl(student: LogProbs, teacher: LogProbs, mask: Mask = None) -> PerState:
    """KL(student || teacher) at each state, in nats.

    This is the exact value whose one-sample estimate is `k1`.
    """
    return _total(student.exp() * (student - teacher), mask)


def forward_kl(student: LogProbs, teacher: LogProbs, mask: Mask = None) -> PerState:
    """KL(teacher || student) at each state, in nats."""
    return _total(teacher.exp() * (teacher - student), mask)


def jsd(student: LogProbs, teacher: LogProbs, beta: float, mask: Mask = None) -> PerState:
    """Beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p, in nats.

    Divided by 1 - beta it tends to the reverse KL as beta -> 1, divided by beta
    to the forward KL as beta -> 0.
    """
    mixture = log_mixture(student, teacher, beta)
    return _total(
        beta * teacher.exp() * (teacher - mixture)
        + (1 - beta) * student.exp() * (student - mixture),
        mask,
    )


def log_mixture(student: LogProbs, teacher: LogProbs, beta: float) -> LogProbs:
    """log(beta q + (1 - beta) p)."""
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))


def reverse_kl_reward(student: LogProbs, teacher: LogProbs) -> LogProbs:
    """Phi of the reverse KL up to a constant: log u = log q - log p."""
    return teacher - student


def forward_kl_reward(student: LogProbs, teacher: LogProbs) -> LogProbs:
    """Phi of the forward KL: u = q / p."""
    return (teacher - student).exp()


def jsd_reward(student: LogProbs, teacher: LogProbs, beta: float) -> LogProbs:
    """Phi of the generalised JSD: (1 - beta) log(m / p)."""
    return (1 - beta) * (log_mixture(student, teacher, beta) - student)


def reverse_kl_at_token(student: LogProbs, teacher: LogProbs) -> LogProbs:
    """f(u) of the reverse KL, -log u: unbiased for its value at tokens drawn from p (`k1`)."""
    return student - teacher


def forward_kl_at_token(student: LogProbs, teacher: LogProbs) -> LogProbs:
    """f(u) of the forward KL, u log u: unbiased for its value at tokens drawn from p."""
    return (teacher - student).exp() * (teacher - student)


def jsd_at_token(student: LogProbs, teacher: LogProbs, beta: float) -> LogProbs:
    """f(u) of the generalised JSD: unbiased for its value at tokens drawn from p."""
    mixture = log_mixture(student, teacher, beta) - student
    log_u = teacher - student
    return beta * log_u.exp() * (log_u - mixture) - (1 - beta) * mixture
