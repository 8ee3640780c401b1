"""The gradient of one step, accumulated micro-batch by micro-batch.

What must be known of the whole step (weights, returns) is gathered first, in a
sweep without gradient, where the objective asks for it. Then every micro-batch
runs one forward pass of each model, one chunked sweep over the vocabulary and one
backward pass. Of several ranks each takes its share of the rollouts; every one knows
the whole step's tokens before its gradient and after it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tutelage import config as c
from tutelage.credit import Credit, StepTokens, assign_credit, needed_signals
from tutelage.data.collate import collate, cut_by_length, pack
from tutelage.metrics import (
    TokenTable,
    concatenate,
    last_positions,
    own_stops,
    served_statistics,
    stop_masses,
    token_statistics,
)
from tutelage.models.base import Teacher
from tutelage.models.local import LocalModel
from tutelage.models.prefixes import saves_enough
from tutelage.objective import (
    brake_gradient,
    logit_gradient,
    sampled_reward,
    target_logprobs,
    token_losses,
)
from tutelage.ops import divergences, logprobs
from tutelage.ops.logprobs import log_softmax_
from tutelage.ops.projection import chunk_rows, chunks, sweep
from tutelage.ops.support import top_k_ids
from tutelage.ops.weights import teachability
from tutelage.ranks import ALONE, Ranks
from tutelage.timings import Timings
from tutelage.types import Batch, Rollout, TokenScores

# FLOPs that take as long as one pass more, by kind of device: hundreds of small kernels.
_PASS_FLOPS = {"cpu": 1.5e9}
_PASS_FLOPS_ELSEWHERE = 4e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Everyone who has a say in a step."""

    student: LocalModel
    """Who learns."""
    teacher: Teacher
    """Who scores, in process or at a server."""
    references: Mapping[str, LocalModel]
    """Further frozen models, by the setting that asks for them."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which either side stops."""
        return self.student.stop_ids | self.teacher.stop_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGradient:
    """What accumulating a step gave, besides the gradients in the student's parameters."""

    loss: float
    """The step's loss: the objective's part and the brake's."""
    table: TokenTable
    """Per-token metrics, [N] each."""
    rows: Tensor
    """int64 [N]: which rollout each token belongs to."""
    positions: Tensor
    """int64 [N]: its place in the completion."""
    padding: float
    """Share of the processed positions that were padding."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What is passed through the models at once."""

    batch: Batch
    """As the student reads it."""
    teacher_batch: Batch
    """The same tokens under the prompts that the teacher reads."""
    places: Tensor
    """int64 [B]: which of the step's rollouts its rows are."""
    tokens: slice
    """Its place in the step's tokens."""


def accumulate(
    models: Models,
    objective: c.Objective,
    rollouts: Sequence[Rollout],
    *,
    micro_batch_size: int,
    aggregation: str,
    overlap_k: int,
    prompt_weights: Tensor | None = None,
    teacher_share: float = 1.0,
    fixed_advantage: float | None = None,
    timings: Timings | None = None,
    ranks: Ranks = ALONE,
) -> StepGradient:
    """Add the gradient of a step's loss to the student's parameters.

    One micro-batch of all rollouts and many small ones give the same gradient. Of several ranks
    each adds that of its share; their sum is the step's.
    """
    timings = timings or Timings()
    parts = micro_batches(models, rollouts, micro_batch_size, ranks)
    own = {
        "rows": torch.cat([part.places[part.batch.rows] for part in parts]),
        "positions": torch.cat([part.batch.positions for part in parts]),
    }
    with timings("signals"):
        own |= _signals(models, objective, parts)
    with timings("exchange"):
        everyone = ranks.gather_tensors(own)
    signals = concatenate(everyone)
    rows, positions = signals.pop("rows"), signals.pop("positions")
    begin = sum(len(tokens["rows"]) for tokens in everyone[: ranks.rank])
    credit = assign_credit(
        objective,
        aggregation,
        StepTokens(
            rollouts=rollouts,
            rows=rows,
            positions=positions,
            signals=signals,
            prompt_weights=prompt_weights,
        ),
        teacher_share,
        fixed_advantage,
    ).of(slice(begin, begin + len(own["rows"])))
    total, tables = 0.0, list[TokenTable]()
    for part in parts:
        with timings("score"), torch.no_grad():
            states = _States(models, objective, part, credit, overlap_k)
        with timings("update"):
            loss = sweep(models.student.hidden(part.batch), models.student.head, states.visit)
            loss.backward()
        total += loss.item()
        tables.append(concatenate(states.tables))
    processed = sum(part.batch.attention_mask.numel() for part in parts)
    used = sum(int(part.batch.attention_mask.sum()) for part in parts)
    sums = torch.tensor([total, processed, used], dtype=torch.float64)
    with timings("exchange"):
        everyone = ranks.gather_tensors({**concatenate(tables), "sums": sums})
    sums = torch.stack([tokens.pop("sums") for tokens in everyone]).sum(0)
    total, processed, used = sums.tolist()
    return StepGradient(
        loss=total,
        table=concatenate(everyone),
        rows=rows,
        positions=positions,
        padding=1 - used / processed,
    )


