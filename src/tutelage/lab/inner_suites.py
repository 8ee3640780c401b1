"""The phenomena inside answers: by outcome, by content, by place and by length.

Thresholds were written down before the runs whose verdicts docs/lab.md gives, and do not
depend on them; where pilot runs on other seeds chose a setting, docs/lab.md says so.
"""

from collections.abc import Mapping
from typing import Any

from tutelage.lab.inner_arms import PLACES, ByPlace, OfContent, OnLong, Outcomes
from tutelage.lab.kept import LONG
from tutelage.lab.suite import COMPATIBLE, Suite, ends
from tutelage.lab.verdicts import Part, Quantity, Seed, minus

MASS = "overlap/mass_student"
SUCCESS = ByPlace(student="student", teacher="compatible")
FAILURE = ByPlace(student="student", teacher="incompatible")
ALIGNED, OTHER = 0.55, 0.1
"""Share of hard operands in the compatible teacher's post-training, and in prompts unlike it."""
LAST = PLACES - 1
HORIZONS = {"quarter": 11, "half": 22, "whole": 49}
"""Tokens of a rollout on long problems, whose longest solution has 44."""


def _long(horizon: str, **settings: Any) -> OnLong:
    """The long pair, with rollouts cut there and evaluations that let answers end."""
    return OnLong(
        student="student_long",
        teacher="teacher_long",
        lengths=LONG,
        settings={
            "rollout": {"max_new_tokens": HORIZONS[horizon]},
            "evaluation": {"max_new_tokens": HORIZONS["whole"]},
            **settings,
        },
    )


WHOLE = _long("whole")
PUBLISHED = _long("whole", objective={"type": "top_k", "k": 4, "tail": {"type": "reference_code"}})


def rise_at(arm: str, key: str, place: int) -> Quantity:
    """How much a metric rises at one place, from the first steps to the last."""
    return lambda s: minus(
        s.profile(arm, "at last", key)[place], s.profile(arm, "at first", key)[place]
    )


def wrong_minus_right(measure: str) -> Quantity:
    """A measure of the alignment on wrong answers minus that on right ones."""
    return lambda s: minus(
        s.outcome("align", "wrong", measure), s.outcome("align", "right", measure)
    )


def least_difference(key: str, one: tuple[str, str], other: tuple[str, str]) -> Quantity:
    """The smallest difference over places, of two arms at two times."""

    def least(seed: Seed) -> float | None:
        pairs = zip(seed.profile(*one, key), seed.profile(*other, key), strict=True)
        found = [minus(a, b) for a, b in pairs]
        defined = [value for value in found if value is not None]
        return min(defined) if len(defined) == len(found) else None

    return least


def at_place(arm: str, when: str, key: str, place: int) -> Quantity:
    """A metric at one place."""
    return lambda s: s.profile(arm, when, key)[place]


def mean_over_evaluations(arm: str, key: str = "accuracy") -> Quantity:
    """Mean over the evaluations after the first step: how high a curve lies as a whole."""

    def mean(seed: Seed) -> float | None:
        values = (seed.arms[arm]["curves"].get(key) or [])[1:]
        return sum(values) / len(values) if values and None not in values else None

    return mean


def by_place(key: str, arms: Mapping[str, str], times: tuple[str, ...]) -> dict[str, Quantity]:
    """A metric at the first and the last place of arms (name -> how it is called)."""
    return {
        f"{called}, {where}, {when}": at_place(arm, when, key, place)
        for arm, called in arms.items()
        for where, place in (("first quarter", 0), ("last quarter", LAST))
        for when in times
    }


