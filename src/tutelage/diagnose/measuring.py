"""Every teacher measured on one set of questions."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from tutelage.alignment.estimates import Alignment, plain
from tutelage.alignment.spines import Candidate
from tutelage.data.verify import judge
from tutelage.diagnose.continuation import (
    choose_answers,
    compare_continuations,
    paired_gain,
    right_shares,
)
from tutelage.diagnose.findings import (
    accuracy_difference,
    accuracy_of,
    agree,
    capability_of,
    familiar_answers,
    grouped,
    intervals_of,
    kinds_of,
    novelty_of,
    token_mean,
)
from tutelage.diagnose.looks import (
    LOOK_STEP,
    Look,
    agreement_of,
    alignment_of,
    evidence_of,
    positions_of,
    sample_teacher,
    soundness_of,
    unsound,
    views_of,
)
from tutelage.diagnose.setting import Setting, align_small
from tutelage.diagnose.static import BASELINE
from tutelage.diagnose.verdict import SHARED_MASS, judge_pair
from tutelage.evaluation import Evaluation
from tutelage.gradient import Models
from tutelage.metrics import Record, TokenTable, overlap_k
from tutelage.models.base import Teacher
from tutelage.models.local import LocalModel
from tutelage.types import Rollout

Observer = Callable[[dict[str, Any]], None]
_SHOWN = 200
"""Characters of an answer that a note quotes."""
_SHOW_EVERY_S = 5.0
"""Between two lines of how far the rollouts are."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What one prompt set gave."""

    name: str
    """The prompt set."""
    looks: Sequence[Look]
    """One for each teacher."""
    student: Mapping[str, float]
    """The student's accuracy and the shape of its answers."""
    answers: Mapping[str, Evaluation]
    """Answers of the student and of each teacher, by name."""
    differences: Mapping[str, Any]
    """Paired differences of the teachers' advantages and accuracies."""
    notes: Sequence[str]
    """What could not be measured."""


