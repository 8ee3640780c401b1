"""A first look at a pair, before any training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from tutelage.data.verify import Verify
from tutelage.gradient import Models, measure
from tutelage.metrics import overlap_k, summarise_rollouts, summarise_tokens
from tutelage.models.local import LocalModel
from tutelage.ops.intervals import bootstrap_interval, proportion_interval
from tutelage.runs.directory import finite
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

LookVerdict = Literal["promising", "incompatible", "nothing to learn"]

# Shared mass is how much of what the student does lies among the teacher's likely tokens.
# In the lab, pairs of one thinking pattern stay above .9 and pairs of two stay below .65
# (docs/log.md); the ratio of shared tokens does not separate them.
COMPATIBLE_MASS = 0.8


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """What one batch of student rollouts says about a teacher."""

    teacher: str
    """Its name."""
    overlap_mass_student: float
    """Student's probability of the tokens both find likely, at student-visited states."""
    overlap_ratio: float
    """Share of equal tokens in both top-k sets."""
    reverse_kl: float
    """KL(student || teacher), nats per token."""
    entropy_gap: float
    """Mean distance of the two entropies, nats."""
    student_accuracy: float
    """One sample a problem."""
    student_interval: tuple[float, float]
    """95 % interval of it."""
    teacher_accuracy: float
    """One sample a problem, from the teacher itself."""
    teacher_interval: tuple[float, float]
    """95 % interval of it."""
    gap_interval: tuple[float, float]
    """95 % interval of teacher minus student, paired by problem."""
    verdict: LookVerdict
    """What to expect of training."""
    reason: str
    """One line."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def first_look(
    student: LocalModel,
    teachers: dict[str, LocalModel],
    prompts: Sequence[RenderedPrompt],
    verify: Verify,
    params: SamplingParams,
    *,
    metrics_k: int = 16,
    seed: int = 0,
) -> list[FirstLook]:
    """Compare every teacher with the student on the same student rollouts."""
    k = overlap_k(metrics_k, student.vocabulary)
    rollouts = student.sample(prompts, params, seed=seed, step=-2)
    right = _judge(rollouts, verify)
    looks: list[FirstLook] = []
    for name, teacher in teachers.items():
        record = _agreement(student, teacher, rollouts, k)
        teacher_right = _judge(teacher.sample(prompts, params, seed=seed, step=-2), verify)
        gap = bootstrap_interval(
            [np.array(teacher_right), np.array(right)], lambda t, s: float(t.mean() - s.mean())
        )
        assert gap is not None
        mass, kl = float(record["overlap/mass_student"]), float(record["kl/reverse"])
        verdict, reason = _verdict(mass, gap)
        looks.append(
            FirstLook(
                teacher=name,
                overlap_mass_student=mass,
                overlap_ratio=float(record["overlap/ratio"]),
                reverse_kl=kl,
                entropy_gap=float(record["entropy/gap"]),
                student_accuracy=fmean(right),
                student_interval=proportion_interval(right),
                teacher_accuracy=fmean(teacher_right),
                teacher_interval=proportion_interval(teacher_right),
                gap_interval=gap,
                verdict=verdict,
                reason=reason,
            )
        )
    return looks


def _verdict(mass: float, gap: tuple[float, float]) -> tuple[LookVerdict, str]:
    if mass < COMPATIBLE_MASS:
        return "incompatible", (
            f"the teacher finds only {mass:.0%} of what the student does likely "
            f"(below {COMPATIBLE_MASS:.0%}): another thinking pattern; cold-start first"
        )
    if gap[0] <= 0:
        return "nothing to learn", (
            f"the teacher is not better on these problems (accuracy gap {gap[0]:+.2f} to "
            f"{gap[1]:+.2f})"
        )
    return "promising", (
        f"same thinking pattern ({mass:.0%} shared mass) and more able by {gap[0]:+.2f} to "
        f"{gap[1]:+.2f}"
    )


def _judge(rollouts: Sequence[Rollout], verify: Verify) -> list[float]:
    return [verify(r.prompt, r.text) or 0.0 for r in rollouts]


def _agreement(
    student: LocalModel, teacher: LocalModel, rollouts: Sequence[Rollout], k: int
) -> dict[str, Any]:
    models = Models(student=student, teacher=teacher, references={})
    table, rows = measure(models, rollouts, micro_batch_size=64, overlap_k=k)
    return finite(summarise_tokens(table) | summarise_rollouts(rollouts, table, rows))
