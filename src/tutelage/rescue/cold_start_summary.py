"""What a cold start says to its reader: whether more of it helps, and what to run next."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tutelage.diagnose.verdict import SMALL_GAP
from tutelage.rescue.cold_start_rollouts import reasons_told

if TYPE_CHECKING:
    from tutelage.rescue.cold_start import ColdStart

FLAT = 0.01
"""A validation loss that falls by less than this share from one validation to the next is flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What a distillation added to the student it began with."""

    before: float
    """Accuracy of the student it began with."""
    after: float
    """At the end."""
    low: float
    """Of the 95 % interval of the difference, paired by question."""
    high: float
    """Its upper end."""
    questions: int
    """How many were judged both times."""

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """In a sentence."""
        told = (
            f"{self.before:.3f} -> {self.after:.3f} on {self.questions} held-out questions, "
            f"{self.after - self.before:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        )
        if self.low > 0:
            return f"distillation added to the cold start: {told}"
        if self.high < 0:
            return f"distillation took away from the cold start: {told}; keep its student"
        return f"distillation added nothing that can be told apart from chance: {told}"


def is_falling(validation: Sequence[tuple[int, float]]) -> bool | None:
    """Whether the loss still fell at the last validation; None where that cannot be said."""
    if len(validation) < 2:
        return None
    losses = [loss for _, loss in validation]
    return losses[-1] == min(losses) and losses[-1] < (1 - FLAT) * losses[-2]


def more_of_it(imitation: Mapping[str, Any], after: Mapping[str, Any] | None) -> str:
    """Whether more cold start would help, by the validation loss and by the check after it."""
    falling = is_falling(imitation["validation"])
    verdict = (after or {}).get("verdict")
    gap = _accuracy_gap(after)
    if gap is not None and gap["gap_high"] <= SMALL_GAP:
        return (
            "enough, and on-policy distillation has nothing to add: the student is as able as the "
            f"teacher (gap {gap['gap']:+.3f} [{gap['gap_low']:+.3f}, {gap['gap_high']:+.3f}])"
        )
    if verdict == "go":
        return f"enough: {_because(after)}"
    learning = {
        True: "the validation loss was still falling, so more steps or answers (cold_start.steps, "
        "epochs, questions) may help",
        False: "the validation loss no longer falls, so more steps on these answers do not help; "
        "more of them (cold_start.questions, rollouts) may",
        None: "without a validation loss nobody knows whether more would help",
    }[falling]
    if verdict is None:
        return learning
    return f"check says {verdict}: {_because(after)}. {learning[0].upper()}{learning[1:]}"


def summary(found: "ColdStart", arguments: str) -> str:
    """Counts, losses, both verdicts, whether more helps, the next command."""
    answers, imitation = found.answers, found.imitation
    lines = [
        f"answers: {answers['kept']} of {answers['slots']} slots in {answers['tries']} tries"
        + (f"; {answers['dropped']} slots dropped" if answers["dropped"] else "")
        + (f"; rejected {reasons_told(answers['rejected'])}" if answers["rejected"] else "")
    ]
    losses = imitation["validation"]
    told = ""
    if losses:
        best = min(losses, key=lambda pair: pair[1])
        told = (
            f"; validation loss {losses[0][1]:.3f} -> {best[1]:.3f} nats a token at step {best[0]}"
        )
        if best[0] == 0:
            told += ": no step was better than the student as it was; lower cold_start.lr"
    early = imitation["steps"] < imitation["planned"]
    lines.append(
        f"imitation: {imitation['steps']} of {imitation['planned']} steps"
        + (" (stopped early)" if early else "")
        + told
    )
    for name, look in (("before", found.before), ("after", found.after)):
        if look is not None:
            lines.append(f"check {name}: {look['verdict']}; {_because(look)}")
    if found.before is not None and found.before["verdict"] == "go":
        lines.append("note: the pair could be trained as it was; compare with a run without this")
    lines.append(f"more cold start: {more_of_it(imitation, found.after)}")
    if found.added is not None:
        lines.append(str(found.added))
    lines.append(f"student: {found.student}")
    if found.trained is not None:
        lines.append(f"distilled student: {found.trained.student}")
    lines.append(f"next: {next_command(found, arguments)}")
    return "\n".join(lines)


def next_command(found: "ColdStart", arguments: str) -> str:
    """What to run now; `arguments` name the settings of the cold start."""
    start = f"{arguments} --student.path {found.student}".strip()
    if found.trained is not None:
        return f"tutelage rescue controls {start}"
    verdict = (found.after or {}).get("verdict")
    if verdict in (None, "go"):
        return f"tutelage train {start}"
    if verdict == "cold-start" and is_falling(found.imitation["validation"]):
        steps = 2 * found.imitation["planned"]
        return f"tutelage rescue cold-start {arguments} --cold_start.steps {steps} -o ANOTHER"
    return f"tutelage check {start}"


def _because(look: Mapping[str, Any] | None) -> str:
    reasons = (look or {}).get("reasons") or [{"text": "no reason is known"}]
    return str(reasons[0]["text"])


def _accuracy_gap(look: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    if look is None:
        return None
    found = look["looks"][0].get("capability") or {}
    return found.get("accuracy")