def accumulate_likelihood(
    student: LocalModel,
    rollouts: Sequence[Rollout],
    *,
    micro_batch_size: int,
    layout: Literal["padded", "packed"] = "padded",
) -> float:
    """Add the gradient of the mean -log p of all completion tokens, in nats; the mean itself.

    Prompts are read and not imitated. Where gradients are off it only measures.
    """
    tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
    order = sorted(range(len(rollouts)), key=lambda i: _length(rollouts[i]))
    total = 0.0
    for start in range(0, len(order), micro_batch_size):
        part = [rollouts[i] for i in order[start : start + micro_batch_size]]
        batch = pack(part) if layout == "packed" else collate(part)
        targets = batch.targets.to(student.device)

        def visit(rows: slice, logits: Tensor, targets: Tensor = targets) -> tuple[Tensor, Tensor]:
            logp = log_softmax_(logits)
            chosen = targets[rows].unsqueeze(-1)
            loss = -logp.gather(-1, chosen).sum() / tokens
            minus = torch.full_like(chosen, -1, dtype=logp.dtype)
            return loss, logp.exp_().scatter_add_(-1, chosen, minus).div_(tokens)

        loss = sweep(student.hidden(batch), student.head, visit)
        if torch.is_grad_enabled():
            loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def measure(
    models: Models,
    rollouts: Sequence[Rollout],
    *,
    micro_batch_size: int,
    overlap_k: int,
    objective: c.Objective | None = None,
    look: Callable[[Tensor, Tensor, Tensor | TokenScores], None] | None = None,
) -> tuple[TokenTable, Tensor]:
    """Per-token metrics of given rollouts in order, and which rollout each token is of.

    An `objective` on a support adds what that support holds of the teacher's distribution.
    `look` is shown all states, chunk by chunk: whose they are [n], log p [n, V], and log q.
    """
    if not rollouts:  # of a rank that was dealt none
        return {}, torch.zeros(0, dtype=torch.long)
    tables, rows = list[TokenTable](), list[Tensor]()
    for places in _cut(models, rollouts, micro_batch_size):
        batch, teacher_batch = _both_sides([rollouts[i] for i in places])
        rows.append(torch.tensor(places)[batch.rows])
        student = models.student.hidden(batch)
        teacher = models.teacher.judge(teacher_batch, _proposals(models.student, batch))
        last = last_positions(batch.rows)
        for part in _chunks(models.student, student):
            p = log_softmax_(models.student.head.logits(student[part]))
            q = teacher.at(part, p)
            table = _statistics(models, batch, part, p, q, last, overlap_k)
            if isinstance(objective, c.TopK):
                sampled = batch.targets[part].to(p.device)
                metrics = token_losses(objective, p, q, sampled).metrics
                table |= {key: value.cpu() for key, value in metrics.items()}
            tables.append(table)
            if look is not None:
                look(rows[-1][part], p, q)
    whose = torch.cat(rows)
    order = whose.argsort(stable=True)
    return {key: values[order] for key, values in concatenate(tables).items()}, whose[order]


@torch.no_grad()
def move_of_policy(student: LocalModel, rollouts: Sequence[Rollout], before: Tensor) -> Tensor:
    """KL(before || now) of the student in nats, k3 at each token of these rollouts; float64 [N].

    `before` holds the tokens' log-probabilities [N] when they were last scored. The mean over
    tokens is exact on average where the student of that time drew them.
    """
    batch = collate(rollouts)
    hidden = student.hidden(batch)
    now = [
        logprobs.gather(
            log_softmax_(student.head.logits(hidden[rows])), batch.targets[rows].to(hidden.device)
        )
        for rows in _chunks(student, hidden)
    ]
    change = torch.cat(now).cpu().double() - before.double()
    return change.expm1() - change


