"""What is kept of some held-out rollouts: tokens, scores, what both sides found likely."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage import config as c
from tutelage.credit import StepTokens, token_weights
from tutelage.metrics import TokenTable, defined_rows
from tutelage.models.tokens import describe_tokens
from tutelage.ops.support import top_k_ids
from tutelage.runs.directory import Run
from tutelage.types import Rollout, TokenScores

ENTRIES = 2**18  # most list entries of a side at one evaluation, about 5 MB of JSON
FEWEST = 5  # tokens of a side that are listed at every state, whatever that takes
BATCHES = 16  # of steps that were not applied are kept whole; of further ones the ids are
_LOWEST = -99.0  # nats; a server may call a token impossible, and JSON has no infinity
_SIDES = ("student", "teacher")


class LikelyTokens:
    """The most likely tokens of both sides at the states of some rollouts, while they are measured.

    A served teacher that lists fewer than `k` gives as many as it lists.
    """

    def __init__(self, places: Collection[int], k: int) -> None:
        self.places, self.k = torch.tensor(sorted(places), dtype=torch.long), k
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._rows: list[Tensor] = []
        self._ids: dict[str, list[Tensor]] = {side: [] for side in _SIDES}
        self._logprobs: dict[str, list[Tensor]] = {side: [] for side in _SIDES}

    def look(self, rows: Tensor, student: Tensor, teacher: Tensor | TokenScores) -> None:
        """Take the lists of those states whose rollout is wanted.

        Args:
            rows: int64 [n], which rollout each state is of.
            student: log p [n, V].
            teacher: log q [n, V], or a server's lists.
        """
        mine = torch.isin(rows, self.places)
        if not mine.any():
            return
        self._rows.append(rows[mine])
        mine = mine.to(student.device)
        self._take("student", student[mine])
        if isinstance(teacher, TokenScores):
            assert teacher.likely_ids is not None
            assert teacher.likely_logprobs is not None
            self._keep(
                "teacher",
                teacher.likely_ids[mine, : self.k],
                teacher.likely_logprobs[mine, : self.k],
            )
        else:
            self._take("teacher", teacher[mine])

    def _take(self, side: str, logprobs: Tensor) -> None:
        ids = top_k_ids(logprobs, min(self.k, logprobs.shape[-1]))
        self._keep(side, ids, logprobs.gather(-1, ids))

    def _keep(self, side: str, ids: Tensor, logprobs: Tensor) -> None:
        self._ids[side].append(ids.cpu())
        self._logprobs[side].append(logprobs.cpu())

    def of(self, place: int) -> dict[str, dict[str, list[Any]]]:
        """Ids and log-probabilities of both sides by token of a rollout, most likely first."""
        if not self._rows:
            return {}
        mine = torch.cat(self._rows) == place
        return {
            side: {
                "ids": torch.cat(self._ids[side])[mine].tolist(),
                "logprobs": [
                    [None if math.isnan(x) else round(max(x, _LOWEST), 3) for x in listed]
                    for listed in torch.cat(self._logprobs[side])[mine].tolist()
                ],
            }
            for side in _SIDES
        }


def listed_tokens(metrics_k: int, tokens: int) -> int:
    """Tokens of a side to list at each of so many states, so that a file of them stays bounded."""
    return min(metrics_k, max(FEWEST, ENTRIES // max(1, tokens)))


def held_out_weights(
    objective: c.Objective, rollouts: Sequence[Rollout], table: TokenTable, rows: Tensor
) -> Tensor | None:
    """Weight of each held-out token if these rollouts were a step, float [N].

    None where all count the same, or where the rule needs the loss of training.
    """
    if isinstance(objective.weight, c.UniformWeight | c.ClipWeight | c.TeachabilityWeight):
        return None
    lengths = torch.bincount(rows, minlength=len(rollouts))
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])
    tokens = StepTokens(rollouts=rollouts, rows=rows, positions=positions, signals=table)
    return token_weights(objective.weight, tokens, lengths)


def token_scores(
    rollout: Rollout,
    tokenizer: Any,
    table: TokenTable,
    mine: Tensor,
    likely: dict[str, dict[str, list[Any]]],
) -> dict[str, Any]:
    """A rollout with its `mine` rows of a table, one number a token; undefined is null.

    `likely` is what `LikelyTokens.of` gave of it; empty where nobody looked.
    """
    columns = {
        key: [round(v, 5) if math.isfinite(v) else None for v in values[mine].tolist()]
        for key, values in table.items()
    }
    ids = {i for side in likely.values() for listed in side["ids"] for i in listed}
    shown = describe_tokens(tokenizer, ids | set(rollout.completion_ids))
    vocabulary = shown["vocabulary"]
    assert isinstance(vocabulary, dict)
    return {
        "id": rollout.prompt.id,
        "index": rollout.index,
        "policy_step": rollout.policy_step,
        "question": rollout.prompt.question,
        "answer": rollout.prompt.answer,
        "text": rollout.text,
        "reward": rollout.reward,
        "finish_reason": rollout.finish_reason,
        "prompt_ids": list(rollout.prompt_ids),
        "completion_ids": list(rollout.completion_ids),
        "tokens": [vocabulary[str(i)] for i in rollout.completion_ids],
        "scores": columns,
        "likely": likely,
        **shown,
    }


def keep_not_applied(
    run: Run,
    step: int,
    rollouts: Sequence[Rollout],
    table: TokenTable,
    rows: Tensor,
    tokenizer: Any,
    told: Mapping[str, Any],
) -> None:
    """Keep the batch of a step that was not applied, and which of its scores are undefined.

    Args:
        run: where an event, and the rollouts in question token by token, are written.
        step: the step.
        rollouts: its batch.
        table: what was measured of each token, [N] each.
        rows: int64 [N], which rollout each token is of.
        tokenizer: the student's.
        told: what else the event says.
    """
    whole = defined_rows(table, rows, len(rollouts)).tolist()
    event: dict[str, Any] = {
        "step": step,
        **told,
        "batch": [[r.prompt.id, r.index] for r in rollouts],
        "undefined": [
            [r.prompt.id, r.index] for r, known in zip(rollouts, whole, strict=True) if not known
        ],
    }
    if len(list((run.path / "not_applied").glob("*.jsonl"))) < BATCHES:
        asked = [i for i, known in enumerate(whole) if not known] or range(len(rollouts))
        event["file"] = f"not_applied/step-{step}.jsonl"
        run.write_lines(
            event["file"],
            [token_scores(rollouts[i], tokenizer, table, rows == i, {}) for i in asked],
        )
    run.log_event("not_applied", **event)
