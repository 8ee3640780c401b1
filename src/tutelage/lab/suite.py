"""What a suite is: claim, threshold, the published figure, arms and judgement."""

from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.lab.arms import Arm, Distil
from tutelage.lab.verdicts import Part, Quantity

COMPATIBLE = Distil(student="student", teacher="compatible")
INCOMPATIBLE = Distil(student="student", teacher="incompatible")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One phenomenon."""

    claim: str
    """What it says."""
    mirrors: str
    """Where it was published, with the number there."""
    arms: Mapping[str, Arm]
    """What is done with each seed, by a short name."""
    parts: tuple[Part, ...]
    """All of them must hold."""
    shown: Mapping[str, Quantity]
    """What its figure shows."""
    unit: str = "held-out accuracy"
    """Of what is shown."""
    draws: tuple[str, ...] = ("accuracy",)
    """What is drawn by step, of the arms that train."""
    draws_by_place: tuple[str, ...] = ()
    """What is drawn by place in the answer, of the arms that tell it."""
    caution: str = ""
    """What its verdict does not say."""
    tasks: tuple[str, ...] = ("running", "mod")
    """On which it is judged."""


def ends(*arms: str) -> dict[str, Quantity]:
    """Accuracy of the student before, and at the end of each arm."""

    def end(arm: str) -> Quantity:
        return lambda seed: seed.end(arm)

    return {"student before": lambda s: s.start(arms[0]), **{f"after {a}": end(a) for a in arms}}


def before_and_after(key: str, *arms: str) -> dict[str, Quantity]:
    """A number of the first and the last evaluation of each arm."""

    def at(arm: str, first: bool) -> Quantity:
        return lambda seed: (seed.start if first else seed.end)(arm, key)

    return {
        f"{arm}, {when}": at(arm, when == "before") for arm in arms for when in ("before", "after")
    }
