"""From a configured objective to losses and gradients at N states.

Everything is computed from log-probabilities at student-visited states. The
gradient is that of the same step alone (horizon 0); what a token does to the
states after it enters through `return_to_go`, as a coefficient of its
log-probability that `credit.py` computes.

There are two ways to the same gradient. `token_losses` is differentiable in the
student's log-probabilities: short, general, and the oracle of the tests.
`logit_gradient` writes the gradient in the logits down at once, for the chunked
sweep that training uses: on a support of K tokens a loss F(log p_S) has the
gradient scatter(a) - (sum a) p with a = dF / d log p_S, so only [n, K] numbers
are ever differentiated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tutelage import config as c
from tutelage.ops import divergences as d
from tutelage.ops import support as s
from tutelage.ops.logprobs import entropy, gather
from tutelage.types import LossOutput, TokenScores


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A divergence as functions of one outcome's log-probabilities."""

    terms: "Outcome"
    """Its part of the value."""
    reward: "Outcome"
    """Its policy-gradient reward."""


class Outcome(Protocol):
    """A function of (log p, log q), elementwise."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """One number an outcome."""
        ...


def token_losses(
    objective: c.Objective,
    student: Tensor,
    teacher: Tensor | TokenScores,
    sampled: Tensor,
    baseline: Tensor | None = None,
) -> LossOutput:
    """Losses of N tokens, differentiable in the student's log-probabilities.

    Args:
        objective: what to minimise.
        student: float [N, V] log p, with gradient.
        teacher: log q of the target, float [N, V] or what a server gave.
        sampled: int64 [N], the tokens the student drew.
        baseline: float [N] for `sampled` with the batch's mean reward.

    Where value and update differ (surrogates), the value is the divergence and
    the gradient is the update.
    """
    if isinstance(objective, c.Full):
        q = _full(teacher, objective)
        return LossOutput(d.total(_pointwise(objective.divergence, q, 1).terms(student, q)), {})
    if isinstance(objective, c.Sampled):
        p = gather(student, sampled)
        q = teacher.sampled if isinstance(teacher, TokenScores) else gather(teacher, sampled)
        value, reward = _at_token(objective, p.detach(), q, teacher)
        if baseline is None:
            baseline = state_baseline(objective, student.detach(), teacher)
        surrogate = -(reward if baseline is None else reward - baseline) * p
        return LossOutput(_value_with_gradient_of(value, surrogate), {})
    ids, q, mask = outcomes(objective, student.detach(), teacher)
    return _on_support(objective, student.gather(-1, ids), q, mask, _ramp_source(teacher))


def logit_gradient(
    objective: c.Objective,
    logp: Tensor,
    teacher: Tensor | TokenScores,
    sampled: Tensor,
    coefficients: Tensor,
    logprob_coefficients: Tensor | None = None,
    baseline: Tensor | None = None,
    probs: Tensor | None = None,
) -> tuple[LossOutput, Tensor]:
    """Losses, and the gradient in the logits of sum c_i loss_i + sum e_i log p(y_i).

    Args:
        objective: what to minimise.
        logp: float [n, V] of the student, without gradient.
        teacher: log q of the target, float [n, V] or what a server gave.
        sampled: int64 [n], the tokens the student drew.
        coefficients: float [n], c.
        logprob_coefficients: float [n], e; None for none.
        baseline: as in `token_losses`.
        probs: float [n, V], exp(logp) where it is at hand; overwritten.
    """
    probs = logp.exp() if probs is None else probs
    if isinstance(objective, c.Full):
        q = _full(teacher, objective)
        output, gradient = _full_gradient(objective, logp, probs, q, coefficients)
        ids, slopes = sampled.unsqueeze(-1), torch.zeros_like(gradient[:, :1])
    elif isinstance(objective, c.Sampled):
        ids = sampled.unsqueeze(-1)
        output = token_losses(objective, logp, teacher, sampled, baseline)
        p = gather(logp, sampled)
        q = teacher.sampled if isinstance(teacher, TokenScores) else gather(teacher, sampled)
        _, reward = _at_token(objective, p, q, teacher)
        if baseline is None:
            baseline = state_baseline(objective, logp, teacher)
        slopes = -(reward if baseline is None else reward - baseline) * coefficients
        slopes, gradient = slopes.unsqueeze(-1), None
    else:
        ids, q, mask = outcomes(objective, logp, teacher)
        with torch.enable_grad():
            p = logp.gather(-1, ids).requires_grad_()
            output = _on_support(objective, p, q, mask, _ramp_source(teacher))
            (slopes,) = torch.autograd.grad((output.losses * coefficients).sum(), p)
        output = LossOutput(output.losses.detach(), output.metrics)
        gradient = None
    if logprob_coefficients is not None:
        ids = torch.cat([ids, sampled.unsqueeze(-1)], dim=-1)
        slopes = torch.cat([slopes, logprob_coefficients.unsqueeze(-1).to(slopes)], dim=-1)
    # d log p_v / d z_j = [v = j] - p_j
    pull = slopes.sum(-1, keepdim=True)
    if gradient is None:
        gradient = probs.mul_(-pull)
    elif logprob_coefficients is not None:
        gradient -= probs.mul_(pull)
    return output, gradient.scatter_add_(-1, ids, slopes)


def expected_gradient(objective: c.Objective, logp: Tensor, logq: Tensor) -> Tensor:
    """The gradient of the loss in the logits [n, V], averaged over the token drawn at each state.

    For `top_k` and `full` it is that of `logit_gradient`, since they do not look at the token. For
    `sampled` it is -p (reward - E_p reward): a baseline does not change it.
    """
    if isinstance(objective, c.Sampled):
        reward = _pointwise(objective.divergence, logq, 1).reward
        values = reward(logp, _bounded(objective, logp, logq))
        p = logp.exp()
        gradient: Tensor = p * (torch.linalg.vecdot(p, values).unsqueeze(-1) - values)
        return gradient
    nobody = torch.zeros(len(logp), dtype=torch.long, device=logp.device)
    return logit_gradient(objective, logp, logq, nobody, logp.new_ones(len(logp)))[1]


def brake_gradient(
    student: Tensor, reference: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    """KL(p || r) at each state [n], and the logit gradient of its weighted sum [n, V]."""
    output, gradient = _full_gradient(c.Full(), student, student.exp(), reference, coefficients)
    return output.losses, gradient


def target_logprobs(
    target: c.Target, student: Tensor, teacher: Tensor, references: Mapping[str, Tensor]
) -> Tensor:
    """log q of what the student moves towards, normalised over the whole vocabulary.

    Args:
        target: which.
        student: log p [n, V], without gradient.
        teacher: log q of the teacher [n, V].
        references: log-probabilities [n, V] of the models that `reference_models` names.
    """
    match target:
        case c.TeacherTarget():
            return teacher
        case c.ExtrapolatedTarget(strength=strength):
            reference = references["target.reference"]
            return (reference + strength * (teacher - reference)).log_softmax(-1)
        case c.ShiftTarget():
            shift = teacher - references["target.teacher_base"]
            return (references["target.student_base"] + shift).log_softmax(-1)
        case c.ArithmeticTarget(share=share):
            return d.log_mixture(teacher, student.detach(), share)


def outcomes(
    objective: c.TopK, student: Tensor, teacher: Tensor | TokenScores
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [n, K], log q [n, K] and mask [n, K] of the support at each state.

    Raises:
        ValueError: k exceeds the vocabulary.
    """
    if objective.k > student.shape[-1]:
        raise ValueError(
            f"objective.k is {objective.k}, but the vocabulary has {student.shape[-1]} tokens"
        )
    if isinstance(teacher, TokenScores):
        return teacher.ids, teacher.logprobs, teacher.mask
    student_ids = teacher_ids = None
    if objective.support != "teacher":
        student_ids = s.top_k_ids(student, objective.k)
    if objective.support != "student":
        teacher_ids = s.top_k_ids(teacher, objective.k)
    support = s.combine(objective.support, student_ids, teacher_ids)
    return support.ids, teacher.gather(-1, support.ids), support.mask


