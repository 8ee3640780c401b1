"""Agreement of two distributions on their most likely tokens (arXiv 2604.13016, eq 6-10).

P and Q are the student's and the teacher's top-k sets, I what they share.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tutelage.ops.support import isin_rows

TopK = Int[Tensor, "N K"]
LogProbs = Float[Tensor, "N V"]
PerState = Float[Tensor, "N"]


def shared(student_ids: TopK, teacher_ids: TopK) -> Bool[Tensor, "N K"]:
    """Which of the student's top-k tokens are in the teacher's."""
    return isin_rows(student_ids, teacher_ids)


def overlap_ratio(common: Bool[Tensor, "N K"]) -> PerState:
    """|P ∩ Q| / k at each state (eq 6)."""
    return common.float().mean(-1)


def shared_mass(logprobs: Float[Tensor, "N K"], common: Bool[Tensor, "N K"]) -> PerState:
    """Full-vocabulary probability of the shared tokens (eq 9-10); 0 where none is shared."""
    return torch.where(common, logprobs.exp(), 0.0).sum(-1)


def overlap_advantage(
    student: Float[Tensor, "N K"], teacher: Float[Tensor, "N K"], common: Bool[Tensor, "N K"]
) -> PerState:
    """Mean over I of p̄ (log q̄ - log p̄), both renormalised on I (eq 7); NaN where I is empty.

    Equals -KL(p̄ || q̄) / |I|, so it is never positive.
    """
    p = student.masked_fill(~common, -torch.inf).log_softmax(-1)
    q = teacher.masked_fill(~common, -torch.inf).log_softmax(-1)
    terms = torch.where(common, p.exp() * (q - p), 0.0).sum(-1)
    count = common.sum(-1)
    return torch.where(count > 0, terms / count, torch.nan)


def overlap_advantage_unnormalised(
    student: Float[Tensor, "N K"], teacher: Float[Tensor, "N K"], common: Bool[Tensor, "N K"]
) -> tuple[PerState, PerState]:
    """What the paper's reference code logs: sum over I of -w (log p - log q), w = p / p(P).

    Returns the sum and |I| at each state; their totals' ratio is the pooled mean,
    which may be positive.
    """
    weight = student.softmax(-1)
    terms = torch.where(common, weight * (teacher - student), 0.0).sum(-1)
    return terms, common.sum(-1).to(terms.dtype)
