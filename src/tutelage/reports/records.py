"""What a directory holds, read row by row; what cannot be read is told and left out."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Notes:
    """What could not be read, for the page to tell."""

    texts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Tell it once."""
        if text not in self.texts:
            self.texts.append(text)


def rows(path: Path, notes: Notes, *, wanted: bool = True) -> Iterator[dict[str, Any]]:
    """Records of a JSON-lines file, one at a time; nothing where there is no file.

    A damaged line is left out and counted; so is an unfinished last one. `wanted` says whether
    a missing file is told.
    """
    if not path.is_file():
        if wanted:
            notes.add(f"{path.name} is not there")
        return
    damaged = 0
    try:
        with path.open("rb") as stream:
            for line in stream:
                record = _parsed(line) if line.endswith(b"\n") else None
                if isinstance(record, dict):
                    yield record
                elif line.strip():
                    damaged += 1
    except OSError as error:
        notes.add(f"{path.name} cannot be read: {error.strerror}")
    if damaged:
        what = "line is" if damaged == 1 else "lines are"
        notes.add(f"{damaged:,} {what} damaged or unfinished in {path.name}, and left out")


def document(path: Path, notes: Notes, *, wanted: bool = False) -> dict[str, Any]:
    """A JSON file that holds an object; empty where there is none."""
    if not path.is_file():
        if wanted:
            notes.add(f"{path.name} is not there")
        return {}
    try:
        found = _parsed(path.read_bytes())
    except OSError as error:
        notes.add(f"{path.name} cannot be read: {error.strerror}")
        return {}
    if not isinstance(found, dict):
        notes.add(f"{path.name} is damaged, and left out")
        return {}
    return found


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def pick(value: Any, *keys: str | int) -> Any:
    """What lies at `keys` inside nested objects and lists, or None."""
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
            value = value[key]
        else:
            return None
    return value


def mapping(value: Any, *keys: str | int) -> dict[str, Any]:
    """The object at `keys`, or an empty one."""
    found = pick(value, *keys)
    return found if isinstance(found, dict) else {}


def listing(value: Any, *keys: str | int) -> list[Any]:
    """The list at `keys`, or an empty one."""
    found = pick(value, *keys)
    return found if isinstance(found, list) else []


def span(value: Any) -> tuple[float, float] | None:
    """The two ends of an interval, or None."""
    low, high = number(pick(value, 0)), number(pick(value, 1))
    return None if low is None or high is None else (low, high)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
