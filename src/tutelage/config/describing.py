"""The settings as a help page: what each means, its choices and its default, each part once."""

import textwrap
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from tutelage.config.base import Section
from tutelage.config.reading import sections_of
from tutelage.config.run import Config

_WIDTH = 98
_Parts = tuple[type[Section], ...]


def settings_page() -> str:
    """Every setting by its flag; a part that stands twice is told once and referred to."""
    told: dict[_Parts, str] = {}
    lines: list[str] = []
    for name, field in Config.model_fields.items():
        lines += [f"{name}: {field.description}", *_part(field, name, told, ""), ""]
    return "\n".join(lines).rstrip() + "\n"


def _part(field: FieldInfo, key: str, told: dict[_Parts, str], about: str) -> list[str]:
    """The lines of a field that holds settings of its own; `about` says what it is."""
    parts = tuple(sections_of(field.annotation))
    if any(get_origin(a) is dict for a in (field.annotation, *get_args(field.annotation))):
        key += ".NAME"
    for seen, place in told.items():
        if (same := _same(seen, parts, place)) is not None:
            return _wrapped(f"--{key}.*", about, same)
    told[parts] = key
    known, reference = _known(parts, told)
    inside: dict[str, tuple[FieldInfo, list[str]]] = {}
    for part in parts:
        for name, inner in part.model_fields.items():
            inside.setdefault(name, (inner, []))[1].append(_tag(part))
    if "type" in inside:
        about = f"{about} {' | '.join(inside.pop('type')[1])}"
    lines = _wrapped(f"--{key}", about, _default(field)) if about else []
    lines += _wrapped(f"--{key}.*", reference) if reference else []
    for name, (inner, tags) in inside.items():
        if name in known:
            continue
        of = f"{', '.join(tags)}: " if all(tags) and len(tags) < len(parts) else ""
        meaning = of + (inner.description or "")
        if sections_of(inner.annotation):
            lines += _part(inner, f"{key}.{name}", told, meaning)
        else:
            lines += _wrapped(f"--{key}.{name}", meaning, _choices(inner), _default(inner))
    return lines


def _known(parts: _Parts, told: dict[_Parts, str]) -> tuple[set[str], str | None]:
    """Fields of a choice's plain branch that were told before, and where."""
    plain = [part for part in parts if not _tag(part)]
    if len(parts) > 1 and len(plain) == 1:
        for seen, place in told.items():
            if (same := _same(seen, (plain[0],), place)) is not None:
                return set(plain[0].model_fields), same
    return set(), None


def _same(seen: _Parts, parts: _Parts, place: str) -> str | None:
    """That `parts` holds what was told at `place`, all of it or less; None where it does not."""
    if seen == parts:
        return f"As --{place}.*"
    if len(seen) != 1 or len(parts) != 1 or not issubclass(seen[0], parts[0]):
        return None
    lacks = [name for name in seen[0].model_fields if name not in parts[0].model_fields]
    if len(lacks) < len(parts[0].model_fields):
        return f"As --{place}.*, without {' and '.join(lacks)}"
    return f"As --{place}.*, but {', '.join(parts[0].model_fields)} alone"


def _wrapped(flag: str, *texts: str) -> list[str]:
    return textwrap.wrap(
        f"{flag}  {' '.join(' '.join(texts).split())}",
        _WIDTH,
        initial_indent="  ",
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _tag(section: type[Section]) -> str:
    field = section.model_fields.get("type")
    return "" if field is None else str(field.default)


def _choices(field: FieldInfo) -> str:
    """What a field of fixed words may hold."""
    literals = [
        a for a in (field.annotation, *get_args(field.annotation)) if get_origin(a) is Literal
    ]
    words = [str(word) for literal in literals for word in get_args(literal)]
    return " | ".join(words) if len(words) > 1 else ""


def _default(field: FieldInfo) -> str:
    """The value that holds where nothing is said, in brackets."""
    if field.is_required():
        return "(required)"
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        value = _tag(type(value))
    if not isinstance(value, bool | int | float) and not value:
        return ""
    if isinstance(value, tuple):
        return str(list(value))
    return f"[{str(value).lower() if isinstance(value, bool) else value}]"
