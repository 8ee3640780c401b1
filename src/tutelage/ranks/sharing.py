"""What is done in shares, put together again on every rank."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tutelage.metrics import TokenTable, concatenate
from tutelage.models.local import LocalModel
from tutelage.models.sharded import gathered, is_sharded
from tutelage.ranks.group import Ranks, told_lost
from tutelage.runs.rollouts import pack_rollouts, unpack_rollouts
from tutelage.types import Prompt, Rollout


def gather_rollouts(
    ranks: Ranks, own: Sequence[Rollout], group_size: int, prompts: Mapping[str, Prompt]
) -> list[Rollout]:
    """All rollouts of the prompts that were dealt, in the order of the prompts.

    Args:
        ranks: who drew them.
        own: this rank's, prompt by prompt.
        group_size: rollouts of each prompt.
        prompts: all of them, by id.
    """
    if ranks.size == 1:
        return list(own)
    everyone = [unpack_rollouts(told, prompts) for told in ranks.gather_tensors(pack_rollouts(own))]
    groups = [
        [drawn[i : i + group_size] for i in range(0, len(drawn), group_size)] for drawn in everyone
    ]
    return [rollout for group in ranks.undealt(groups) for rollout in group]


def whole_table(ranks: Ranks, table: TokenTable, rows: Tensor) -> tuple[TokenTable, Tensor]:
    """The tokens of every rank, rollout by rollout; `rows` are places among all rollouts."""
    if ranks.size == 1:
        return table, rows
    everyone = ranks.gather_tensors({**table, "rows": rows})
    together = concatenate([tokens for tokens in everyone if len(tokens["rows"])])
    order = torch.argsort(together["rows"], stable=True)
    together = {name: values[order] for name, values in together.items()}
    return together, together.pop("rows")


@contextmanager
def whole(student: LocalModel, ranks: Ranks) -> Iterator[None]:
    """Inside, every rank has all of the student's weights; see `gathered`."""
    if not is_sharded(student) or student.gatherings:
        yield
        return
    ranks.exchange()
    with ranks.unbroken(), told_lost():
        inside = gathered(student)
        inside.__enter__()
    try:
        yield
    finally:
        inside.__exit__(None, None, None)
