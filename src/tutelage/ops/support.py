"""Which tokens two distributions are compared on."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutelage.types import Support

SupportKind = Literal["student", "teacher", "union", "intersection", "symmetric_difference"]


def top_k_ids(scores: Float[Tensor, "N V"], k: int) -> Int[Tensor, "N K"]:
    """Ids of the k largest scores of each row; ties go to the lower id.

    `torch.topk` leaves ties open, and bf16 logits make many of them at the k-th
    place, so that a model would not even overlap with itself.
    """
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(
            f"k is {k}; a vocabulary of {scores.shape[-1]} tokens allows 1 to that many"
        )
    width = scores.shape[-1]
    values, ids = _largest(scores, min(k + 1, width))
    ids = ids[:, :k].contiguous()
    if k == width:
        tied = scores.new_zeros(0, dtype=torch.long)
    else:  # the one that follows is as large as the last of them
        tied = (values[:, k] >= values[:, k - 1]).nonzero().squeeze(-1)
    if len(tied):
        # Of those as large as the k-th the lowest ids; in bf16 nearly every row has some, and
        # sorting whole rows would take longer than all else.
        last, places = values[tied, k - 1 : k], torch.arange(k, device=scores.device)
        falling = torch.arange(width, 0, -1, dtype=torch.float32, device=scores.device)
        equal = falling.where(scores[tied] == last, 0.0).topk(k).indices
        larger = (values[tied, :k] > last).sum(-1, keepdim=True)
        filled = equal.gather(-1, (places - larger).clamp_min(0))
        ids[tied] = torch.where(places < larger, ids[tied], filled)
    return ids


def _largest(scores: Float[Tensor, "N V"], k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each row, falling, and ids that have them.

    On a CPU `torch.topk` copies whole rows before it selects. The largest lie in the k blocks with
    the largest maxima, and looking at those alone takes a fifth to a half of the time where rows
    are long.
    """
    width = scores.shape[-1]
    if scores.device.type != "cpu" or width < 512 * k:
        return scores.topk(k, dim=-1)
    size = 1 << math.isqrt(width // k).bit_length()  # of powers of two maxima are fast
    cut = width // size * size
    blocks = scores[:, :cut].unflatten(1, (-1, size))
    likely = blocks.amax(-1).topk(k, dim=-1).indices.unsqueeze(-1)
    ids = torch.cat(
        [
            (likely * size + torch.arange(size)).flatten(1),
            torch.arange(cut, width).expand(len(scores), -1),
        ],
        dim=-1,
    )
    values, places = scores.gather(-1, ids).topk(k, dim=-1)
    return values, ids.gather(-1, places)


def isin_rows(ids: Int[Tensor, "N K"], others: Int[Tensor, "N L"]) -> Tensor:
    """Bool [N, K]: which ids occur anywhere in the same row of `others`."""
    return (ids.unsqueeze(-1) == others.unsqueeze(-2)).any(-1)


def combine(
    kind: SupportKind,
    student: Int[Tensor, "N K"] | None,
    teacher: Int[Tensor, "N K"] | None,
) -> Support:
    """The support made of both sides' top-k ids, without duplicates.

    A side that the kind does not use may be None.

    Raises:
        ValueError: a side that the kind needs is None.
    """
    one_side = {"student": student, "teacher": teacher}.get(kind)
    if one_side is not None:
        return Support(one_side, torch.ones_like(one_side, dtype=torch.bool))
    if student is None or teacher is None:
        raise ValueError(f"support {kind} needs the top-k ids of both sides")
    everywhere = torch.ones_like(student, dtype=torch.bool)
    if kind == "intersection":
        return Support(student, isin_rows(student, teacher))
    both = torch.cat([student, teacher], dim=-1)
    only_teacher = ~isin_rows(teacher, student)
    only_student = everywhere if kind == "union" else ~isin_rows(student, teacher)
    return Support(both, torch.cat([only_student, only_teacher], dim=-1))
