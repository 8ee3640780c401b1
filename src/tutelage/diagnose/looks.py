"""One teacher measured against the student on the student's own rollouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tutelage.alignment.estimates import Alignment, plain
from tutelage.alignment.spines import Candidate, read_by
from tutelage.data.verify import Verify, judge
from tutelage.diagnose.continuation import Continued, helps_until
from tutelage.diagnose.findings import agree, grouped
from tutelage.diagnose.prediction import Prediction
from tutelage.diagnose.verdict import Evidence, Measured, Verdict
from tutelage.evaluation import Evaluation
from tutelage.gradient import Models
from tutelage.metrics import (
    Record,
    TokenTable,
    summarise_positions,
    summarise_rollouts,
    summarise_tokens,
)
from tutelage.models.base import Sampler
from tutelage.ops.alignment.pooling import Estimate
from tutelage.runs.directory import finite
from tutelage.signals import Signal
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

LOOK_STEP = -2
_TWICE = 4
"""Rollouts that a teacher scores a second time, alone."""
_REPEATS_WITHIN = 0.1
"""Nats a token that rounding in bfloat16 explains."""
_ITSELF_WITHIN = 1e-3


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was found about one teacher on one set of questions."""

    teacher: str
    """Its name."""
    prompt_set: str
    """The questions; `run` are the run's own."""
    verdict: Verdict
    """What to do with it."""
    signals: tuple[Signal, ...] = ()
    """What was noticed without weights."""
    agreement: Mapping[str, Any] | None = None
    """The metrics of a step at student-visited states (docs/metrics)."""
    intervals: Mapping[str, tuple[float, float]] | None = None
    """95 % intervals of some of them, by key."""
    positions: Mapping[str, Any] | None = None
    """The same by place in the completion."""
    kinds: Mapping[str, Mapping[str, float]] | None = None
    """By kind of token: share of tokens, and of the reverse KL."""
    capability: Mapping[str, Any] | None = None
    """Accuracy and pass@k of both, with the paired gap."""
    rescue: tuple[Continued, ...] = ()
    """Continuations of the student's answers by both sides."""
    familiar: Mapping[str, Any] | None = None
    """Student answers that the teacher might have written: their share, and the gain of early
    continuations of them where most answers are not."""
    alignment: Mapping[str, Any] | None = None
    """Pooled gradient alignment of the run's objective."""
    soundness: Mapping[str, float] | None = None
    """What should be 0: the teacher scoring twice, the student scoring itself."""
    prediction: Prediction | None = None
    """The gain that pairs of the lab's population let expect."""
    baseline: Mapping[str, Any] | None = None
    """How the teacher differs from its baseline where the student goes."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what was not measured."""
        told = {
            "teacher": self.teacher,
            "prompt_set": self.prompt_set,
            **self.verdict.to_dict(),
            "signals": [
                {
                    "name": s.name,
                    "severity": s.severity,
                    "evidence": s.evidence,
                    "advice": s.advice,
                }
                for s in self.signals
            ],
            "prediction": self.prediction and self.prediction.to_dict(),
            "capability": self.capability,
            "alignment": self.alignment,
            "agreement": self.agreement,
            "intervals": self.intervals,
            "kinds": self.kinds,
            "rescue": [part.to_dict() for part in self.rescue],
            "rescue_helps_until": helps_until(self.rescue),
            "familiar": self.familiar,
            "soundness": self.soundness,
            "baseline": self.baseline,
            "positions": self.positions,
        }
        return {key: value for key, value in told.items() if value not in (None, [], ())}


def views_of(
    candidate: Candidate, rollouts: Sequence[Rollout], use_chat_template: bool
) -> list[Rollout]:
    """The rollouts under the prompts that a teacher reads, without those it has nothing to read at.

    A context may show other answers to the question; a question without any has no view.
    """
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt.id, []).append(rollout)
    seen: list[Rollout] = []
    for rollout in rollouts:
        if candidate.view is None:
            seen.append(rollout)
            continue
        ids = read_by(candidate, rollout, groups[rollout.prompt.id], None, use_chat_template)
        if ids is not None:
            seen.append(replace(rollout, teacher_prompt_ids=ids))
    return seen


def sample_teacher(
    teacher: Sampler,
    rollouts: Sequence[Rollout],
    verify: Verify | None,
    params: SamplingParams,
    *,
    samples: int,
    seed: int,
) -> Evaluation:
    """The teacher's own answers to the questions of these rollouts, as it reads them."""
    first: dict[str, Rollout] = {}
    for rollout in rollouts:
        first.setdefault(rollout.prompt.id, rollout)
    asked = [
        RenderedPrompt(prompt=r.prompt, ids=r.teacher_prompt_ids or r.prompt_ids)
        for r in first.values()
    ]
    drawn = teacher.sample(asked, params, group_size=samples, seed=seed, step=LOOK_STEP)
    drawn = drawn if verify is None else judge(drawn, verify)
    return grouped(drawn, samples, was_judged=verify is not None)


