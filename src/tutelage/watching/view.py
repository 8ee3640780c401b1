"""What can be said of a run from its records, kept up to date one record at a time."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

_LARGEST = 1e100  # as what a run leaves is checked: sums of larger numbers overflow
RECENT = 20
"""Steps over which times are averaged."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A number that is worth a glance while a run goes on."""

    key: str
    label: str
    unit: str = ""
    digits: int = 3


ACCURACY = "accuracy"
SIGNALS = (
    Signal(ACCURACY, "accuracy"),
    Signal("kl/reverse", "reverse KL", "nats"),
    Signal("overlap/mass_student", "shared mass"),
    Signal("entropy/gap", "entropy gap", "nats"),
    Signal("rollout/length", "length", "tokens", digits=1),
)
"""The five that are drawn; docs/watching.md says why these."""
_FURTHER = ("rollout/truncated", "accuracy/low", "accuracy/high", "rollout/accuracy", "loss")


class View:
    """The state of a run, from the records and events it wrote.

    Records of a step that was seen before replace what came since: a resumed run writes them
    again. Anything may be missing from a record, and nothing of it is believed to be a number.
    """

    def __init__(self, steps: int | None = None, evaluate_every: int = 0) -> None:
        self.steps, self.evaluate_every = steps, evaluate_every
        self.step = 0
        self.begun = False
        self.series: dict[str, list[tuple[int, float]]] = {}
        self.latest: dict[str, float] = {}
        self.phases: deque[dict[str, float]] = deque(maxlen=RECENT)
        self.evaluation_s: float | None = None
        self.probe_s: float | None = None
        self.warnings: list[dict[str, Any]] = []
        self.end: dict[str, Any] | None = None
        """The event that ended the last sitting, if one did."""

    # --- taking in -------------------------------------------------------------------------

    def add(self, record: Mapping[str, Any]) -> None:
        """One record of metrics.jsonl."""
        kind, step = record.get("kind"), record.get("step")
        if not isinstance(step, int) or kind not in ("train", "eval", "probe"):
            return
        if step < self.step or (kind == "train" and step == self.step and self.phases):
            self._rewind(step)
        self.begun, self.step = True, step
        seconds = _seconds(record)
        if kind == "train":
            self.phases.append(seconds)
        elif kind == "eval":
            self.evaluation_s = _number(record.get("perf/eval_s"))
        else:
            self.probe_s = _number(record.get("perf/probe_s"))
            return
        for key in (*(signal.key for signal in SIGNALS), *_FURTHER):
            value = _number(record.get(key))
            if value is None:
                continue
            # Accuracy is the held-out one, and the rest is told by every step.
            if kind == "train" or key.startswith(ACCURACY):
                self.series.setdefault(key, []).append((step, value))
                self.latest[key] = value

    def hear(self, event: Mapping[str, Any]) -> None:
        """One event of events.jsonl."""
        match event.get("event"):
            case "started":
                self.end = None
                steps, every = event.get("steps"), event.get("evaluate_every")
                self.steps = steps if isinstance(steps, int) else self.steps
                self.evaluate_every = every if isinstance(every, int) else self.evaluate_every
            case "resume":
                self.end = None
                if isinstance(step := event.get("step"), int):
                    self.warnings = [w for w in self.warnings if w.get("step", 0) <= step]
            case "signal":
                self.warn(event)
            case "tracker_failed":
                name = f"tracker {event.get('tracker')}"
                self.warn({"name": name, "evidence": str(event.get("text", ""))})
            case "end" | "stopped":
                self.end = dict(event)
            case _:
                pass

    def warn(self, told: Mapping[str, Any]) -> None:
        """Something a guard or a rule noticed."""
        keys = ("step", "name", "evidence", "advice", "severity")
        self.warnings.append({key: told[key] for key in keys if key in told})

    def _rewind(self, step: int) -> None:
        """Forget this step and the later ones."""
        self.phases.clear()
        for values in self.series.values():
            while values and values[-1][0] >= step:
                values.pop()
        self.latest = {key: values[-1][1] for key, values in self.series.items() if values}

    # --- what follows from it --------------------------------------------------------------

    @property
    def step_s(self) -> float | None:
        """Seconds of a step, the mean of the last ones; None before the first."""
        return fmean(sum(phase.values()) for phase in self.phases) if self.phases else None

    def shares(self) -> dict[str, float]:
        """Share of each phase in the time of the last steps, the largest first."""
        total: dict[str, float] = {}
        for phases in self.phases:
            for name, seconds in phases.items():
                total[name] = total.get(name, 0.0) + seconds
        whole = sum(total.values())
        if not whole:
            return {}
        return {k: v / whole for k, v in sorted(total.items(), key=lambda item: -item[1])}

    def remaining_s(self, since_s: float = 0.0) -> float | None:
        """Seconds until the last step, evaluations included; None where it cannot be told.

        It follows from the seconds that steps recorded and not from when the run began, so
        neither a pause nor a clock that is set makes it wrong.

        Args:
            since_s: seconds since the last record, which count towards the step under way.
        """
        if self.step_s is None or self.steps is None:
            return None
        left = max(0, self.steps - self.step)
        if not left:
            return 0.0
        evaluations = 0
        if self.evaluate_every:
            evaluations = self.steps // self.evaluate_every - self.step // self.evaluate_every
        if not self.evaluate_every or self.steps % self.evaluate_every:
            evaluations += 1
        under_way = max(0.0, self.step_s - max(0.0, since_s))
        return (left - 1) * self.step_s + under_way + evaluations * (self.evaluation_s or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints; what is not known is left out."""
        told = {
            "step": self.step,
            "steps": self.steps,
            "remaining_s": self.remaining_s(),
            "step_s": self.step_s,
            "phases": self.shares(),
            "signals": {
                signal.key: {"first": values[0][1], "last": values[-1][1], "step": values[-1][0]}
                for signal in SIGNALS
                if (values := self.series.get(signal.key))
            },
            "warnings": self.warnings,
        }
        return {key: value for key, value in told.items() if value is not None}


def _seconds(record: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by phase: every perf/NAME_s but sums and what happens beside the steps."""
    return {
        key[len("perf/") : -len("_s")]: value
        for key in record
        if key.startswith("perf/")
        and key.endswith("_s")
        and not key.endswith("_per_s")
        and key not in ("perf/step_s", "perf/eval_s", "perf/probe_s")
        and (value := _number(record[key])) is not None
    }


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= _LARGEST else None
