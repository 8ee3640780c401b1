"""From the numbers of each seed to a verdict: pure functions.

Seeds are the independent units. A part of a claim holds where the 95 % interval of its mean over
seeds lies wholly on the right side of a threshold that was chosen before the run, fails where
it lies wholly on the other side, and is open otherwise. A phenomenon appears where all parts hold,
does not appear where one fails, and cannot be told otherwise.

Where the truth is at or beyond a threshold, "appears" is said in at most 2.5 % of repetitions,
however many parts there are, since all of them must hold; where all parts are true, "does not
appear" in at most 2.5 % for each part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from tutelage.ops.intervals import gap_recovery, mean_interval

Word = Literal["appears", "does not appear", "cannot be told"]
State = Literal["holds", "fails", "open"]


class Seed:
    """What the arms of one suite gave with one seed."""

    def __init__(self, arms: Mapping[str, Mapping[str, Any]]) -> None:
        self.arms = arms

    def start(self, arm: str, key: str = "accuracy") -> float | None:
        """A number of the evaluation before the first step."""
        return self._at(arm, key, 0)

    def end(self, arm: str, key: str = "accuracy") -> float | None:
        """A number of the evaluation after the last step."""
        return self._at(arm, key, -1)

    def gain(self, arm: str, key: str = "accuracy") -> float | None:
        """End minus start."""
        return minus(self.end(arm, key), self.start(arm, key))

    def recovery(self, arm: str) -> float | None:
        """Share of the gap to the teacher that was closed; None where there is no gap."""
        before, after = self.start(arm), self.end(arm)
        teacher = self.start(arm, "teacher/accuracy")
        if before is None or after is None or teacher is None:
            return None
        return gap_recovery(before, after, teacher)

    def accuracy(self, arm: str) -> float | None:
        """Of an arm that only asks a model."""
        return self.arms[arm].get("accuracy")

    def advantage(self, arm: str, depth: int) -> float | None:
        """Teacher minus student from the `depth`-th cut of the student's answers on."""
        found = self.arms[arm]
        return minus(found["teacher"][depth], found["student"][depth])

    def profile(self, arm: str, when: str, key: str) -> list[float | None]:
        """A number by place in the answer, of an arm that tells it; `when` as the arm names it."""
        found: list[float | None] = self.arms[arm]["profiles"][when][key]
        return found

    def outcome(self, arm: str, name: str, measure: str) -> float | None:
        """A measure of the alignment on right or wrong answers; None where there are none."""
        value: float | None = self.arms[arm][name].get(measure)
        return value

    def _at(self, arm: str, key: str, place: int) -> float | None:
        values: list[float | None] = self.arms[arm]["curves"].get(key) or [None]
        return values[place]


Quantity = Callable[[Seed], float | None]


def minus(first: float | None, second: float | None) -> float | None:
    """The difference, undefined where either is."""
    return None if first is None or second is None else first - second


def distance(first: float | None, second: float | None) -> float | None:
    """How far apart two numbers are, undefined where either is."""
    difference = minus(first, second)
    return None if difference is None else abs(difference)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One number that a claim needs, and the side of a threshold it has to be on."""

    says: str
    of: Quantity
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"{self.says!r} needs exactly one of `above` and `below`")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number over seeds."""

    values: Mapping[int, float]
    """By seed; a seed for which it is undefined is absent."""

    @property
    def mean(self) -> float | None:
        """Over seeds; None without any."""
        return fmean(self.values.values()) if self.values else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 %; None where nothing says how seeds vary."""
        values = list(self.values.values())
        # Equal values to the last digit, such as accuracies of 0, have no spread to go by.
        return mean_interval(values) if len(set(values)) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what is undefined."""
        told: dict[str, Any] = {"values": {str(seed): v for seed, v in self.values.items()}}
        if self.mean is not None:
            told["value"] = self.mean
        if self.interval is not None:
            told["interval"] = list(self.interval)
        return told


def estimate(of: Quantity, seeds: Mapping[int, Seed]) -> Estimate:
    """A quantity over the seeds for which it is defined."""
    found = {number: of(seed) for number, seed in seeds.items()}
    return Estimate(values={number: v for number, v in found.items() if v is not None})


def state_of(found: Estimate, *, above: float | None, below: float | None) -> State:
    """On which side of its threshold a number lies."""
    if found.interval is None:
        return "open"
    low, high = found.interval
    if above is not None:
        return "holds" if low > above else "fails" if high < above else "open"
    assert below is not None
    return "holds" if high < below else "fails" if low > below else "open"


def word_of(states: Sequence[State]) -> Word:
    """The verdict of a claim from the states of its parts."""
    if any(state == "fails" for state in states):
        return "does not appear"
    return "appears" if states and all(s == "holds" for s in states) else "cannot be told"
