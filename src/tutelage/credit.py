"""How much each token of a step counts: weights, returns and advantages.

These need the whole step (all micro-batches), so they are settled before the
gradient is computed: the loss of a step is

    sum_t share_t * (teacher_t * loss_t + logprob_t * log p(y_t) + brake * KL(p || r)_t)

with every factor but the losses fixed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tutelage import config as c
from tutelage.errors import UsageError
from tutelage.ops import weights as w
from tutelage.types import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Fixed factors of N tokens; float64 [N]."""

    teacher: Tensor
    """Coefficient of the objective's loss, shares included."""
    logprob: Tensor | None
    """Coefficient of log p(y), shares included: returns to go and rewards."""
    brake: Tensor | None
    """Coefficient of KL(p || reference), shares included."""
    baseline: Tensor | None
    """The other tokens' mean reward, for `sampled` with that baseline."""

    def of(self, tokens: slice) -> "Credit":
        """The factors of some of the tokens."""
        return Credit(
            teacher=self.teacher[tokens],
            logprob=None if self.logprob is None else self.logprob[tokens],
            brake=None if self.brake is None else self.brake[tokens],
            baseline=None if self.baseline is None else self.baseline[tokens],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTokens:
    """The N scored tokens of a step, rollout by rollout and in order within each."""

    rollouts: Sequence[Rollout]
    """The step's rollouts."""
    rows: Tensor
    """int64 [N]: which rollout a token belongs to."""
    positions: Tensor
    """int64 [N]: its place there."""
    signals: Mapping[str, Tensor]
    """float [N] each: what `needed_signals` asked for."""
    prompt_weights: Tensor | None = None
    """float [R]: weight of each rollout's prompt; None counts all the same."""


def needed_signals(objective: c.Objective) -> set[str]:
    """Which per-token signals of the step must be known before its gradient."""
    needed: set[str] = set()
    match objective.weight:
        case c.TeacherEntropyWeight() | c.ReliabilityWeight():
            needed.add("entropy/teacher")
        case c.TipWeight():
            needed |= {"entropy/student", "kl/reverse"}
        case c.TeachabilityWeight():
            needed.add("teachability")
        case c.ClipWeight():
            needed.add("loss")
        case _:
            pass
    if objective.return_to_go is not None:
        needed.add("loss")
    if isinstance(objective, c.Sampled) and isinstance(objective.baseline, c.BatchMeanBaseline):
        needed.add("reward")
    return needed


def assign_credit(
    objective: c.Objective,
    aggregation: str,
    tokens: StepTokens,
    teacher_share: float = 1.0,
    fixed_advantage: float | None = None,
) -> Credit:
    """The factors of every token of a step.

    `teacher_share` is what the schedule of the reward leaves of the teacher's term. A fixed
    advantage of every token takes that term's place.
    """
    lengths = torch.bincount(tokens.rows, minlength=len(tokens.rollouts))
    shares = token_shares(aggregation, tokens.rows, lengths)
    weights = token_weights(objective.weight, tokens, lengths)
    if tokens.prompt_weights is not None:
        weights = weights * tokens.prompt_weights.double()[tokens.rows]
    teacher = teacher_share * weights
    logprob = torch.zeros_like(weights)
    if fixed_advantage is not None:
        logprob -= fixed_advantage * teacher
        teacher = torch.zeros_like(weights)
    if objective.return_to_go is not None:
        losses = teacher * tokens.signals["loss"].double()
        logprob += returns_to_go(losses, tokens.rows, objective.return_to_go)
    if objective.reward is not None:
        advantages = group_advantages(tokens.rollouts)
        logprob -= objective.reward.coefficient * advantages[tokens.rows]
    has_logprob = (
        objective.return_to_go is not None
        or objective.reward is not None
        or fixed_advantage is not None
    )
    brake = objective.brake
    return Credit(
        teacher=shares * teacher,
        logprob=shares * logprob if has_logprob else None,
        brake=shares * brake.coefficient if brake is not None else None,
        baseline=mean_of_others(tokens.signals["reward"].double())
        if "reward" in tokens.signals
        else None,
    )


def token_shares(aggregation: str, rows: Tensor, lengths: Tensor) -> Tensor:
    """Share of each token in the loss, summing to 1 over the whole step."""
    if aggregation == "token_mean":
        return torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    return 1 / ((lengths > 0).sum() * lengths[rows].double())


def token_weights(weight: c.TokenWeight, tokens: StepTokens, lengths: Tensor) -> Tensor:
    """Weight of each token by the configured rule, float64 [N]."""
    signals, own_length = tokens.signals, lengths[tokens.rows]
    match weight:
        case c.UniformWeight():
            return torch.ones(len(tokens.rows), dtype=torch.float64)
        case c.ClipWeight(most=most):
            return most / signals["loss"].double().abs().clamp_min(most)
        case c.PositionWeight(slope=slope, direction=direction):
            raw = w.by_position(tokens.positions, own_length, slope, direction == "up")
        case c.TeacherEntropyWeight(favour=favour):
            raw = w.by_entropy(signals["entropy/teacher"], favour == "high")
        case c.TipWeight(unsure=unsure, far=far):
            raw = w.tip(signals["entropy/student"], signals["kl/reverse"], unsure, far)
        case c.TeachabilityWeight():
            raw = signals["teachability"]
        case c.CorrectnessWeight(right=right, wrong=wrong):
            verdicts = [
                1.0 if r.reward is None else right if r.reward >= 0.5 else wrong
                for r in tokens.rollouts
            ]
            raw = torch.tensor(verdicts, dtype=torch.float64)[tokens.rows]
        case c.ReliabilityWeight(table=table, gate=gate):
            place = tokens.positions / (own_length - 1).clamp_min(1)
            raw = w.from_table(place, signals["entropy/teacher"].float(), *read_table(table))
            raw = (raw > 0).double() if gate else raw
    raw = raw.double()
    return w.mean_one(raw) if weight.normalise else raw


def read_table(path: str) -> tuple[Tensor, Tensor, Tensor]:
    """Inner bin edges of relative position and of entropy, and the table of weights.

    Raises:
        UsageError: the file is missing, or its shapes do not fit.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        positions, entropies, table = (
            torch.tensor(content[key], dtype=torch.float32)
            for key in ("positions", "entropies", "weights")
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"reliability table {path} cannot be read: {error!r}") from None
    for name, edges in (("positions", positions), ("entropies", entropies)):
        if edges.dim() != 1 or not (edges.isfinite().all() and (edges.diff() > 0).all()):
            raise UsageError(f"reliability table {path}: {name} are no rising list of numbers")
    wanted = (len(positions) + 1, len(entropies) + 1)
    if tuple(table.shape) != wanted or not (table.isfinite() & (table >= 0)).all():
        raise UsageError(
            f"reliability table {path} has weights of shape {tuple(table.shape)}; with "
            f"{len(positions)} position and {len(entropies)} entropy edges it must be {wanted}, "
            "none below 0"
        )
    return positions, entropies, table


def returns_to_go(losses: Tensor, rows: Tensor, gamma: float) -> Tensor:
    """sum over s > t of gamma^(s - t) loss_s within each rollout, float [N]."""
    returns = torch.zeros_like(losses)
    values, owners = losses.tolist(), rows.tolist()
    running = 0.0
    for place in range(len(values) - 2, -1, -1):
        ahead = place + 1
        running = gamma * (values[ahead] + running) if owners[ahead] == owners[place] else 0.0
        returns[place] = running
    return returns


def group_advantages(rollouts: Sequence[Rollout]) -> Tensor:
    """(reward - mean) / standard deviation among the judged rollouts of each prompt, float64 [R].

    Groups of equal rewards, and rollouts that were not judged, have advantage 0 (GRPO).
    """
    advantages = torch.zeros(len(rollouts), dtype=torch.float64)
    for members in _groups(rollouts).values():
        judged = [i for i in members if rollouts[i].reward is not None]
        rewards = torch.tensor([rollouts[i].reward for i in judged], dtype=torch.float64)
        if len(judged) > 1 and (deviation := rewards.std(correction=0)) > 0:
            advantages[judged] = (rewards - rewards.mean()) / deviation
    return advantages


def pass_rate_weights(rollouts: Sequence[Rollout]) -> Tensor:
    """p (1 - p) of each prompt's pass rate, scaled to mean 1, float64 [R].

    Where no prompt is passed by some and failed by others, all count 0. A prompt
    without a judged rollout counts as one of pass rate 1/2.
    """
    weights = torch.zeros(len(rollouts), dtype=torch.float64)
    for members in _groups(rollouts).values():
        rewards = [r for i in members if (r := rollouts[i].reward) is not None]
        rate = sum(rewards) / len(rewards) if rewards else 0.5
        weights[members] = rate * (1 - rate)
    return w.mean_one(weights)


def gate_weights(
    rollouts: Sequence[Rollout], rates: Mapping[str, float | None], threshold: float
) -> Tensor:
    """Weight of each rollout by the teacher's pass rate on its prompt, float64 [R].

    Prompts that reach the threshold share the weight of all that were judged, so that their mean
    is 1; where none does, all of these count 0. The gate decides nothing about a prompt whose
    rate is None, so its rollouts count 1, as they would without a gate.
    """
    known = [rates[rollout.prompt.id] for rollout in rollouts]
    weights = torch.ones(len(rollouts), dtype=torch.float64)
    judged = torch.tensor([rate is not None for rate in known], dtype=torch.bool)
    is_open = [float(rate >= threshold) for rate in known if rate is not None]
    weights[judged] = w.mean_one(torch.tensor(is_open, dtype=torch.float64))
    return weights


def mean_of_others(values: Tensor) -> Tensor:
    """The mean of all other entries; 0 for a single one."""
    return (values.sum() - values) / max(1, len(values) - 1)


def _groups(rollouts: Sequence[Rollout]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        groups.setdefault(rollout.prompt.id, []).append(i)
    return groups