def state_baseline(
    objective: c.Sampled, student: Tensor, teacher: Tensor | TokenScores
) -> Tensor | None:
    """The expected reward of each state [n]; None where the objective subtracts none.

    Raises:
        ValueError: a batch mean, which no single state knows.
    """
    match objective.baseline:
        case c.NoBaseline():
            return None
        case c.BatchMeanBaseline():
            raise ValueError("the batch's mean reward must be given as `baseline`")
        case c.KLBaseline(k=k):
            p, q = student, _full(teacher, objective)
            if k is not None:
                ids = s.top_k_ids(p, min(k, p.shape[-1]))
                p, q = p.gather(-1, ids), q.gather(-1, ids)
            reward = _pointwise(objective.divergence, _ramp_source(teacher), 1).reward
            return (p.exp() * reward(p, _bounded(objective, p, q))).sum(-1)


def sampled_reward(
    objective: c.Sampled, student: Tensor, teacher: Tensor | TokenScores, sampled: Tensor
) -> Tensor:
    """Reward [n] of the tokens drawn, for the batch's mean."""
    p = gather(student, sampled)
    q = teacher.sampled if isinstance(teacher, TokenScores) else gather(teacher, sampled)
    return _at_token(objective, p, q, teacher)[1]


def _full_gradient(
    objective: c.Full, logp: Tensor, p: Tensor, logq: Tensor, coefficients: Tensor
) -> tuple[LossOutput, Tensor]:
    """-p (reward - E_p reward) for every token: the gradient rule over the whole vocabulary."""
    pointwise = _pointwise(objective.divergence, logq, 1)
    if isinstance(objective.divergence, c.ReverseKL):  # value and reward are one number here
        gradient = logp - logq
        value = torch.linalg.vecdot(p, gradient)
        gradient = gradient.sub_(value.unsqueeze(-1)).mul_(p)
    elif isinstance(objective.divergence, c.JSD):  # one mixture serves value and reward
        value, gradient = _jsd_gradient(p, logp, logq, objective.divergence.beta)
    else:
        value = d.total(pointwise.terms(logp, logq))
        gradient = pointwise.reward(logp, logq)
        gradient = (torch.linalg.vecdot(p, gradient).unsqueeze(-1) - gradient).mul_(p)
    return LossOutput(value, {}), gradient.mul_(coefficients.unsqueeze(-1).to(gradient))


