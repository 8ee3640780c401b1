"""A check for a reader, and the command to run next."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.alignment.summary import table
from tutelage.diagnose.looks import Look

if TYPE_CHECKING:
    from tutelage.diagnose.checking import Check

_WORDS = {
    "go": "go",
    "cold-start": "cold-start first",
    "change-prompts": "change prompts or template",
    "different-teacher": "different teacher",
    "unknown": "unknown",
}


def summary(found: "Check", arguments: str) -> str:
    """Verdict, reasons, what was measured, the next command."""
    verdict = found.verdict
    lines = [f"verdict: {_WORDS[verdict.word]}"]
    lines += [f"  {'because' if i == 0 else '-'} {r.text}" for i, r in enumerate(verdict.reasons)]
    parts = ["\n".join(lines)]
    measured = [look for look in found.looks if look.agreement is not None]
    for name, about in found.student.items():
        where = "" if len(found.student) == 1 else f" on {name}"
        accuracy = (
            f"accuracy {about['accuracy']:.3f} [{about['low']:.3f}, {about['high']:.3f}], "
            if "accuracy" in about
            else ""
        )
        parts.append(
            f"student{where}: {accuracy}{about['length']:.1f} tokens an answer, "
            f"{about['truncated']:.0%} cut at the limit"
        )
    if measured:
        header: Sequence[str] = (
            "teacher",
            "verdict",
            "advantage",
            "accuracy gap",
            "shared mass",
            "KL",
            "AUROC",
        )
        rows: Sequence[Sequence[str]] = [
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
        parts.append(table(header, rows))
    first = found.looks[0]
    if first.rescue:
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
            for part in first.rescue
        ]
        parts.append("continued from the student's answers:\n" + table(header, rows))
    for name, pairs in found.differences.items():
        rows = [
            (pair, _interval(values["advantage"]))
            for pair, values in pairs.items()
            if "advantage" in values
        ]
        if rows:
            where = "" if len(found.differences) == 1 else f" on {name}"
            parts.append(table((f"difference{where}", "advantage"), rows))
    parts += [f"note: {note}" for note in found.notes]
    parts.append(f"next: {next_command(found, arguments)}")
    return "\n\n".join(parts)


def next_command(found: "Check", arguments: str) -> str:
    """What to run now; `arguments` name the settings that were checked."""
    best, own = found.ranking[0], found.looks[0]
    name = own.verdict.reasons[0].name
    if own.verdict.word == "go":
        return f"tutelage train {arguments}"
    if best.verdict.word == "go" and best.prompt_set == "run":
        path = found.paths.get(best.teacher)
        if path is not None:
            return f"tutelage train {arguments} --teacher.path {path}"
    if own.verdict.word == "cold-start":
        return (
            f"tutelage train {arguments} --rollout.student_share 0 --objective "
            "'{type: full, divergence: forward_kl}' --run.dir runs/cold-start"
        )
    if own.verdict.word == "unknown":
        check = found.config.check
        return (
            f"tutelage check {arguments} --check.questions {4 * check.questions} "
            f"--check.budget {4 * max(check.budget, 25_000)}"
        )
    if name == "truncated":
        limit = 2 * found.config.rollout.max_new_tokens
        return f"tutelage check {arguments} --rollout.max_new_tokens {limit}"
    if name == "solved":
        return f"tutelage check {arguments} --data.eval_prompts HARDER.jsonl"
    if own.verdict.word == "change-prompts":
        return f"tutelage preview {arguments}"
    return f"tutelage check {arguments} --teacher.path ANOTHER"


def _title(look: Look, with_set: bool) -> str:
    return f"{look.teacher} on {look.prompt_set}" if with_set else look.teacher


def _interval(estimate: Mapping[str, Any] | None) -> str:
    if not estimate:
        return "-"
    value = f"{estimate['value']:+.4f}"
    if "interval" in estimate:
        low, high = estimate["interval"]
        value += f" [{low:+.4f}, {high:+.4f}]"
    return value


def _gap(capability: Mapping[str, Any] | None) -> str:
    gap = (capability or {}).get("accuracy")
    if gap is None:
        return "-"
    return f"{gap['gap']:+.2f} [{gap['gap_low']:+.2f}, {gap['gap_high']:+.2f}]"


def _number(record: Mapping[str, Any] | None, key: str, form: str) -> str:
    value = (record or {}).get(key)
    return "-" if value is None else format(value, form)
