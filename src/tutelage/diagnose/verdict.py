"""From evidence to a verdict: pure rules, so that a kept check can be judged anew.

What decides is outcome, never resemblance alone: shared mass is high in pairs that gain nothing,
and follows lineage more than use (docs/check.md). Resemblance only says which cure to try.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.signals import Signal

Word = Literal["go", "cold-start", "change-prompts", "different-teacher", "unknown"]

SHARED_MASS = 0.8
"""Student's mass on tokens both sides find likely, below which they think in other patterns."""
SMALL_GAP = 0.05
"""A teacher that is at most this much more accurate has nothing to give."""
FAMILIAR = 0.02
"""Share of the student's answers that the teacher might have written, from which its pattern is one
that the student has already."""
WITHIN_REACH = 0.5
"""Share of the teacher's right answers that the student might have written, from which its pattern
is within the student's reach."""
NO_DIFFERENCE = 1e-4
"""Nats a token below which two models say the same."""
TRUNCATED = 0.5
"""Share of cut completions from which the measurements are about beginnings of answers."""
SOLVED = 0.98
"""Accuracy from which the questions leave nothing to learn."""
STOP_MASS = 1e-3
"""Teacher's mass on all stop ids where the student stops, below which it would not stop there."""
STOPS_ITSELF = 0.1
"""Student's mass there from which its stops are no accident."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its 95 % interval."""

    value: float
    """The estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    @property
    def is_above(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    @property
    def is_below(self) -> bool:
        """Whether it lies below 0."""
        return self.high < 0

    def __str__(self) -> str:
        """Three figures."""
        return f"{self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the verdict looks at; None where it could not be measured."""

    student: Measured | None = None
    """The student's accuracy."""
    gap: Measured | None = None
    """Teacher's minus student's accuracy, paired by question."""
    advantage: Measured | None = None
    """Pooled advantage of the objective's moves (2605.10889; docs/alignment.md): what following
    the teacher does to the chance of a right answer."""
    has_outcomes: bool = True
    """False: every student answer judged alike, so no token can be told to help."""
    rescue: Measured | None = None
    """Right continuations of wrong student answers, teacher's minus student's, at the earliest
    depth."""
    shared_mass: float | None = None
    """Student's mass on tokens that both sides find likely."""
    shared_mass_interval: tuple[float, float] | None = None
    """Its 95 % interval over questions."""
    familiar: Measured | None = None
    """Share of the student's answers of which nearly every token is likely to the teacher."""
    familiar_gain: Measured | None = None
    """Right continuations of those from early on, teacher's minus student's."""
    within_reach: Measured | None = None
    """Share of the teacher's right answers of which nearly every token is likely to the student."""
    passable: Measured | None = None
    """Share of them in which, besides, no token is next to impossible to it."""
    kl: float | None = None
    """KL(student || teacher), nats a token."""
    truncated: float | None = None
    """Share of the student's completions that the limit cut."""
    stop_mass_student: float | None = None
    """Mean mass on all stop ids where the student's completions end."""
    stop_mass_teacher: float | None = None
    """The teacher's there."""
    over_baseline: Measured | None = None
    """Advantage of the teacher minus that of the baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing a verdict rests on."""

    name: str
    """What was looked at."""
    says: Word | Literal["for", "note"]
    """The verdict it calls for; `for` speaks for training, `note` for nothing by itself."""
    text: str
    """In a sentence, with the numbers."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to do with a pair."""

    word: Word
    """In a word."""
    reasons: tuple[Reason, ...]
    """What it rests on; the deciding one first."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.word,
            "reasons": [{"name": r.name, "says": r.says, "text": r.text} for r in self.reasons],
        }


def judge_pair(evidence: Evidence, signals: Sequence[Signal] = ()) -> Verdict:
    """The verdict on a pair.

    `signals` are what was noticed without weights; one that stops decides alone. Then come things
    that make the rest unreadable (cut answers, a teacher that is plainly worse, questions that are
    solved or that nobody solves), then the sign of the advantage, then how able the teacher is.
    """
    deciding = (
        _cannot_be_combined(signals)
        or _cut_short(evidence)
        or _same_model(evidence)
        or _stops_apart(evidence, signals)
        or _less_able(evidence)
        or _solved(evidence)
        or _nobody_right(evidence)
        or _never_stops(evidence)
        or _by_advantage(evidence)
    )
    others = [r for r in _aside(evidence, signals) if r.name != deciding.name]
    assert deciding.says != "note", f"{deciding.name} decides nothing by itself"
    word: Word = "go" if deciding.says == "for" else deciding.says
    return Verdict(word=word, reasons=(deciding, *others))


def _cannot_be_combined(signals: Sequence[Signal]) -> Reason | None:
    stops = [s for s in signals if s.severity == "stop"]
    if not stops:
        return None
    text = f"{stops[0].evidence}. {stops[0].advice}"
    # A limit can be lowered; ids cannot be mended by any setting.
    says: Word = "change-prompts" if stops[0].name == "context_too_short" else "different-teacher"
    return Reason(name=stops[0].name, says=says, text=text)


def _cut_short(e: Evidence) -> Reason | None:
    if e.truncated is None or e.truncated < TRUNCATED:
        return None
    return Reason(
        name="truncated",
        says="change-prompts",
        text=f"{e.truncated:.0%} of the student's completions are cut at the limit, so their "
        "answers are not seen; raise rollout.max_new_tokens, or ask for shorter answers",
    )


def _same_model(e: Evidence) -> Reason | None:
    if e.kl is None or e.kl >= NO_DIFFERENCE:
        return None
    return Reason(
        name="same",
        says="different-teacher",
        text=f"where the student goes the teacher says what the student says (KL {e.kl:.1g} nats a "
        "token), so there is nothing to learn",
    )


def _stops_apart(e: Evidence, signals: Sequence[Signal]) -> Reason | None:
    differ = next((s for s in signals if s.name == "stop_ids_differ"), None)
    if differ is None or e.gap is None or e.gap.is_above:
        return None
    return Reason(
        name=differ.name,
        says="change-prompts",
        text=f"{differ.evidence}; so long as they do, its gap of {e.gap} may be that of answers "
        f"which end elsewhere; {differ.advice}",
    )


def _less_able(e: Evidence) -> Reason | None:
    return _no_gain(e, "") if e.gap is not None and e.gap.is_below else None


def _solved(e: Evidence) -> Reason | None:
    if e.student is None or e.student.value < SOLVED:
        return None
    return Reason(
        name="solved",
        says="change-prompts",
        text=f"the student is right on {e.student.value:.0%} already; choose harder questions",
    )


def _nobody_right(e: Evidence) -> Reason | None:
    if e.student is None or e.gap is None or e.student.value > 0 or e.gap.value != 0:
        return None
    return Reason(
        name="nobody_right",
        says="change-prompts",
        text="neither side is ever judged right; choose easier questions, or check data.verifier "
        "against an answer",
    )


def _never_stops(e: Evidence) -> Reason | None:
    if e.stop_mass_teacher is None or e.stop_mass_teacher >= STOP_MASS:
        return None
    if e.stop_mass_student is None or e.stop_mass_student < STOPS_ITSELF:
        return None
    return Reason(
        name="stops",
        says="change-prompts",
        text=f"where the student ends its answers the teacher gives all stop ids together "
        f"{e.stop_mass_teacher:.1g}, so it pulls completions longer without end; compare "
        "templates and stop ids with tutelage preview",
    )


def _by_advantage(e: Evidence) -> Reason:
    if e.advantage is None:
        return _without_advantage(e)
    if e.advantage.is_above:
        if _has_nothing_new(e):
            return _no_gain(e, f"its choices help ({e.advantage}), but ")
        if e.gap is None or e.gap.is_above or (e.rescue is not None and e.rescue.is_above):
            return Reason(
                name="advantage",
                says="for",
                text=f"following the teacher raises the chance of a right answer: advantage "
                f"{e.advantage}" + ("" if e.gap is None else f"; it is more able by {e.gap}"),
            )
        return _not_told(f"its choices help ({e.advantage}), but its accuracy gap is {e.gap}")
    if (reached := _by_familiar_answers(e)) is not None:
        return reached
    if e.advantage.is_below:
        if e.gap is not None and e.gap.is_above:
            return Reason(
                name="advantage",
                says="cold-start",
                text=f"the teacher is able (gap {e.gap}), yet what it advises where the student "
                f"goes lowers the chance of a right answer: advantage {e.advantage}",
            )
        return Reason(
            name="advantage",
            says="different-teacher",
            text="following the teacher lowers the chance of a right answer: advantage "
            f"{e.advantage}",
        )
    if _has_nothing_new(e):
        return _no_gain(e, f"its choices neither help nor harm ({e.advantage}), and ")
    if _is_foreign(e) and e.gap is not None and e.gap.is_above:
        return _foreign(e, f"no help was found (advantage {e.advantage})")
    return _not_told(f"the advantage of its choices is {e.advantage}")


def _without_advantage(e: Evidence) -> Reason:
    if _has_nothing_new(e):
        return _no_gain(e, "")
    if e.gap is None:
        if _is_foreign(e):
            return _foreign(e, "answers are not verified")
        return Reason(
            name="unverified",
            says="unknown",
            text="answers are not verified, so nobody knows which of its choices help; set "
            "data.verifier",
        )
    if (reached := _by_familiar_answers(e)) is not None:
        return reached
    if _is_foreign(e) and e.gap.is_above:
        return _foreign(e, f"the teacher is able (gap {e.gap})")
    if not e.has_outcomes:
        return _not_told(
            "every student answer was judged alike, so no token can be told to help"
            + (f"; the teacher's gap is {e.gap}" if e.gap else "")
        )
    return Reason(
        name="not_measured",
        says="unknown",
        text="whether its choices help was not measured"
        + ("" if e.gap is None else f"; its accuracy gap is {e.gap}"),
    )


def _by_familiar_answers(e: Evidence) -> Reason | None:
    """What decides where most answers are foreign to an able teacher, but its pattern is near.

    The average advantage is then about states that training leaves: the reverse KL first raises
    the answers that the teacher might have written, in proportion to how likely they are to the
    student, and improves the student there. So either the student is seen in such answers and
    helped there, or the teacher's right answers hold no step that it would not take.
    """
    if not _is_foreign(e) or e.gap is None or not e.gap.is_above:
        return None
    familiar, gain, reach, passable = e.familiar, e.familiar_gain, e.within_reach, e.passable
    helped = familiar is not None and gain is not None and gain.is_above
    may_walk_over = passable is not None and passable.low >= WITHIN_REACH
    reasons: list[str] = []
    if helped:
        reasons.append(
            f"the student writes {_percent(familiar)} as the teacher might, and from early in "
            f"those the teacher succeeds more often by {gain}"
        )
    if may_walk_over:
        reasons.append(
            f"{_percent(passable)} of the teacher's right answers hold no step that the student "
            "would not take"
        )
    elif reach is not None and reach.value >= WITHIN_REACH:
        reasons.append(f"{_percent(reach)} of the teacher's right answers are near its own")
    if not reasons:
        return None
    told = f"most of its answers are foreign to the teacher, but {', and '.join(reasons)}"
    often = familiar is not None and familiar.value >= FAMILIAR
    if may_walk_over or (helped and often):
        return Reason(
            name="familiar",
            says="for",
            text=f"{told}: training moves the student over, often through a dip (gap {e.gap})",
        )
    return _not_told(
        f"{told}, and whether training gets there is open; a cold start is the safe way"
    )


def _percent(share: Measured | None) -> str:
    assert share is not None
    return f"{share.value:.1%} [{max(share.low, 0):.1%}, {share.high:.1%}]"


def _has_nothing_new(e: Evidence) -> bool:
    return e.gap is not None and e.gap.high <= SMALL_GAP


def _is_foreign(e: Evidence) -> bool:
    return e.shared_mass is not None and e.shared_mass < SHARED_MASS


def _share(e: Evidence) -> str:
    assert e.shared_mass is not None
    if e.shared_mass_interval is None:
        return f"{e.shared_mass:.0%}"
    low, high = e.shared_mass_interval
    return f"{e.shared_mass:.0%} [{low:.0%}, {high:.0%}]"


def _foreign(e: Evidence, why: str) -> Reason:
    return Reason(
        name="shared_mass",
        says="cold-start",
        text=f"{why}, and the teacher finds only {_share(e)} of what the student does "
        f"likely (below {SHARED_MASS:.0%}): another thinking pattern",
    )


def _no_gain(e: Evidence, why: str) -> Reason:
    assert e.gap is not None
    return Reason(
        name="gap",
        says="different-teacher",
        text=f"{why}it is not more able on these questions: gap {e.gap}",
    )


def _not_told(why: str) -> Reason:
    return Reason(
        name="undecided",
        says="unknown",
        text=f"{why}: more questions or a larger check.budget may tell",
    )


def _aside(e: Evidence, signals: Sequence[Signal]) -> list[Reason]:
    """What a reader should know beside the deciding reason."""
    reasons = [
        Reason(name=s.name, says="note", text=f"{s.evidence}; {s.advice}")
        for s in signals
        if s.severity != "stop"
    ]
    if e.advantage is not None:
        reasons.append(Reason(name="advantage", says="note", text=f"advantage {e.advantage}"))
    if e.gap is not None:
        reasons.append(Reason(name="gap", says="note", text=f"accuracy gap {e.gap}"))
    if e.rescue is not None:
        text = f"from early in its wrong answers, teacher's success minus student's: {e.rescue}"
        reasons.append(Reason(name="rescue", says="note", text=text))
    if e.shared_mass is not None:
        text = f"{_share(e)} of what the student does lies among tokens both find likely"
        reasons.append(Reason(name="shared_mass", says="note", text=text))
    if e.familiar is not None:
        text = f"the teacher might have written {_percent(e.familiar)} of the student's answers"
        reasons.append(Reason(name="familiar", says="note", text=text))
    if e.over_baseline is not None:
        how = "more helpful than" if e.over_baseline.is_above else "not told apart from"
        text = f"in the student's eyes it is {how} its baseline: advantage {e.over_baseline}"
        reasons.append(Reason(name="baseline", says="note", text=text))
    return reasons