def _jsd_gradient(p: Tensor, logp: Tensor, logq: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    q = logq.exp()
    log_m = torch.lerp(p, q, beta).clamp_min_(torch.finfo(p.dtype).tiny).log_()
    ratio = log_m - logp
    student = -torch.linalg.vecdot(p, ratio)
    teacher = -torch.linalg.vecdot(q, log_m.sub_(logq))
    gradient = ratio.add_(student.unsqueeze(-1)).mul_(p).mul_(beta - 1)
    return beta * teacher + (1 - beta) * student, gradient


def _at_token(
    objective: c.Sampled, p: Tensor, q: Tensor, teacher: Tensor | TokenScores
) -> tuple[Tensor, Tensor]:
    """Unbiased value and reward [n] at the sampled tokens."""
    pointwise = _pointwise(objective.divergence, _ramp_source(teacher), 0)
    value = pointwise.terms(p, q) * (-p).exp()  # E_p of term / p is the sum of terms
    return value, pointwise.reward(p, _bounded(objective, p, q))


def _bounded(objective: c.Sampled, p: Tensor, q: Tensor) -> Tensor:
    bound = objective.bound
    return q if bound is None else p + (q - p).clamp(-bound, bound)


def _on_support(
    objective: c.TopK, p: Tensor, q: Tensor, mask: Tensor, ramp_source: Tensor | None
) -> LossOutput:
    pointwise = _pointwise(objective.divergence, ramp_source, 1)
    metrics = {
        "support/student_mass": _mass(p.detach(), mask),
        "support/teacher_mass": _mass(q, mask),
    }
    match objective.tail:
        case c.Bucket():
            inside = d.total(pointwise.terms(p, q), mask)
            bucket = pointwise.terms(d.rest(p, mask), d.rest(q, mask)).squeeze(-1)
            metrics["support/tail_loss"] = bucket.detach()
            losses = inside + bucket
        case c.Renormalise():
            losses = d.total(pointwise.terms(_renormalised(p, mask), _renormalised(q, mask)), mask)
        case c.Drop():
            reward = (p.exp() * pointwise.reward(p, q)).detach()
            value = d.total(pointwise.terms(p, q), mask)
            losses = _value_with_gradient_of(value, -d.total(reward * p, mask))
        case c.ReferenceCode():
            weighted = (_weights(objective, p, q, mask) * (p - q)).detach()
            value = d.total(weighted, mask)
            losses = _value_with_gradient_of(value, d.total(weighted * p, mask))
    return LossOutput(losses, metrics)


def _pointwise(divergence: c.Divergence, ramp_source: Tensor | None, extra: int) -> Pointwise:
    """The formulas of a divergence; `extra` trailing axes follow the states' one."""
    match divergence:
        case c.ReverseKL():
            return Pointwise(d.reverse_kl_terms, d.reverse_kl_reward)
        case c.ForwardKL():
            return Pointwise(d.forward_kl_terms, d.forward_kl_reward)
        case c.JSD(beta=beta):
            return Pointwise(partial(d.jsd_terms, beta=beta), partial(d.jsd_reward, beta=beta))
        case c.Power(alpha=a):
            return Pointwise(partial(d.power_terms, alpha=a), partial(d.power_reward, alpha=a))
        case c.Skew(alpha=a, direction="reverse"):
            return Pointwise(
                partial(d.skew_reverse_terms, alpha=a), partial(d.skew_reverse_reward, alpha=a)
            )
        case c.Skew(alpha=a):
            return Pointwise(
                partial(d.skew_forward_terms, alpha=a), partial(d.skew_forward_reward, alpha=a)
            )
        case c.Mix():
            share = forward_share(divergence, ramp_source)
            if isinstance(share, Tensor):
                share = share.reshape(share.shape + (1,) * extra)
            return Pointwise(
                lambda p, q: (
                    d.reverse_kl_terms(p, q) * (1 - share) + share * d.forward_kl_terms(p, q)
                ),
                lambda p, q: (
                    d.reverse_kl_reward(p, q) * (1 - share) + share * d.forward_kl_reward(p, q)
                ),
            )


def forward_share(mix: c.Mix, teacher: Tensor | None) -> Tensor | float:
    """Share of the forward KL at each state, from the teacher's full log-probabilities."""
    if mix.ramp is None:
        return mix.forward
    if teacher is None:
        raise ValueError("divergence mix with a ramp needs the teacher's full distribution")
    height = (entropy(teacher) - mix.ramp.low) / (mix.ramp.high - mix.ramp.low)
    return mix.forward * height.clamp(0, 1)


def _full(teacher: Tensor | TokenScores, objective: c.Full | c.Sampled) -> Tensor:
    if isinstance(teacher, TokenScores):
        raise ValueError(
            f"objective {objective.type} needs the teacher's full distribution, and a server "
            "gives some tokens' log-probabilities; use top_k, or sampled without a kl baseline"
        )
    return teacher


def _ramp_source(teacher: Tensor | TokenScores) -> Tensor | None:
    return None if isinstance(teacher, TokenScores) else teacher


def _value_with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    return value.detach() + surrogate - surrogate.detach()


def _mass(logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, logprobs.exp(), 0.0).sum(-1)


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
