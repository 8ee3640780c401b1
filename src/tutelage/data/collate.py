"""The one place that shifts and masks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from tutelage.types import Batch, Rollout


def collate(rollouts: Sequence[Rollout], side: Literal["student", "teacher"] = "student") -> Batch:
    """Rollouts as one right-padded batch, under the prompts that this side reads.

    The logits at t predict the token at t + 1, so the loss mask of a completion
    begins at the last token of its prompt and ends before its own last token.
    Targets, rows and positions are the same for both sides whatever their prompts.

    Raises:
        ValueError: a rollout without a prompt token; nothing predicts its first token.
    """
    prompts = [
        (side == "teacher" and rollout.teacher_prompt_ids) or rollout.prompt_ids
        for rollout in rollouts
    ]
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        if not prompt:
            raise ValueError(f"prompt {rollout.prompt.id!r} renders to no token")
    whole = [p + r.completion_ids for p, r in zip(prompts, rollouts, strict=True)]
    width = max(map(len, whole))
    input_ids = torch.tensor([ids + (0,) * (width - len(ids)) for ids in whole])
    starts, ends = (torch.tensor([[len(ids)] for ids in side]) for side in (prompts, whole))
    places = torch.arange(width)
    attention_mask = (places < ends).long()
    loss_mask = (starts - 1 <= places) & (places < ends - 1)
    rows, columns = loss_mask.nonzero(as_tuple=True)
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        targets=input_ids[rows, columns + 1],
        rows=rows,
        positions=columns + 1 - starts[rows, 0],
        sampling_logprobs=torch.tensor(
            [x if r.source == "student" else torch.nan for r in rollouts for x in r.logprobs]
        ),
    )


def cut_by_length(lengths: Sequence[int], most: int, overhead: int) -> list[slice]:
    """Where to cut rows into batches, without changing their order, so that they take least time.

    A batch is as wide as its longest row, and padding costs what tokens cost; a batch more costs
    as much as `overhead` tokens. Of all cuts into batches of at most `most` rows
    this is the cheapest, found place by place from the start.
    """
    least = np.zeros(len(lengths) + 1)  # what the first so many rows cost at least
    first = np.zeros(len(lengths) + 1, dtype=np.int64)  # where the last of their batches begins
    for stop in range(1, len(lengths) + 1):
        starts = np.arange(max(0, stop - most), stop)
        widths = np.maximum.accumulate(lengths[starts[0] : stop][::-1])[::-1]
        costs = least[starts] + widths * (stop - starts)
        best = int(costs.argmin())
        least[stop], first[stop] = costs[best] + overhead, starts[best]
    cuts, stop = list[slice](), len(lengths)
    while stop:
        cuts.append(slice(int(first[stop]), stop))
        stop = int(first[stop])
    return cuts[::-1]


def pack(rollouts: Sequence[Rollout]) -> Batch:
    """The same rollouts one after the other in a single row, without padding.

    Targets, rows and positions are those of `collate`. `position_ids` begin anew with
    each rollout, by which transformers keeps them from seeing one another.
    """
    padded = collate(rollouts)
    real = padded.attention_mask.bool()
    lengths = real.sum(-1).tolist()
    return replace(
        padded,
        input_ids=padded.input_ids[real].unsqueeze(0),
        attention_mask=padded.attention_mask[real].unsqueeze(0),
        loss_mask=padded.loss_mask[real].unsqueeze(0),
        position_ids=torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0),
    )
