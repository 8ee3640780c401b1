"""What a run recorded, as the rules read it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median, pvariance
from typing import Any, Literal

from tutelage.config import Config
from tutelage.ops.intervals import hybrid_interval
from tutelage.signals.guards import Records

Outcome = Literal["improved", "flat", "worse", "unknown"]

WINDOW = 5
"""Steps over which a series is averaged at either end."""
SAME_TOKEN = 8
"""Occurrences of one token from which its scores may be compared."""
JUMP = 3.0
"""Times the reverse KL of the step before that is a jump."""
STILL = 0.2
"""Nats a token up to which a step hardly moved the policy."""
KL_FELL = 0.7
"""Without a verifier: the reverse KL of a run that improved fell to this share or below."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Everything that causes are found from; what was not recorded is empty."""

    config: Config | None = None
    """The settings; None where another library ran it."""
    steps: Records = ()
    """A record a step, oldest first."""
    evaluations: Records = ()
    """A record an evaluation, oldest first; the first is of step 0."""
    positions: Records = ()
    """A record a step, by place in the completion."""
    rollouts: Records = ()
    """Rollouts of the first recorded evaluation, with token-level scores."""
    last_rollouts: Records = ()
    """Rollouts of the last one."""
    noted: Mapping[str, str] = field(default_factory=dict)
    """Disagreements of the two models that were noticed without weights, by name."""
    goes_on: bool = False
    """Whether the run is not over: then a student that is no better yet may still become so."""

    def at_start(self, key: str) -> float | None:
        """The first evaluation's value, else that of the first steps."""
        for record in self.evaluations[:1]:
            if record.get("step") == 0 and key in record:
                return float(record[key])
        return self.first(key)

    def at_end(self, key: str) -> float | None:
        """The last evaluation's value, else that of the last steps."""
        if self.end is not None and key in self.end:
            return float(self.end[key])
        return self.last(key)

    def first(self, key: str) -> float | None:
        """Mean over the first steps that have it."""
        values = self.series(key)[:WINDOW]
        return fmean(values) if values else None

    def last(self, key: str) -> float | None:
        """Mean over the last steps that have it."""
        values = self.series(key)[-WINDOW:]
        return fmean(values) if values else None

    def series(self, key: str) -> list[float]:
        """Its finite values, step by step."""
        return [
            float(record[key])
            for record in self.steps
            if key in record and math.isfinite(record[key])
        ]

    def middle(self, key: str, skip: int = WINDOW) -> float | None:
        """Median over the steps after the first `skip`, or of all where there are no more."""
        values = self.series(key)
        return median(values[skip:] or values) if values else None

    def worst(self, key: str) -> float | None:
        """The largest median over `WINDOW` steps in a row; None with fewer steps."""
        values = self.series(key)
        windows = [values[i : i + WINDOW] for i in range(len(values) - WINDOW + 1)]
        return max(map(median, windows)) if windows else None

    def measured(
        self, key: str, record: Mapping[str, Any] | None
    ) -> tuple[float, float, float] | None:
        """A recorded value with the ends of its interval."""
        if record is None or f"{key}/low" not in record:
            return None
        return float(record[key]), float(record[f"{key}/low"]), float(record[f"{key}/high"])

    @property
    def begin(self) -> Mapping[str, Any] | None:
        """The evaluation before the first step."""
        found = self.evaluations[0] if self.evaluations else None
        return found if found is not None and found.get("step") == 0 else None

    @property
    def end(self) -> Mapping[str, Any] | None:
        """The last evaluation, where there is a later one than the first."""
        return self.evaluations[-1] if len(self.evaluations) > 1 else None

    @cached_property
    def outcome(self) -> Outcome:
        """What became of the student: by its accuracy, else by the reverse KL."""
        before, after = self.begin, self.end
        first, last = self.measured("accuracy", before), self.measured("accuracy", after)
        if first and last:
            low, high = hybrid_interval(last, first)
            if low > 0:
                return "improved"
            return "worse" if high < 0 else "flat"
        began, ended = self.at_start("kl/reverse"), self.last("kl/reverse")
        if began is None or ended is None or len(self.steps) < 2 * WINDOW:
            return "unknown"
        if ended <= KL_FELL * began:
            return "improved"
        return "worse" if ended * KL_FELL >= began else "flat"

    @property
    def was_hurt(self) -> bool:
        """Whether the student is worse than it was, or no better at the end."""
        return self.outcome == "worse" or (self.outcome == "flat" and not self.goes_on)

    def bins(self, key: str, begin: bool = True) -> list[float]:
        """Mean of a metric by place in the completion, over the first or the last steps."""
        records = self.positions[:WINDOW] if begin else self.positions[-WINDOW:]
        columns: list[tuple[float, float]] = []
        for record in records:
            values, tokens = record["bins"].get(key, ()), record["bins"]["tokens"]
            columns += [(0.0, 0.0)] * (len(values) - len(columns))
            for i, (value, count) in enumerate(zip(values, tokens, strict=False)):
                if value is not None:
                    columns[i] = (columns[i][0] + value * count, columns[i][1] + count)
        return [total / count if count else math.nan for total, count in columns]

    def jump(self) -> int | None:
        """The step at which the reverse KL rose at once, though steps moved the policy little."""
        known = [r for r in self.steps if "kl/reverse" in r and "update/kl" in r]
        values = [float(record["kl/reverse"]) for record in known]
        for place in range(WINDOW, len(known) - WINDOW + 1):
            before, after = (fmean(values[i : i + WINDOW]) for i in (place - WINDOW, place))
            moved = max(float(r["update/kl"]) for r in known[place - 2 : place + 1])
            if (
                after > max(JUMP * before, before + 1)
                and moved < STILL
                and (values[place] > JUMP * values[place - 1])
            ):
                return int(known[place]["step"])
        return None


def spread_of_same_tokens(rollouts: Records) -> tuple[float, float, float] | None:
    """How much teacher and student vary over the occurrences of one token, in nats.

    Standard deviations of the log-probability within a token, over the tokens that occur often in
    recorded rollouts, and the teacher's mean there. A teacher that reads nothing gives a token the
    same everywhere; but so does one that is sure of each, whose mean is near 0.
    """
    scores: dict[int, list[tuple[float, float]]] = {}
    for rollout in rollouts:
        columns = rollout["scores"]
        for token, teacher, student in zip(
            rollout["completion_ids"],
            columns["teacher_logprob"],
            columns["student_logprob"],
            strict=False,
        ):
            if teacher is not None and student is not None:
                scores.setdefault(token, []).append((teacher, student))
    often = [values for values in scores.values() if len(values) >= SAME_TOKEN]
    if not often:
        return None
    teacher, student = (
        math.sqrt(fmean(pvariance([pair[side] for pair in values]) for values in often))
        for side in (0, 1)
    )
    mean = fmean(teacher_logprob for values in often for teacher_logprob, _ in values)
    return teacher, student, mean