def measure_all(setting: Setting, observer: Observer) -> Measurements:
    """Draw the student once, and measure every teacher on what it drew."""
    config, student = setting.config, setting.student
    samples, seed = config.check.samples, config.run.seed
    drawn = setting.sampler_of(student).sample(
        setting.questions, setting.params, group_size=samples, seed=seed, step=LOOK_STEP
    )
    if setting.verify is not None:
        drawn = judge(drawn, setting.verify)
    answers = grouped(drawn, samples, was_judged=setting.verify is not None)
    observer({"kind": "student", "prompt_set": setting.name, **_about_student(answers)})

    def tell(doing: str) -> None:
        observer({"kind": "stage", "prompt_set": setting.name, "doing": doing})

    shown = time.monotonic()

    def tell_progress(done: int, of: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > _SHOW_EVERY_S and done < of:
            observer({"kind": "progress", "done": done, "of": of})
            shown = time.monotonic()

    if setting.verify is not None and config.check.budget:
        tell(f"rolling out from chosen tokens, {config.check.budget:,} at most")
    found, notes = align_small(setting, drawn, tell_progress)
    continued = choose_answers(drawn, config.check.continued) if setting.verify else []
    if continued:
        tell(f"continuing {len(continued)} answers at {len(config.check.depths)} depths")
    own = _continue(setting, student, continued, as_teacher=False)
    looks: list[Look] = []
    all_answers = {"student": answers}
    for candidate in setting.candidates:
        tell(f"measuring {candidate.name}")
        look, theirs = _look(setting, candidate, answers, found, continued, own)
        looks.append(look)
        all_answers[candidate.name] = theirs
        observer(
            {
                "kind": "look",
                "teacher": candidate.name,
                "prompt_set": setting.name,
                "verdict": look.verdict.word,
                "reason": look.verdict.reasons[0].text,
            }
        )
    return Measurements(
        name=setting.name,
        looks=looks,
        student=_about_student(answers) | _as_scored(looks),
        answers=all_answers,
        differences=_differences(setting, found, all_answers),
        notes=[*notes, *_nobody_right(setting, all_answers)],
    )


def _differences(
    setting: Setting, found: Alignment | None, answers: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """Of every two teachers: advantage on the same tree, accuracy on the same questions."""
    advantages = {} if found is None else found.to_dict()["differences"]
    told: dict[str, Any] = {}
    for first, second in combinations([c.name for c in setting.candidates], 2):
        pair = f"{first} - {second}"
        parts = {
            "advantage": advantages.get(pair, {}).get("advantage"),
            "accuracy": accuracy_difference(answers[first], answers[second]),
        }
        if known := {key: value for key, value in parts.items() if value is not None}:
            told[pair] = plain(known)
    return told


def _nobody_right(setting: Setting, answers: Mapping[str, Evaluation]) -> list[str]:
    """An answer of each side, where nobody is ever right: is it the question, or the verifier?"""
    if setting.verify is None or any(any(e.accuracies) for e in answers.values()):
        return []
    told: list[str] = []
    for name, evaluation in answers.items():
        rollout = evaluation.rollouts[0]
        told.append(
            f"{setting.name}: nobody is ever judged right. To {rollout.prompt.id!r}, where "
            f"{rollout.prompt.answer!r} is expected, the {name} says {rollout.text[:_SHOWN]!r}"
        )
    return told[:2]


def _as_scored(looks: Sequence[Look]) -> dict[str, float]:
    """What scoring says of the student alone, whoever the teacher is."""
    seen = next((look.agreement for look in looks if look.agreement), {})
    keys = {
        "entropy": "entropy/student",
        "repetition": "rollout/repetition",
        "stop_mass": "rollout/eos_mass_student",
    }
    return {name: seen[key] for name, key in keys.items() if key in seen}


def _look(
    setting: Setting,
    candidate: Candidate,
    answers: Evaluation,
    found: Alignment | None,
    continued: Sequence[Rollout],
    own: np.ndarray,
) -> tuple[Look, Evaluation]:
    """What there is to say of one teacher, and its own answers."""
    config, student, teacher = setting.config, setting.student, candidate.model
    samples, seed = config.check.samples, config.run.seed
    models = Models(student=student, teacher=teacher, references={})
    k = overlap_k(config.run.metrics_k, student.vocabulary)
    seen = views_of(candidate, answers.rollouts, config.data.use_chat_template)
    if not seen:  # a context that no question has anything to show in
        nothing = judge_pair(evidence_of(candidate.name), setting.signals.get(candidate.name, ()))
        return (
            Look(teacher=candidate.name, prompt_set=setting.name, verdict=nothing),
            Evaluation((), was_judged=setting.verify is not None),
        )
    table, rows = agree(models, seen, k, config.objective)
    agreement, intervals = agreement_of(seen, table, rows), intervals_of(seen, table, rows)
    theirs = sample_teacher(
        setting.sampler_of(teacher),
        seen,
        setting.verify,
        setting.params,
        samples=samples,
        seed=seed,
    )
    capability = capability_of(answers, theirs, samples)
    if novelty := novelty_of(models, theirs, seen, k):
        capability["right_answers"] = novelty
    by_name = {(r.prompt.id, r.index): place for place, r in enumerate(continued)}
    views = [r for r in seen if (r.prompt.id, r.index) in by_name]
    mine = own[[by_name[r.prompt.id, r.index] for r in views]] if views else own[:0]
    rescue = compare_continuations(
        views,
        config.check.depths,
        mine,
        _continue(setting, teacher, views, as_teacher=True),
    )
    familiar = _familiar(setting, teacher, seen, table, rows, agreement)
    outcomes = {r.reward for r in answers.rollouts if r.reward is not None}
    evidence = evidence_of(
        candidate.name,
        agreement,
        intervals,
        capability,
        rescue,
        familiar,
        found,
        accuracy_of(answers),
        has_outcomes=len(outcomes) > 1,
    )
    soundness = soundness_of(models, seen, table, rows, k)
    signals = [*setting.signals.get(candidate.name, ()), *unsound(candidate.name, soundness)]
    look = Look(
        teacher=candidate.name,
        prompt_set=setting.name,
        verdict=judge_pair(evidence, signals),
        signals=tuple(signals),
        agreement=agreement,
        intervals=intervals,
        positions=positions_of(table, rows, config.rollout.max_new_tokens),
        kinds=kinds_of(student, models.stop_ids, seen, table, rows),
        capability=capability or None,
        rescue=tuple(rescue),
        familiar=familiar,
        alignment=alignment_of(found, candidate.name),
        soundness=soundness,
        baseline=_against_baseline(setting, candidate, answers, k),
    )
    return look, theirs


def _familiar(
    setting: Setting,
    teacher: Teacher,
    seen: Sequence[Rollout],
    table: TokenTable,
    rows: Tensor,
    agreement: Record,
) -> dict[str, Any]:
    """The student's answers that the teacher might have written, and whether it helps in those.

    Where most answers are such, the rescue of all says the second already.
    """
    known, share = familiar_answers(seen, table["teacher_logprob"], rows)
    told: dict[str, Any] = {"share": share}
    if agreement.get("overlap/mass_student", 1.0) >= SHARED_MASS:
        return told
    chosen = choose_answers(known, setting.config.check.continued)
    if not chosen or setting.verify is None:
        return told
    check = setting.config.check
    early = check.model_copy(update={"depths": (min(check.depths),)})
    of_early = replace(setting, config=setting.config.model_copy(update={"check": early}))
    theirs = _continue(of_early, teacher, chosen, as_teacher=True)[:, 0]
    mine = _continue(of_early, setting.student, chosen, as_teacher=False)[:, 0]
    judged = ~np.isnan(theirs) & ~np.isnan(mine)
    if judged.any():
        told["gain"] = paired_gain(chosen, theirs, mine, judged)
    return told


def _continue(
    setting: Setting, model: Teacher, answers: Sequence[Rollout], *, as_teacher: bool
) -> np.ndarray:
    """Share of right continuations [answers, depths]."""
    config = setting.config
    if not answers or setting.verify is None:
        return np.zeros((0, len(config.check.depths)))
    return right_shares(
        model,
        answers,
        config.check.depths,
        setting.verify,
        setting.params,
        samples=config.check.continuations,
        seed=config.run.seed,
        as_teacher=as_teacher,
        sampler=setting.sampler_of(model),
    )


def _against_baseline(
    setting: Setting, candidate: Candidate, answers: Evaluation, k: int
) -> dict[str, Any] | None:
    """Whether the student could tell the teacher from its baseline, at the states it visits.

    Both are scored on the same tokens, so the differences are paired. From a server's list there
    is no divergence between two teachers.
    """
    other = next((c for c in setting.candidates if c.name == BASELINE), None)
    if other is None or candidate.name == BASELINE:
        return None
    use_template = setting.config.data.use_chat_template
    views = [
        {(r.prompt.id, r.index): r for r in views_of(c, answers.rollouts, use_template)}
        for c in (candidate, other)
    ]
    both = [name for name in views[0] if name in views[1]]
    if not both:
        return None
    seen, seen_by_other = ([view[name] for name in both] for view in views)
    models = [
        Models(student=setting.student, teacher=c.model, references={}) for c in (candidate, other)
    ]
    (mine, rows), (theirs, _) = agree(models[0], seen, k), agree(models[1], seen_by_other, k)
    told = {
        "kl_student_to_teacher": mine["kl/reverse"],
        "kl_student_to_baseline": theirs["kl/reverse"],
        "kl_difference": mine["kl/reverse"] - theirs["kl/reverse"],
        "reward_difference": mine["teacher_logprob"] - theirs["teacher_logprob"],
    }
    plainly = all(c.view is None for c in (candidate, other))
    if plainly and isinstance(other.model, LocalModel):
        between = Models(student=other.model, teacher=candidate.model, references={})
        if isinstance(candidate.model, LocalModel):
            told["kl_teacher_to_baseline"] = agree(between, seen, k)[0]["kl/forward"]
    return {key: token_mean(seen, rows, values) for key, values in told.items()}


def _about_student(answers: Evaluation) -> dict[str, float]:
    rollouts = answers.rollouts
    told = {
        "length": fmean(len(r.completion_ids) for r in rollouts),
        "truncated": fmean(r.finish_reason == "length" for r in rollouts),
    }
    if (accuracy := accuracy_of(answers)) is not None:
        told |= dict(zip(("accuracy", "low", "high"), accuracy, strict=True))
    if answers.was_judged and (unknown := sum(r.reward is None for r in rollouts)):
        told["unknown"] = unknown
    return told
