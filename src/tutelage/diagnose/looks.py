"""One teacher measured against the student on the student's own rollouts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from tutelage.alignment.bench import kind_of
from tutelage.alignment.estimates import Alignment, plain
from tutelage.alignment.spines import Candidate, read_by
from tutelage.data.verify import Verify, judge
from tutelage.diagnose.continuation import Continued, helps_until
from tutelage.diagnose.verdict import Evidence, Measured, Verdict
from tutelage.evaluation import Evaluation, Question
from tutelage.gradient import Models, measure
from tutelage.metrics import (
    Record,
    TokenTable,
    summarise_positions,
    summarise_rollouts,
    summarise_tokens,
)
from tutelage.models.base import Teacher
from tutelage.models.local import LocalModel
from tutelage.ops.alignment.pooling import Estimate
from tutelage.ops.intervals import difference_interval, pass_at_k, proportion_interval
from tutelage.runs.directory import finite
from tutelage.signals import Signal
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

LOOK_STEP = -2
_MICRO_BATCH = 32
_TWICE = 4
"""Rollouts that a teacher scores a second time, alone."""
_UNLIKELY = math.log(0.1)
_STYLE = frozenset(
    (
        *("wait", "hmm", "okay", "ok", "so", "well", "now", "let", "maybe", "perhaps"),
        *("actually", "alternatively", "first", "then", "next", "therefore", "thus", "hence"),
        *("finally", "however"),
    )
)
"""Words of manner rather than matter, in lower case."""


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
    positions: Mapping[str, Any] | None = None
    """The same by place in the completion."""
    kinds: Mapping[str, Mapping[str, float]] | None = None
    """By kind of token: share of tokens, and of the reverse KL."""
    capability: Mapping[str, Any] | None = None
    """Accuracy and pass@k of both, with the paired gap."""
    rescue: tuple[Continued, ...] = ()
    """Continuations of the student's answers by both sides."""
    alignment: Mapping[str, Any] | None = None
    """Pooled gradient alignment of the run's objective."""
    soundness: Mapping[str, float] | None = None
    """What should be 0: the teacher scoring twice, the student scoring itself."""
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
            "capability": self.capability,
            "alignment": self.alignment,
            "agreement": self.agreement,
            "kinds": self.kinds,
            "rescue": [part.to_dict() for part in self.rescue],
            "rescue_helps_until": helps_until(self.rescue),
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
    teacher: Teacher,
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


def grouped(rollouts: Sequence[Rollout], samples: int, *, was_judged: bool) -> Evaluation:
    """Rollouts of equally many samples a question, as an evaluation."""
    return Evaluation(
        tuple(Question(tuple(rollouts[i : i + samples])) for i in range(0, len(rollouts), samples)),
        was_judged=was_judged,
    )


def agree(models: Models, rollouts: Sequence[Rollout], k: int) -> tuple[TokenTable, torch.Tensor]:
    """Token table of rollouts under a pair, and the rollout of each token."""
    return measure(models, rollouts, micro_batch_size=_MICRO_BATCH, overlap_k=k)


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


def kinds_of(
    student: LocalModel, rollouts: Sequence[Rollout], table: TokenTable
) -> dict[str, dict[str, float]]:
    """Share of the tokens and of the reverse KL that falls on each kind of token."""
    kinds = [kind for r in rollouts for kind in map(_kind, student.tokens(r.completion_ids))]
    divergence = table["kl/reverse"].double().clamp_min(0)
    total = divergence.sum().item()
    found: dict[str, dict[str, float]] = {}
    for kind in sorted(set(kinds)):
        mine = torch.tensor([k == kind for k in kinds])
        found[kind] = {"tokens": mine.double().mean().item()}
        if total > 0:
            found[kind]["kl"] = divergence[mine].sum().item() / total
    return found


def _kind(text: str) -> str:
    return "style" if text.strip().lower() in _STYLE else kind_of(text)


def capability_of(student: Evaluation, teacher: Evaluation, samples: int) -> Record:
    """Accuracy and pass@k of both sides, the gaps paired by question, who solves what alone."""
    ours = {q.rollouts[0].prompt.id: q for q in student.questions if q.judged}
    theirs = {q.rollouts[0].prompt.id: q for q in teacher.questions if q.judged}
    names = [name for name in ours if name in theirs]
    if not names:
        return {}
    pairs = [(ours[name], theirs[name]) for name in names]
    record: Record = {"questions": len(names), "samples": samples}
    columns = {
        "accuracy": [(fmean(a.judged), fmean(b.judged)) for a, b in pairs],
        f"pass@{samples}": [
            (_pass(a, samples), _pass(b, samples))
            for a, b in pairs
            if min(len(a.judged), len(b.judged)) >= samples
        ],
    }
    for key, values in columns.items():
        if not values:
            continue
        own, other = [s for s, _ in values], [t for _, t in values]
        low, high = difference_interval(other, own)
        record[key] = {
            "student": fmean(own),
            "teacher": fmean(other),
            "gap": fmean(other) - fmean(own),
            "gap_low": low,
            "gap_high": high,
        }
    solved = [(max(a.judged) > 0, max(b.judged) > 0) for a, b in pairs]
    record["solved_by_teacher_alone"] = fmean(t and not s for s, t in solved)
    record["solved_by_student_alone"] = fmean(s and not t for s, t in solved)
    return record


def _pass(question: Question, k: int) -> float:
    return pass_at_k(round(sum(question.judged)), len(question.judged), k)


def novelty_of(models: Models, answers: Evaluation, k: int) -> Record:
    """What the student thinks of the teacher's right answers, token by token.

    Absent where the teacher gave none.
    """
    right = [r for r in answers.rollouts if r.reward == 1 and r.completion_ids]
    if not right:
        return {}
    table, _ = agree(models, right, k)
    logprobs = table["student_logprob"].double()
    return {
        "tokens": len(logprobs),
        "surprise": -logprobs.mean().item(),
        "unlikely": (logprobs < _UNLIKELY).double().mean().item(),
    }


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


def accuracy_of(answers: Evaluation) -> tuple[float, float, float] | None:
    """Accuracy with the ends of its interval over questions; None where none was judged."""
    if not answers.accuracies:
        return None
    return fmean(answers.accuracies), *proportion_interval(answers.accuracies)


def evidence_of(
    name: str,
    agreement: Record,
    capability: Record,
    rescue: Sequence[Continued],
    found: Alignment | None,
    student_accuracy: tuple[float, float, float] | None,
    *,
    has_outcomes: bool,
) -> Evidence:
    """The part of a look that a verdict rests on."""
    gap = capability.get("accuracy")
    early = min((c for c in rescue if c.outcome == "wrong"), key=lambda c: c.depth, default=None)
    pooled = None if found is None else found.pooled.get((name, "objective"))
    versus = None if found is None else found.differences.get((name, "baseline"))
    return Evidence(
        student=None if student_accuracy is None else Measured(*student_accuracy),
        gap=None if gap is None else Measured(gap["gap"], gap["gap_low"], gap["gap_high"]),
        advantage=None if pooled is None else _measured(pooled.advantage),
        has_outcomes=has_outcomes,
        rescue=None if early is None else Measured(early.gain, early.low, early.high),
        shared_mass=agreement.get("overlap/mass_student"),
        truncated=agreement.get("rollout/truncated"),
        stop_mass_student=agreement.get("rollout/eos_mass_student"),
        stop_mass_teacher=agreement.get("rollout/eos_mass_teacher"),
        over_baseline=None if versus is None else _measured(versus.advantage),
    )


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