def agreement_of(rollouts: Sequence[Rollout], table: TokenTable, rows: torch.Tensor) -> Record:
    """The metrics of a step."""
    return finite(summarise_tokens(table)) | finite(summarise_rollouts(rollouts, table, rows))


def positions_of(table: TokenTable, rows: torch.Tensor, longest: int) -> dict[str, Any]:
    """The metrics by place in the completion."""
    counts = torch.bincount(rows)
    starts = torch.cumsum(counts, 0) - counts
    places = torch.arange(len(rows)) - starts[rows]
    series = summarise_positions(table, places, longest)
    return {k: finite(part) if isinstance(part, dict) else part for k, part in series.items()}


def soundness_of(
    models: Models, rollouts: Sequence[Rollout], table: TokenTable, rows: torch.Tensor, k: int
) -> dict[str, float]:
    """Largest difference of two scores of one rollout, and of the student from itself, in nats."""
    few = list(rollouts[:_TWICE])
    again = torch.cat([agree(models, [r], k)[0]["teacher_logprob"] for r in few])
    together = table["teacher_logprob"][rows < len(few)]
    own = Models(student=models.student, teacher=models.student, references={})
    plainly = [replace(r, teacher_prompt_ids=None) for r in few]
    return {
        "teacher_twice": (again - together).abs().max().item(),
        "student_itself": agree(own, plainly, k)[0]["kl/reverse"].abs().max().item(),
    }


def unsound(name: str, soundness: Mapping[str, float]) -> list[Signal]:
    """What should be 0 and is not."""
    found: list[Signal] = []
    if (apart := soundness["teacher_twice"]) > _REPEATS_WITHIN:
        found.append(
            Signal(
                name="teacher_not_repeatable",
                severity="warning",
                evidence=f"{name} scores one rollout up to {apart:.2g} nats a token apart, "
                "together with others and alone",
                advice="its scores are partly noise: use dtype float32, or a server that scores "
                "in full precision",
            )
        )
    if (apart := soundness["student_itself"]) > _ITSELF_WITHIN:
        found.append(
            Signal(
                name="student_not_itself",
                severity="warning",
                evidence=f"the student scored by itself is {apart:.2g} nats from itself",
                advice="a divergence of this size means nothing here",
            )
        )
    return found


def evidence_of(
    name: str,
    agreement: Record | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    capability: Record | None = None,
    rescue: Sequence[Continued] = (),
    familiar: Mapping[str, Any] | None = None,
    found: Alignment | None = None,
    student_accuracy: tuple[float, float, float] | None = None,
    *,
    has_outcomes: bool = True,
) -> Evidence:
    """The part of a look that a verdict rests on."""
    agreement, intervals, capability = agreement or {}, intervals or {}, capability or {}
    gap = capability.get("accuracy")
    early = min((c for c in rescue if c.outcome == "wrong"), key=lambda c: c.depth, default=None)
    pooled = None if found is None else found.pooled.get((name, "objective"))
    right = capability.get("right_answers") or {}

    def of_right(key: str) -> Measured | None:
        return Measured(right[key], *right[f"{key}_interval"]) if key in right else None

    versus = None if found is None else found.differences.get((name, "baseline"))
    return Evidence(
        student=None if student_accuracy is None else Measured(*student_accuracy),
        gap=None if gap is None else Measured(gap["gap"], gap["gap_low"], gap["gap_high"]),
        advantage=None if pooled is None else _measured(pooled.advantage),
        has_outcomes=has_outcomes,
        rescue=None if early is None else Measured(early.gain, early.low, early.high),
        shared_mass=agreement.get("overlap/mass_student"),
        shared_mass_interval=intervals.get("overlap/mass_student"),
        familiar=_told(familiar, "share"),
        familiar_gain=_told(familiar, "gain"),
        within_reach=of_right("within_reach"),
        passable=of_right("passable"),
        kl=agreement.get("kl/reverse"),
        truncated=agreement.get("rollout/truncated"),
        stop_mass_student=agreement.get("rollout/eos_mass_student"),
        stop_mass_teacher=agreement.get("rollout/eos_mass_teacher"),
        over_baseline=None if versus is None else _measured(versus.advantage),
    )


def _told(part: Mapping[str, Any] | None, key: str) -> Measured | None:
    estimate = (part or {}).get(key)
    return None if estimate is None else Measured(estimate["value"], *estimate["interval"])


def _measured(estimate: Estimate | None) -> Measured | None:
    if estimate is None or estimate.interval is None:
        return None
    return Measured(estimate.value, *estimate.interval)


def alignment_of(found: Alignment | None, name: str) -> dict[str, Any] | None:
    """The pooled numbers of one teacher, in all and by outcome of the student's answer."""
    if found is None or (name, "objective") not in found.pooled:
        return None
    told: dict[str, Any] = found.to_dict()["teachers"][name]["objectives"]["objective"]
    by = told.pop("by", {})
    return plain(told | {"by": {kind: by[kind] for kind in ("outcome", "depth") if kind in by}})
