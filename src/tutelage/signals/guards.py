"""Guards: what is watched while a run goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Something a rule noticed."""

    name: str
    """Which rule."""
    severity: Literal["warning", "stop"]
    """Whether the run must end."""
    evidence: str
    """The numbers behind it."""
    advice: str
    """The setting to change."""


def non_finite(records: Records, limit: int) -> Signal | None:
    """The last `limit` steps all had a loss or gradient that is not finite."""
    last = records[-limit:]
    if len(last) < limit or any(record.get("applied", True) for record in last):
        return None
    return Signal(
        name="non_finite",
        severity="stop",
        evidence=f"loss or gradient was not finite in {limit} steps in a row; none was applied",
        advice="lower optimizer.lr or optimizer.grad_clip, and check both models for NaN weights",
    )


def truncation(records: Records, share: float, window: int) -> Signal | None:
    """Rollouts stopped ending: nearly all are cut at the limit, and at first they were not."""
    means = _first_and_last(records, "rollout/truncated", window)
    if means is None or means[1] < share or means[0] >= share:
        return None
    return Signal(
        name="truncation",
        severity="warning",
        evidence=f"truncated rollouts went from {means[0]:.0%} to {means[1]:.0%}",
        advice="check that both sides stop at the same ids; raise rollout.max_new_tokens",
    )


def length(records: Records, factor: float, window: int) -> Signal | None:
    """Rollouts became much longer, or much shorter, than they began."""
    means = _first_and_last(records, "rollout/length", window)
    if means is None or means[0] == 0:
        return None
    ratio = means[1] / means[0]
    if 1 / factor < ratio < factor:
        return None
    grew = ratio >= factor
    return Signal(
        name="length_inflation" if grew else "length_collapse",
        severity="warning",
        evidence=f"the rollouts' mean length went from {means[0]:.1f} to {means[1]:.1f} tokens",
        advice=(
            "check that both sides stop at the same ids; lower rollout.max_new_tokens"
            if grew
            else "the student learns to stop where agreement is easy: use objective top_k with "
            "tail bucket in place of sampled, or lower optimizer.lr"
        ),
    )


def of_probes(probes: Records, patience: int) -> Signal | None:
    """What the probes of a run say of its teacher, or of its student."""
    return exhausted(probes, patience) or collapsed(probes, patience)


def exhausted(probes: Records, patience: int) -> Signal | None:
    """The last `patience` probes of the present teacher found no advantage above 0.

    Probes on other prompts than the present ones, under a curriculum, do not count. One without
    outcome signal, where every rollout was right or every one wrong, says nothing either way.
    """
    last = probes[-patience:]
    if len(last) < patience:
        return None
    if len({(record["alignment/teacher"], record.get("alignment/window")) for record in last}) > 1:
        return None
    if any("alignment/advantage/low" not in r or r["alignment/advantage/low"] > 0 for r in last):
        return None
    now = last[-1]
    return Signal(
        name="teacher_exhausted",
        severity="warning",
        evidence=(
            f"the advantage of {now['alignment/teacher']} was not above 0 in {patience} probes in "
            f"a row (last {now['alignment/advantage']:.4f}, from "
            f"{now['alignment/advantage/low']:.4f})"
        ),
        advice="its choices no longer lead to more right answers: stop here, or change the "
        "teacher or its context",
    )


def collapsed(probes: Records, patience: int) -> Signal | None:
    """All rollouts of the last `patience` probes were wrong, and before that some were right."""
    last, before = probes[-patience:], probes[:-patience]
    if len(last) < patience or any(record.get("alignment/accuracy") != 0 for record in last):
        return None
    solved = [record for record in before if record.get("alignment/accuracy", 0) > 0]
    if not solved:
        return None
    then = solved[-1]
    return Signal(
        name="student_collapsed",
        severity="warning",
        evidence=(
            f"every natural rollout was wrong in {patience} probes in a row, and "
            f"{then['alignment/accuracy']:.0%} of them were right at step {then['step']}"
        ),
        advice=f"nothing can be measured on a student that is never right: go back to step "
        f"{then['step']} with another teacher, a lower optimizer.lr or an objective.brake",
    )


def drift(records: Records, limit: float) -> Signal | None:
    """Rollouts of the current policy are not what the trainer's own weights would draw."""
    last = records[-1] if records else {}
    measured = last.get("rollout/drift_k3")
    if measured is None or measured <= limit or last.get("rollout/age", 0) > 0:
        return None
    return Signal(
        name="engine_drift",
        severity="warning",
        evidence=f"sampling and training log-probabilities of the same weights differ by a k3 of "
        f"{measured:.3g} nats a token",
        advice="run the student's server in float32 with its default --logprobs-mode, and check "
        "that it samples from the same model",
    )


def retired(
    evaluations: Records, teacher_accuracy: float | None, fraction: float, patience: int
) -> bool:
    """Whether the teacher has nothing left to give, now or at an earlier evaluation.

    That is when the student has reached a fraction of its accuracy and the reverse KL has
    not fallen for `patience` evaluations in a row.
    """
    if teacher_accuracy is None:
        return False
    lowest, waited = float("inf"), 0
    for record in evaluations:
        divergence = record.get("kl/reverse")
        if divergence is None:  # undefined says neither that it fell nor that it did not
            continue
        waited = 0 if divergence < lowest else waited + 1
        lowest = min(lowest, divergence)
        near = record.get("accuracy", 0.0) >= fraction * teacher_accuracy
        if near and waited >= patience:
            return True
    return False


def _first_and_last(records: Records, key: str, window: int) -> tuple[float, float] | None:
    values = [record[key] for record in records if key in record]
    if len(values) < 2 * window:
        return None
    return fmean(values[:window]), fmean(values[-window:])
