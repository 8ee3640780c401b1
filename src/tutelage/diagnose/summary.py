"""A check for a reader, and the command to run next."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.alignment.summary import table
from tutelage.diagnose.continuation import helps_until
from tutelage.diagnose.looks import Look
from tutelage.diagnose.prediction import Prediction

if TYPE_CHECKING:
    from tutelage.diagnose.checking import Check

_WORDS = {
    "go": "go",
    "cold-start": "cold-start first",
    "change-prompts": "change prompts or template",
    "different-teacher": "different teacher",
    "unknown": "unknown",
}


def summary(found: "Check", arguments: Sequence[str]) -> str:
    """Verdict, reasons, what was measured, the next command."""
    first = found.looks[0]
    parts = [
        _verdict(found),
        *_student(found.student),
        _teachers(found),
        _continued(first),
        _manner(first),
        _baseline(first),
        *_differences(found),
        *(f"note: {note}" for note in found.notes),
        f"next: {found.next_command(arguments)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _verdict(found: "Check") -> str:
    lines = [f"verdict: {_WORDS[found.verdict.word]}"]
    for i, reason in enumerate(found.verdict.reasons):
        lines.append(f"  {'-' if i else 'because'} {reason.text}")
    if (expected := found.looks[0].prediction) is not None:
        lines.append(_expected(expected))
    return "\n".join(lines)


def _student(student: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A paragraph for each set of prompts."""
    parts = []
    for name, about in student.items():
        where = "" if len(student) == 1 else f" on {name}"
        accuracy = (
            f"accuracy {about['accuracy']:.3f} [{about['low']:.3f}, {about['high']:.3f}], "
            if "accuracy" in about
            else ""
        )
        scored = [f"{key} {about[key]:.2f}" for key in ("entropy", "repetition") if key in about]
        parts.append(
            f"student{where}: {accuracy}{about['length']:.1f} tokens an answer, "
            + ", ".join([f"{about['truncated']:.0%} cut at the limit", *scored])
        )
    return parts


def _teachers(found: "Check") -> str:
    if all(look.agreement is None for look in found.looks):
        return ""
    header = ("teacher", "verdict", "advantage", "accuracy gap", "shared mass", "KL", "AUROC")
    rows = [
        (
            _title(look, len(found.student) > 1),
            _WORDS[look.verdict.word],
            _interval((look.alignment or {}).get("advantage")),
            _gap(look.capability),
            _number(look.agreement, "overlap/mass_student", ".2f"),
            _number(look.agreement, "kl/reverse", ".2f"),
            _number(look.agreement, "sequence_reward/auroc", ".2f"),
        )
        for look in found.ranking
    ]
    return table(header, rows)


def _continued(look: Look) -> str:
    """How either side ends what the student began."""
    if not look.rescue:
        return ""
    header = ("student's answer", "kept", "answers", "student", "teacher", "gain")
    rows = [
        (
            part.outcome,
            f"{part.depth:.0%}",
            str(part.answers),
            f"{part.student:.2f}",
            f"{part.teacher:.2f}",
            f"{part.gain:+.2f} [{part.low:+.2f}, {part.high:+.2f}]",
        )
        for part in look.rescue
    ]
    return f"continued from the student's answers:\n{table(header, rows)}\n{_depth(look)}"


def _differences(found: "Check") -> list[str]:
    """Tables of the teachers' differences by set of prompts, and of the sets'."""
    parts = []
    for name, pairs in found.differences.items():
        where = "" if len(found.differences) == 1 else f" on {name}"
        rows = [
            (pair, _interval(values.get("advantage")), _interval(values.get("accuracy"), ".2f"))
            for pair, values in pairs.items()
        ]
        parts.append(table((f"difference{where}", "advantage", "accuracy"), rows))
    if found.between_sets:
        rows = [
            (pair, who, _interval(value, ".2f"))
            for pair, values in found.between_sets.items()
            for who, value in values.items()
        ]
        parts.append(table(("difference of prompts", "who answers", "accuracy"), rows))
    return parts


def _expected(found: Prediction) -> str:
    """What the lab's pairs let expect, or that none is like this one."""
    low, high = found.interval
    gain = f"{found.gain:+.2f} [{low:+.2f}, {high:+.2f}]"
    if found.known:
        return f"expected of training, by pairs of the lab: accuracy {gain} (90 %)"
    return (
        f"expected of training: outside what I know; the nearest pair of the lab is "
        f"{found.distance:.2f} away, and errors are known up to {found.limit:.2f}. A guess: {gain}"
    )


def _title(look: Look, with_set: bool) -> str:
    return f"{look.teacher} on {look.prompt_set}" if with_set else look.teacher


def _depth(look: Look) -> str:
    """How far into a wrong answer the teacher still helps."""
    depths = sorted({part.depth for part in look.rescue if part.outcome == "wrong"})
    if not depths:
        return "no answer was wrong, so nothing is known of rescue"
    until = helps_until(look.rescue)
    if until is None:
        return f"no help was found from {depths[0]:.0%} of a wrong answer on"
    if until == depths[-1]:
        return f"the teacher helps until {until:.0%} of a wrong answer, the last depth looked at"
    stops = next(depth for depth in depths if depth > until)
    return (
        f"the teacher helps until {until:.0%} of a wrong answer; at {stops:.0%} no help was found"
    )


_MANNER = ("style", "template", "special", "stop")


def _manner(look: Look) -> str:
    """How much of the divergence is about manner and marks."""
    kinds = look.kinds or {}
    shares = [
        f"{name} {kinds[name]['kl']:.0%} (of tokens {kinds[name]['tokens']:.0%})"
        for name in _MANNER
        if "kl" in kinds.get(name, {})
    ]
    return "share of the KL on tokens of manner: " + ", ".join(shares) if shares else ""


def _baseline(look: Look) -> str:
    if not look.baseline:
        return ""
    found = {key: _interval(value, ".3f") for key, value in look.baseline.items()}
    lines = [
        "against the baseline, where the student goes (nats a token):",
        f"  KL(student || teacher) - KL(student || baseline)  {found['kl_difference']}",
    ]
    if "kl_teacher_to_baseline" in found:
        lines.append(
            f"  KL(teacher || baseline)                           {found['kl_teacher_to_baseline']}"
        )
    return "\n".join(lines)


def _interval(estimate: Mapping[str, Any] | None, form: str = ".4f") -> str:
    if not estimate:
        return "-"
    value = format(estimate["value"], f"+{form}")
    if "interval" in estimate:
        low, high = estimate["interval"]
        value += f" [{low:+{form}}, {high:+{form}}]"
    return value


def _gap(capability: Mapping[str, Any] | None) -> str:
    gap = (capability or {}).get("accuracy")
    if gap is None:
        return "-"
    return f"{gap['gap']:+.2f} [{gap['gap_low']:+.2f}, {gap['gap_high']:+.2f}]"


def _number(record: Mapping[str, Any] | None, key: str, form: str) -> str:
    value = (record or {}).get(key)
    return "-" if value is None else format(value, form)
