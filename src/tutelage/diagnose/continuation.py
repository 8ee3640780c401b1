"""Teacher rescue: does the teacher succeed from where the student has got to?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from tutelage.data.verify import Verify, judge
from tutelage.models.anatomy import decode_text
from tutelage.models.base import Sampler, Teacher
from tutelage.ops.intervals import difference_interval
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

CONTINUATION_STEP = -6
"""A step that no training step, evaluation or alignment has."""


@dataclass(frozen=True, kw_only=True)
class Continued:
    """What became of the same student prefixes in either side's hands."""

    outcome: str
    """`right` or `wrong`: how the student's own answer ended."""
    depth: float
    """Share of the student's answer that was kept."""
    answers: int
    """Student answers continued."""
    student: float
    """Share of the student's continuations that are right."""
    teacher: float
    """Share of the teacher's."""
    gain: float
    """Teacher minus student."""
    low: float
    """Lower end of the gain's 95 % interval over questions."""
    high: float
    """Upper end."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def choose_answers(rollouts: Sequence[Rollout], count: int) -> list[Rollout]:
    """Judged answers to continue: half wrong, half right as far as there are, of many questions."""
    by_verdict: dict[float, list[Rollout]] = {0.0: [], 1.0: []}
    # One answer a question before a second one of any.
    for rollout in sorted(rollouts, key=lambda r: r.index):
        if rollout.reward in by_verdict and len(rollout.completion_ids) > 1:
            by_verdict[rollout.reward].append(rollout)
    wrong, right = by_verdict[0.0], by_verdict[1.0]
    half = min(len(wrong), max((count + 1) // 2, count - len(right)))
    return [*wrong[:half], *right[: count - half]]


def right_shares(
    model: Teacher,
    answers: Sequence[Rollout],
    depths: Sequence[float],
    verify: Verify,
    params: SamplingParams,
    *,
    samples: int,
    seed: int,
    as_teacher: bool,
    sampler: Sampler | None = None,
) -> np.ndarray:
    """Share of a model's right continuations [answers, depths]; NaN where none could be judged.

    `sampler` draws in its place.
    """
    prompts: list[RenderedPrompt] = []
    starts: list[tuple[Rollout, tuple[int, ...]]] = []
    for answer in answers:
        own = answer.teacher_prompt_ids if as_teacher else None
        for depth in depths:
            kept = answer.completion_ids[: int(depth * len(answer.completion_ids))]
            place = replace(answer.prompt, id=f"{answer.prompt.id}/{answer.index}/{depth}")
            prompts.append(
                RenderedPrompt(
                    prompt=place,
                    ids=(own or answer.prompt_ids) + kept,
                    max_new_tokens=max(1, params.max_new_tokens - len(kept)),
                )
            )
            starts.append((answer, kept))
    drawn = (sampler or model).sample(
        prompts, params, group_size=samples, seed=seed, step=CONTINUATION_STEP
    )
    whole = [
        replace(
            continuation,
            prompt=answer.prompt,
            text=decode_text(model.tokenizer, kept + continuation.completion_ids),
        )
        for continuation, (answer, kept) in zip(
            drawn, [start for start in starts for _ in range(samples)], strict=True
        )
    ]
    rewards = [np.nan if r.reward is None else r.reward for r in judge(whole, verify)]
    grouped = np.array(rewards, dtype=float).reshape(len(answers), len(depths), samples)
    counts = (~np.isnan(grouped)).sum(-1)
    return np.where(counts > 0, np.nansum(grouped, -1) / np.maximum(counts, 1), np.nan)


def compare_continuations(
    answers: Sequence[Rollout], depths: Sequence[float], student: np.ndarray, teacher: np.ndarray
) -> list[Continued]:
    """Both sides' shares [answers, depths], by the verdict on the student's answer and by depth.

    Answers to one question are one unit.
    """
    found: list[Continued] = []
    for outcome, verdict in (("wrong", 0.0), ("right", 1.0)):
        rows = np.array([answer.reward == verdict for answer in answers], dtype=bool)
        for column, depth in enumerate(depths):
            own, other = student[rows, column], teacher[rows, column]
            known = ~np.isnan(own) & ~np.isnan(other)
            if not known.any():
                continue
            chosen = [a for a, is_row in zip(answers, rows, strict=True) if is_row]
            mine, theirs = by_question(chosen, own, known), by_question(chosen, other, known)
            low, high = difference_interval(theirs, mine)
            found.append(
                Continued(
                    outcome=outcome,
                    depth=depth,
                    answers=int(known.sum()),
                    student=float(np.mean(mine)),
                    teacher=float(np.mean(theirs)),
                    gain=float(np.mean(theirs) - np.mean(mine)),
                    low=low,
                    high=high,
                )
            )
    return found


def paired_gain(
    answers: Sequence[Rollout], teacher: np.ndarray, student: np.ndarray, known: np.ndarray
) -> dict[str, Any]:
    """Mean of teacher - student with its interval, answers to one question as one unit."""
    theirs, mine = by_question(answers, teacher, known), by_question(answers, student, known)
    low, high = difference_interval(theirs, mine)
    return {
        "value": float(np.mean(theirs) - np.mean(mine)),
        "interval": [low, high],
        "answers": int(known.sum()),
    }


def by_question(answers: Sequence[Rollout], values: np.ndarray, known: np.ndarray) -> list[float]:
    """Mean of the known values of each question that has any."""
    parts: dict[str, list[float]] = {}
    for answer, value, is_known in zip(answers, values, known, strict=True):
        if is_known:
            parts.setdefault(answer.prompt.id, []).append(float(value))
    return [fmean(part) for part in parts.values()]


def helps_until(continued: Sequence[Continued]) -> float | None:
    """The last depth of wrong answers up to which the teacher's gain stays above 0; None: never."""
    reached: float | None = None
    for part in sorted((c for c in continued if c.outcome == "wrong"), key=lambda c: c.depth):
        if part.low <= 0:
            break
        reached = part.depth
    return reached