INNER_SUITES: dict[str, Suite] = {
    "outcomes": Suite(
        claim="A teacher is better aligned with success on wrong answers than on right ones.",
        mirrors="2605.10889: mean cosines of .044, .058, .048, .028 on wrong answers against .011, "
        ".001, .009, .012 on right ones (Qwen3-0.6B and 1.7B, four self-teachers)",
        arms={"align": Outcomes(student="student", teacher="compatible")},
        parts=(
            Part(
                says="mean cosine as published, wrong minus right",
                of=wrong_minus_right("published"),
                above=0.0,
            ),
            Part(
                says="mean cosine without a node's own outcomes, wrong minus right",
                of=wrong_minus_right("mean_cosine"),
                above=0.0,
            ),
        ),
        shown={
            f"{measure}, {name}": (lambda s, n=name, m=key: s.outcome("align", n, m))
            for measure, key in (
                ("published", "published"),
                ("corrected", "mean_cosine"),
                ("A", "alignment"),
            )
            for name in ("right", "wrong")
        }
        | {"advantage, wrong minus right": wrong_minus_right("advantage")},
        unit="mean cosine, A, or advantage in accuracy",
        caution="An error cannot be mended on these tasks, so that after it nothing is to gain. "
        "The advantage, unlike the cosine, says how much there is to gain.",
    ),
    "content": Suite(
        claim="Prompts like those of the teacher's post-training teach more, and leave less "
        "entropy.",
        mirrors="2604.13016, figure 10: Qwen3-1.7B-Base from Qwen3-4B-Base-GRPO, DAPO (its "
        "post-training prompts) against as many of DeepMath: higher accuracy, lower overlap ratio, "
        "higher shared mass, much lower entropy",
        arms={
            "aligned": OfContent(student="student", teacher="compatible", hard_share=ALIGNED),
            "between": COMPATIBLE,
            "other": OfContent(student="student", teacher="compatible", hard_share=OTHER),
        },
        parts=(
            Part(
                says="accuracy, mean of the evaluations after the start, aligned minus other",
                of=lambda s: minus(
                    mean_over_evaluations("aligned")(s), mean_over_evaluations("other")(s)
                ),
                above=0.05,
            ),
            Part(
                says="the student's entropy at the end, aligned minus other",
                of=lambda s: minus(
                    s.end("aligned", "entropy/student"), s.end("other", "entropy/student")
                ),
                below=0.0,
            ),
            Part(
                says="shared mass at the end, aligned minus other",
                of=lambda s: minus(s.end("aligned", MASS), s.end("other", MASS)),
                above=0.0,
            ),
        ),
        shown=ends("aligned", "between", "other"),
        draws=("accuracy", "entropy/student", MASS),
        caution="Content is the share of hard operands: 55 % in the post-training, 30 % where "
        "operands are uniform, 10 % in the other prompts. All are judged on the same uniform "
        "held-out problems. Other prompts also hold less of what the student cannot do.",
    ),
    "places": Suite(
        claim="When training works, shared mass rises at every place in the answer; when it fails, "
        "it stays behind at every place.",
        mirrors="2604.13016, figure 6, by place as in figures 12, 13 and 23: JustRL-1.5B teaches "
        "R1-1.5B, R1-7B does not",
        arms={"success": SUCCESS, "failure": FAILURE},
        parts=(
            Part(
                says="least rise of shared mass over the quarters, success",
                of=least_difference(MASS, ("success", "at last"), ("success", "at first")),
                above=0.0,
            ),
            Part(
                says="least lead of success in shared mass at the end over the quarters",
                of=least_difference(MASS, ("success", "at last"), ("failure", "at last")),
                above=0.05,
            ),
            Part(
                says="entropy gap at first, last quarter minus first quarter, success",
                of=lambda s: minus(
                    at_place("success", "at first", "entropy/gap", LAST)(s),
                    at_place("success", "at first", "entropy/gap", 0)(s),
                ),
                above=0.0,
            ),
        ),
        shown=by_place(MASS, {"success": "success", "failure": "failure"}, ("at first", "at last")),
        unit="student's mass on shared tokens",
        draws_by_place=(MASS, "overlap/advantage", "entropy/gap", "entropy/student"),
        caution="Quarters of the longest right answer, means over the tokens of the first and the "
        "last 20 steps: short problems do not reach the last one.",
    ),
    "length": Suite(
        claim="Rollouts of middling length teach most: shorter ones say too little, whole ones "
        "bring teacher rewards that cannot be relied on.",
        mirrors="2604.13016, figure 11a: R1-1.5B from JustRL-1.5B, 3 and 7 thousand tokens best of "
        ".5 to 15 thousand",
        arms={name: _long(name) for name in HORIZONS},
        parts=(
            Part(
                says="accuracy at the end, rollouts cut at half minus whole ones",
                of=lambda s: minus(s.end("half"), s.end("whole")),
                above=0.05,
            ),
            Part(
                says="accuracy at the end, cut at half minus cut at a quarter",
                of=lambda s: minus(s.end("half"), s.end("quarter")),
                above=0.05,
            ),
        ),
        shown={
            **ends(*HORIZONS),
            "teacher": lambda s: s.start("whole", "teacher/accuracy"),
        },
        draws=("accuracy", "entropy/student"),
        draws_by_place=("reward/mean", "entropy/student", "entropy/teacher"),
        caution="Problems of 8 to 14 slots, right answers of 26 to 44 tokens, all judged on whole "
        "answers. Student and teacher have seen these lengths.",
        tasks=("running",),
    ),
    "collapse": Suite(
        claim="On long answers under the published objective, entropy rises, from the end "
        "backwards, the student's and the teacher's alike.",
        mirrors="2604.13016, figures 12, 13 and 23: with 10 and 15 thousand tokens entropy spikes "
        "late, high entropy begins at the end and moves to the start, the teacher's likewise",
        arms={"published objective": PUBLISHED, "exact objective": WHOLE},
        parts=(
            Part(
                says="rise of the student's entropy in the last quarter",
                of=rise_at("published objective", "entropy/student", LAST),
                above=0.05,
            ),
            Part(
                says="that rise minus the rise in the first quarter",
                of=lambda s: minus(
                    rise_at("published objective", "entropy/student", LAST)(s),
                    rise_at("published objective", "entropy/student", 0)(s),
                ),
                above=0.0,
            ),
            Part(
                says="rise of the teacher's entropy in the last quarter",
                of=rise_at("published objective", "entropy/teacher", LAST),
                above=0.0,
            ),
        ),
        shown={
            f"{arm}, {where} quarter": rise_at(arm, "entropy/student", place)
            for arm in ("published objective", "exact objective")
            for where, place in (("first", 0), ("second", 1), ("third", 2), ("last", LAST))
        },
        unit="rise of the student's entropy from the first 20 steps to the last, nats",
        draws=("accuracy", "entropy/student", MASS),
        draws_by_place=("entropy/student", "entropy/teacher", MASS),
        caution="The published objective takes the student's top 4 of 32 tokens and leaves the "
        "rest out. Pilot runs on two long pairs, one of them seed 1's, chose it: there the exact "
        "one lowers entropy everywhere.",
        tasks=("running",),
    ),
}
