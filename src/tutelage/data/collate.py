"""The one place that shifts and masks."""

from collections.abc import Sequence

import torch

from tutelage.types import Batch, Rollout


def collate(rollouts: Sequence[Rollout]) -> Batch:
    """Rollouts as one right-padded batch.

    The logits at t predict the token at t + 1, so the loss mask of a completion
    begins at the last token of its prompt and ends before its own last token.

    Raises:
        ValueError: a rollout without a prompt token; nothing predicts its first token.
    """
    lengths = [len(r.prompt_ids) + len(r.completion_ids) for r in rollouts]
    width = max(lengths)
    input_ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    loss_mask = torch.zeros(len(rollouts), width, dtype=torch.bool)
    for row, (rollout, length) in enumerate(zip(rollouts, lengths, strict=True)):
        start = len(rollout.prompt_ids)
        if start == 0:
            raise ValueError(f"prompt {rollout.prompt.id!r} renders to no token")
        input_ids[row, :length] = torch.tensor(rollout.prompt_ids + rollout.completion_ids)
        attention_mask[row, :length] = 1
        loss_mask[row, start - 1 : length - 1] = True
    rows, columns = loss_mask.nonzero(as_tuple=True)
    starts = torch.tensor([len(r.prompt_ids) for r in rollouts])
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        targets=input_ids[rows, columns + 1],
        rows=rows,
        positions=columns + 1 - starts[rows],
        sampling_logprobs=torch.tensor(
            [x if r.source == "student" else torch.nan for r in rollouts for x in r.logprobs]
        ),
    )
