"""From a configured objective to token losses.

Everything is computed from log-probabilities at student-visited states. The
gradient is that of the same step alone (horizon 0): the further term of the
exact sequence KL, grad log p(y_t) times the KL still to come, is left out, as
in every published form of on-policy distillation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage import config as c
from tutelage.ops import divergences as d
from tutelage.ops import support as s
from tutelage.ops.logprobs import gather, log_complement
from tutelage.types import LossOutput, Support


def token_losses(
    objective: c.Objective, student: Tensor, teacher: Tensor, sampled: Tensor
) -> LossOutput:
    """Losses of N tokens from both sides' full log-probabilities.

    Args:
        objective: what to minimise.
        student: float [N, V] log p, with gradient.
        teacher: float [N, V] log q.
        sampled: int64 [N], the tokens the student drew.

    Where value and update differ (surrogates), the value is the divergence and
    the gradient is the update.

    """
    match objective:
        case c.Full():
            return LossOutput(
                losses=_formula(objective.divergence).value(student, teacher, None), metrics={}
            )
        case c.Sampled():
            p, q = gather(student, sampled), gather(teacher, sampled)
            formula = _formula(objective.divergence)
            surrogate = -formula.reward(p, q).detach() * p
            return LossOutput(
                losses=_value_with_gradient_of(formula.at_token(p, q), surrogate), metrics={}
            )
        case c.TopK():
            support = choose_support(objective, student, teacher)
            p, q = student.gather(-1, support.ids), teacher.gather(-1, support.ids)
            return _on_support(objective, p, q, support.mask)


def choose_support(objective: c.TopK, student: Tensor, teacher: Tensor) -> Support:
    """The support of the objective at each state, without gradient."""
    if objective.k > student.shape[-1]:
        raise ValueError(
            f"objective.k is {objective.k}, but the vocabulary has {student.shape[-1]} tokens"
        )
    return s.combine(
        objective.support,
        s.top_k_ids(student.detach(), objective.k),
        s.top_k_ids(teacher.detach(), objective.k),
    )


def _on_support(objective: c.TopK, p: Tensor, q: Tensor, mask: Tensor) -> LossOutput:
    formula = _formula(objective.divergence)
    metrics = {
        "support/student_mass": _mass(p.detach(), mask),
        "support/teacher_mass": _mass(q.detach(), mask),
    }
    match objective.tail:
        case c.Bucket():
            p_all, q_all = _with_bucket(p, mask), _with_bucket(q, mask)
            inside = formula.value(p, q, mask)
            bucket = formula.value(p_all[:, -1:], q_all[:, -1:], None)
            metrics["support/tail_loss"] = bucket.detach()
            losses = inside + bucket
        case c.Renormalise():
            losses = formula.value(_renormalised(p, mask), _renormalised(q, mask), mask)
        case c.Drop():
            reward = (p.exp() * formula.reward(p, q)).detach()
            surrogate = -torch.where(mask, reward * p, 0.0).sum(-1)
            losses = _value_with_gradient_of(formula.value(p, q, mask), surrogate)
        case c.ReferenceCode():
            weighted = (_weights(objective, p, q, mask) * (p - q)).detach()
            surrogate = torch.where(mask, weighted * p, 0.0).sum(-1)
            losses = _value_with_gradient_of(torch.where(mask, weighted, 0.0).sum(-1), surrogate)
    return LossOutput(losses=losses, metrics=metrics)


@dataclass(frozen=True, slots=True)
class _Formula:
    """One divergence in the three forms that objectives need."""

    value: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """Sum over outcomes [.., K] -> [..]."""
    reward: Callable[[Tensor, Tensor], Tensor]
    """phi(u), elementwise: the policy-gradient reward of an outcome."""
    at_token: Callable[[Tensor, Tensor], Tensor]
    """f(u), elementwise: the value's unbiased estimate at a sampled token."""


def _formula(divergence: c.Divergence) -> _Formula:
    match divergence:
        case c.ReverseKL():
            return _Formula(d.reverse_kl, d.reverse_kl_reward, d.reverse_kl_at_token)
        case c.ForwardKL():
            return _Formula(d.forward_kl, d.forward_kl_reward, d.forward_kl_at_token)
        case c.JSD(beta=beta):
            return _Formula(
                lambda p, q, mask: d.jsd(p, q, beta, mask),
                lambda p, q: d.jsd_reward(p, q, beta),
                lambda p, q: d.jsd_at_token(p, q, beta),
            )


def _value_with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    return value.detach() + surrogate - surrogate.detach()


def _mass(logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, logprobs.exp(), 0.0).sum(-1)


def _with_bucket(logprobs: Tensor, mask: Tensor) -> Tensor:
    rest = log_complement(logprobs.masked_fill(~mask, -torch.inf))
    return torch.cat([logprobs, rest.unsqueeze(-1)], dim=-1)


def _renormalised(logprobs: Tensor, mask: Tensor) -> Tensor:
    # A finite floor in place of -inf keeps empty rows and masked slots free of NaN gradients.
    return logprobs.masked_fill(~mask, torch.finfo(logprobs.dtype).min / 4).log_softmax(-1)


def _weights(objective: c.TopK, p: Tensor, q: Tensor, mask: Tensor) -> Tensor:
    """The reference code's w(v) on the support, 0 outside the mask."""
    tail = objective.tail
    assert isinstance(tail, c.ReferenceCode)
    raw = {"student": p.exp(), "teacher": q.exp(), "uniform": torch.ones_like(p)}[tail.weight]
    raw = torch.where(mask, raw, 0.0).detach()
    normalise = tail.normalise
    if normalise is None:
        normalise = objective.support != "symmetric_difference"
    if not normalise:
        return raw
    total = raw.sum(-1, keepdim=True)
    return torch.where(total > 0, raw / total.clamp_min(torch.finfo(raw.dtype).tiny), 0.0)
