"""What `rescue prompts` did, for a reader."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.alignment.summary import table

if TYPE_CHECKING:
    from tutelage.rescue.prompts import RescuedPrompts

_SHOWN = 160
_KINDS = ("exact", "respelled", "contained", "near", "semantic")


def prompts_summary(found: "RescuedPrompts") -> str:
    """Templates, what repeats what, scores, and where everything was written."""
    told = found.summary
    parts = ["\n".join(_templates(told["templates"]))]
    if met := [_met_row(part, kinds) for part, kinds in told["met"].items() if kinds]:
        parts.append("rows that repeat\n" + _table(("", *_KINDS), met))
    if leaks := [_leak_row(source, leak) for source, leak in told["leaks"].items()]:
        parts.append("leaked questions\n" + _table(("evaluation set", "questions", *_KINDS), leaks))
    if told["answers_differ"]:
        parts.append(
            f"{told['answers_differ']} of the repeated questions have another answer on each side: "
            "a wrong answer, or no copy at all (short questions stand in longer ones); the report "
            "shows both"
        )
    if scores := told.get("scores"):
        parts.append(_scores(scores))
    if example := told.get("example"):
        parts.append(f"before: {_short(example['before'])}\nafter:  {_short(example['after'])}")
    if comparison := told.get("comparison"):
        parts.append("\n".join(_comparison(comparison)))
    dropped = ", ".join(f"{count} repeat {part}" for part, count in told["dropped"].items())
    mixed = f", {told['mixed']['rows']} from {told['mixed']['source']}" if "mixed" in told else ""
    parts.append(
        f"{told['rows']} rows ({told['unique_questions']} different questions): {dropped}; "
        f"{told['written']} written{mixed} in {told['seconds']:g} s\n"
        f"{found.output}\n{found.report}"
    )
    return "\n\n".join(parts)


def _templates(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for source, affixes in found.items():
        yield f"templates of {source}"
        for template in affixes["templates"] or [
            {"prefix": "".join(affixes["prefixes"]), "suffix": "".join(affixes["suffixes"])}
        ]:
            prefix, suffix = _short(template["prefix"]), _short(template["suffix"])
            words = f"{prefix} … {suffix}" if prefix or suffix else "no template"
            yield f"  {template.get('rows', 'given'):>7}  {words}"


def _short(text: str) -> str:
    """A text on one line; a long one loses its middle."""
    line = text.replace("\n", "⏎")
    half = _SHOWN // 2
    return line if len(line) <= _SHOWN else f"{line[:half]} […] {line[-half:]}"


def _met_row(part: str, kinds: Mapping[str, int]) -> tuple[str, ...]:
    return part, *(str(kinds.get(kind, "")) for kind in _KINDS)


def _leak_row(source: str, leak: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(leak["leaked"].get(kind, "")) for kind in _KINDS)
    return source, str(leak["questions"]), *counts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    used = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    return table([header[i] for i in used], [[row[i] for i in used] for row in rows])


def _scores(scores: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{mean:.3f}", f"{scores['mean_selected'].get(name, float('nan')):.3f}")
        for name, mean in scores["mean"].items()
    ]
    left = ", ".join(
        f"{scores[key]} {words}"
        for key, words in (("too_long", "too long"), ("without_score", "without this score"))
        if scores[key]
    )
    return (
        f"{scores['selected']} of {scores['scored']} scored prompts selected by {scores['by']}"
        f"{f' ({left})' if left else ''}\n" + _table(("mean", "all", "selected"), rows)
    )


def _comparison(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, side in found.items():
        numbers = ", ".join(f"{key} {side[key]:.3f}" for key in side if "/" in key)
        accuracy = side.get("accuracy")
        judged = (
            f", accuracy of the student {accuracy['student']:.3f}, of the teacher "
            f"{accuracy['teacher']:.3f}"
            if accuracy
            else ""
        )
        yield f"{name}: {side['verdict']}; {numbers}{judged}"