class _States:
    """The states of one micro-batch: visited chunk by chunk, each giving loss and gradient."""

    def __init__(
        self,
        models: Models,
        objective: c.Objective,
        part: MicroBatch,
        credit: Credit | None,
        overlap_k: int,
    ) -> None:
        self.models, self.objective, self.part = models, objective, part
        self.credit, self.overlap_k = credit, overlap_k
        proposals = _proposals(models.student, part.batch)
        self.teacher = models.teacher.judge(part.teacher_batch, proposals)
        self.references = {name: m.hidden(part.batch) for name, m in models.references.items()}
        self.last = last_positions(part.batch.rows)
        self.tables: list[TokenTable] = []

    def distributions(
        self, rows: slice, p: Tensor
    ) -> tuple[Tensor | TokenScores, Tensor | TokenScores, dict[str, Tensor]]:
        """log q of the teacher, of the target, and log-probabilities of the references [n, V]."""
        q = self.teacher.at(rows, p)
        references = {
            name: log_softmax_(self.models.references[name].head.logits(hidden[rows]))
            for name, hidden in self.references.items()
        }
        if isinstance(q, TokenScores):  # other targets than the teacher are refused at the start
            return q, q, references
        return q, target_logprobs(self.objective.target, p, q, references), references

    def visit(self, rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of these rows and its gradient in the logits."""
        assert self.credit is not None
        p = log_softmax_(logits)
        q, target, references = self.distributions(rows, p)
        sampled = self.part.batch.targets[rows].to(p.device)
        teacher, logprob, brake, baseline = (
            None if factor is None else factor[self.part.tokens][rows].to(p)
            for factor in (
                self.credit.teacher,
                self.credit.logprob,
                self.credit.brake,
                self.credit.baseline,
            )
        )
        assert teacher is not None
        probs = p.exp()
        table = _statistics(
            self.models, self.part.batch, rows, p, q, self.last, self.overlap_k, probs
        )
        output, gradient = logit_gradient(
            self.objective, p, target, sampled, teacher, logprob, baseline, probs
        )
        loss = (output.losses * teacher).sum()
        if brake is not None:
            divergence, pull = brake_gradient(p, references["brake"], brake)
            loss, gradient = loss + (divergence * brake).sum(), gradient.add_(pull)
        self.tables.append(table | {key: value.cpu() for key, value in output.metrics.items()})
        return loss, gradient


@torch.no_grad()
def _signals(
    models: Models, objective: c.Objective, parts: Sequence[MicroBatch]
) -> dict[str, Tensor]:
    """The per-token signals that the step's credit depends on, [N] each."""
    needed = needed_signals(objective)
    if not needed:
        return {}
    tables: list[TokenTable] = []
    for part in parts:
        states = _States(models, objective, part, None, 1)
        hidden = models.student.hidden(part.batch)
        for rows in _chunks(models.student, hidden):
            p = log_softmax_(models.student.head.logits(hidden[rows]))
            q, target, _ = states.distributions(rows, p)
            sampled = part.batch.targets[rows].to(p.device)
            tables.append(_signals_of(objective, needed, p, q, target, sampled))
    return concatenate(tables)


def _signals_of(
    objective: c.Objective,
    needed: set[str],
    p: Tensor,
    q: Tensor | TokenScores,
    target: Tensor | TokenScores,
    sampled: Tensor,
) -> TokenTable:
    table: TokenTable = {}
    if "entropy/student" in needed:
        table["entropy/student"] = logprobs.entropy(p)
    if isinstance(q, Tensor):  # weights that need all of it are refused for lists
        if "entropy/teacher" in needed:
            table["entropy/teacher"] = logprobs.entropy(q)
        if "kl/reverse" in needed:
            table["kl/reverse"] = divergences.reverse_kl(p, q)
        if "teachability" in needed:
            table["teachability"] = _teachability(objective, p, q)
    if "reward" in needed and isinstance(objective, c.Sampled):
        table["reward"] = sampled_reward(objective, p, target, sampled)
    if "loss" in needed:
        # The value of a sampled loss does not depend on its baseline.
        table["loss"] = token_losses(
            objective, p, target, sampled, torch.zeros_like(p[:, 0])
        ).losses
    return {key: values.cpu() for key, values in table.items()}


def _teachability(objective: c.Objective, p: Tensor, q: Tensor) -> Tensor:
    assert isinstance(objective.weight, c.TeachabilityWeight)
    ids = top_k_ids(p, min(objective.weight.k, p.shape[-1]))
    return teachability(p.gather(-1, ids), q.gather(-1, ids))


def _statistics(
    models: Models,
    batch: Batch,
    rows: slice,
    p: Tensor,
    q: Tensor | TokenScores,
    last: Tensor,
    k: int,
    probs: Tensor | None = None,
) -> TokenTable:
    sampled = batch.targets[rows].to(p.device)
    if isinstance(q, TokenScores):
        table, full = served_statistics(p, q, sampled, k), None
    else:
        table, full = token_statistics(p, q, sampled, k, probs), q
    own = models.student.stop_ids
    ended = last[rows] & torch.isin(batch.targets[rows], torch.tensor(sorted(own)))
    table |= stop_masses(p, full, last[rows], models.stop_ids)
    table |= own_stops(p, full, table["reward/mean"], ended, own)
    drift = table["student_logprob"].cpu() - batch.sampling_logprobs[rows]
    table["rollout/drift_k3"] = drift.expm1() - drift
    return {key: value.cpu() for key, value in table.items()}


def micro_batches(
    models: Models, rollouts: Sequence[Rollout], size: int, ranks: Ranks = ALONE
) -> list[MicroBatch]:
    """This rank's share of a step's rollouts, in batches of at most `size`."""
    parts: list[MicroBatch] = []
    offset = 0
    for part in _cut(models, rollouts, size, ranks):
        batch, teacher_batch = _both_sides([rollouts[i] for i in part])
        tokens = slice(offset, offset + len(batch.targets))
        parts.append(MicroBatch(batch, teacher_batch, torch.tensor(part), tokens))
        offset = tokens.stop
    return parts


def _cut(
    models: Models, rollouts: Sequence[Rollout], size: int, ranks: Ranks = ALONE
) -> list[list[int]]:
    """Places of this rank's rollouts in batches of at most `size`, so that little is padding.

    Neighbours in length are dealt to different ranks, so all have about as much to do, and they
    cut at the same places, so all run as many passes.
    """
    overhead = _pass_tokens(models, sum(map(_length, rollouts)))
    prompts = [rollout.prompt_ids for rollout in rollouts]
    if ranks.size == 1 and saves_enough(prompts, sum(map(_length, rollouts))):
        # Those of one prompt together, which is then read once.
        order = sorted(
            range(len(rollouts)), key=lambda i: (len(prompts[i]), prompts[i], _length(rollouts[i]))
        )
    else:
        order = sorted(range(len(rollouts)), key=lambda i: _length(rollouts[i]))
    own, longest = ranks.deal(order), order[ranks.size - 1 :: ranks.size]
    lengths = [_length(rollouts[i]) for i in longest]
    return [own[part] for part in cut_by_length(lengths, size, overhead)]


def _pass_tokens(models: Models, most: int) -> int:
    """Tokens that take as long as one pass more."""
    if not isinstance(models.teacher, LocalModel):
        return most  # a server makes its own batches: the more it is asked at once the better
    student, teacher = (
        sum(parameter.numel() for parameter in local.model.parameters())
        for local in (models.student, models.teacher)
    )
    flops = _PASS_FLOPS.get(models.student.device.type, _PASS_FLOPS_ELSEWHERE)
    # Small models compute slower than large ones, so for them a pass is not worth as many tokens.
    return int(min(256, max(16, flops / (6 * student + 2 * teacher))))


def _both_sides(rollouts: Sequence[Rollout]) -> tuple[Batch, Batch]:
    """The rollouts as the student and as the teacher reads them."""
    batch = collate(rollouts)
    if all(rollout.teacher_prompt_ids is None for rollout in rollouts):
        return batch, batch
    return batch, collate(rollouts, side="teacher")


def _proposals(student: LocalModel, batch: Batch) -> Callable[[int], Tensor]:
    """The student's k most likely tokens [N, k] at the states of a batch, computed when called."""

    @torch.no_grad()
    def propose(k: int) -> Tensor:
        hidden = student.hidden(batch)
        parts = _chunks(student, hidden)
        return torch.cat([top_k_ids(student.head.logits(hidden[part]), k) for part in parts])

    return propose


def _chunks(student: LocalModel, hidden: Tensor) -> list[slice]:
    return chunks(len(hidden), chunk_rows(student.vocabulary, hidden.device.type))


def _length(rollout: Rollout) -> int:
    return len(rollout.prompt_ids) + len(rollout.completion_ids)
