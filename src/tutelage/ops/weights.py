"""Token weights: from per-token signals of a whole step to one number a token."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PerToken = Float[Tensor, "N"]
Counts = Int[Tensor, "N"]


def mean_one(weights: PerToken) -> PerToken:
    """Scaled to mean 1; all-zero weights stay 0."""
    mean = weights.mean()
    return weights / mean if mean > 0 else weights


def by_position(positions: Counts, lengths: Counts, slope: float, rising: bool) -> PerToken:
    """Linear in the relative place of a token in its rollout, from 1 - slope to 1 + slope."""
    place = positions / (lengths - 1).clamp_min(1)
    centred = torch.where(lengths > 1, 2 * place - 1, 0.0)
    return 1 + (slope if rising else -slope) * centred


def by_entropy(entropy: PerToken, favour_high: bool) -> PerToken:
    """H, or exp(-H)."""
    return entropy if favour_high else (-entropy).exp()


def tip(entropy: PerToken, divergence: PerToken, unsure: float, far: float) -> PerToken:
    """Weight 1 for unsure tokens and for those that are sure but far, 0 for the rest (2604.14084).

    Kept are the `unsure` share with the highest student entropy and, of the rest, the `far`
    share with the highest divergence.
    """
    kept = _largest(entropy, round(unsure * len(entropy)))
    rest = divergence.masked_fill(kept, -torch.inf)
    kept = kept | _largest(rest, round(far * int((~kept).sum())))
    return kept.to(entropy.dtype)


def teachability(student: Float[Tensor, "N K"], teacher: Float[Tensor, "N K"]) -> PerToken:
    """sum of max(q - p, 0) over the student's top-k tokens, given as log-probabilities."""
    return (teacher.exp() - student.exp()).clamp_min(0).sum(-1)


def from_table(
    positions: PerToken,
    entropy: PerToken,
    position_edges: Float[Tensor, "P"],
    entropy_edges: Float[Tensor, "E"],
    table: Float[Tensor, "P1 E1"],
) -> PerToken:
    """Look up relative position x entropy in a table with one row more than it has edges."""
    return table[
        torch.bucketize(positions, position_edges, right=True),
        torch.bucketize(entropy, entropy_edges, right=True),
    ]


def _largest(values: PerToken, count: int) -> Bool[Tensor, "N"]:
    kept = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    kept[values.sort(descending=True, stable=True).indices[:count]] = True
    return kept
