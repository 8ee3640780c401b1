"""Causes: what a rule makes of a run, and what the rules share.

A rule is a pure function of a `History`. It says nothing where its signal was not recorded.
Thresholds without a source were set on the development half of benchmarks/explain_faults.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.ops.intervals import hybrid_interval
from tutelage.signals.guards import Signal
from tutelage.signals.history import History

Confidence = Literal["high", "medium", "low"]
CONFIDENCES: tuple[Confidence, ...] = ("high", "medium", "low")
"""high: a signal that only this cause gives was measured in this run. medium: the signals fit, and
another cause could give them too, or no harm is seen. low: a setting that is known to do harm."""

STATIC, SOUNDNESS, MASS, DYNAMICS, SYMPTOM = range(5)
STAGES = ("static", "soundness", "mass", "dynamics", "symptom")
"""The order of reasoning: what is free to know comes first, and symptoms last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Something that explains what a run did."""

    name: str
    """Which rule."""
    confidence: Confidence
    """How sure; see `CONFIDENCES`."""
    stage: int
    """Its place in the order of reasoning, an index of `STAGES`."""
    text: str
    """What it is, in a sentence."""
    evidence: tuple[str, ...]
    """The numbers of this run behind it."""
    advice: str
    """What to change."""
    change: Mapping[str, Any] = field(default_factory=dict)
    """The settings that do so, by their dotted names; empty where it is no setting."""
    source: str
    """Where the rule comes from."""
    signal: str | None = None
    """The metric that shows it, for a replay."""

    def as_warning(self) -> Signal:
        """The same while a run goes on."""
        return Signal(
            name=self.name,
            severity="warning",
            evidence=f"{self.text.lower()[:1]}{self.text[1:]}: {'; '.join(self.evidence)}",
            advice=self.advice,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told = {
            "name": self.name,
            "confidence": self.confidence,
            "stage": STAGES[self.stage],
            "text": self.text,
            "evidence": list(self.evidence),
            "advice": self.advice,
            "change": dict(self.change),
            "source": self.source,
            "signal": self.signal,
        }
        return {key: value for key, value in told.items() if value is not None}


DRIFT = 1e-3  # reported: nats a token between engines
FOREIGN_MASS = 0.8  # shared, of the student's; reported: 97 to 99 % in runs that succeed
FIRST_TOKEN = 3.0  # times the body's reverse KL
SURE_AND_WRONG = 0.25
TEACHER_CUT = 0.3  # share of the teacher's answers cut, from which its accuracy is not its own
TRUNCATED_MUCH, TRUNCATED_SOME = 0.5, 0.2


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def ability_gap(h: History) -> tuple[float, float] | None:
    """Interval of the teacher's accuracy, as it reads the prompts here, minus the student's."""
    theirs, own = h.measured("teacher/accuracy", h.begin), h.measured("accuracy", h.begin)
    return None if theirs is None or own is None else hybrid_interval(theirs, own)


def teacher_is_no_better(h: History) -> bool:
    """Whether the teacher, as it reads the prompts here, is not plainly above the student."""
    gap = ability_gap(h)
    return gap is not None and gap[0] <= 0


def runs_on(h: History) -> bool:
    """Whether the student is cut at the start by a limit that the teacher keeps well within."""
    cut, theirs = h.at_start("rollout/truncated"), h.at_start("teacher/truncated")
    return cut is not None and theirs is not None and cut >= TRUNCATED_SOME and theirs < cut / 3


def claimed_accuracy(h: History) -> float | None:
    """Chance that the teacher gives its likeliest answer, as its entropy has it.

    exp(-H L) of its entropy a token and its answers' length. Long answers make it 0, which says
    nothing.
    """
    entropy, length = h.at_start("entropy/teacher"), h.at_start("teacher/length")
    return None if entropy is None or length is None else math.exp(-entropy * length)


def sure_and_wrong(h: History) -> float | None:
    """What the teacher claims, where it is far above what it solves."""
    claimed, theirs = claimed_accuracy(h), h.measured("teacher/accuracy", h.begin)
    if claimed is None or theirs is None or claimed <= theirs[2] + SURE_AND_WRONG:
        return None
    return claimed


def first_token_ratio(h: History) -> float | None:
    """Reverse KL of the first place in the completion over the mean of the others, at the start."""
    bins = [value for value in h.bins("kl/reverse") if not math.isnan(value)]
    if len(bins) < 4:
        return None
    rest = sum(bins[1:]) / len(bins[1:])
    return bins[0] / rest if rest > 0 else None


def abilities(h: History) -> list[str]:
    """What both solve before training, as evidence."""
    record = h.begin
    if record is None or "teacher/accuracy" not in record or "accuracy" not in record:
        return []
    return [
        f"before training the teacher solves {record['teacher/accuracy']:.0%} of the questions as "
        f"it reads them here, the student {record['accuracy']:.0%}"
    ]


def cuts(h: History) -> list[str]:
    """How many answers are cut at the start, as evidence."""
    cut, theirs = h.at_start("rollout/truncated"), h.at_start("teacher/truncated")
    told = [] if cut is None else [f"{cut:.0%} of the student's answers were cut at the start"]
    return told + ([] if theirs is None else [f"so were {theirs:.0%} of the teacher's own"])


def lengths(h: History) -> list[str]:
    """What became of the answers' length, as evidence."""
    first, last = h.at_start("rollout/length"), h.at_end("rollout/length")
    if first is None or last is None or abs(last - first) < 0.1 * first:
        return []
    return [f"the student's answers went from {first:.1f} to {last:.1f} tokens"]


def outcome(h: History) -> list[str]:
    """What became of the accuracy, as evidence."""
    before, after = h.begin, h.end
    if before is None or after is None or "accuracy" not in before or "accuracy" not in after:
        return []
    return [f"accuracy went from {before['accuracy']:.2f} to {after['accuracy']:.2f}"]
