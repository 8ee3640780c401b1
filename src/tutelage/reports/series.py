"""Series of a run, gathered row by row, and thinned without losing their extremes."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tutelage.reports.records import number

MOST_KEYS = 500
"""A run records some 80; more are left out, so that no file fills the memory."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values against steps, both finite, steps ascending."""

    steps: Sequence[float]
    """Optimizer steps."""
    values: Sequence[float]
    """One a step."""


@dataclass(slots=True)
class Columns:
    """The numbers of records of one kind, by key, as arrays."""

    _found: dict[str, tuple["array[float]", "array[float]"]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append the numbers of a record; one without a step is left out."""
        step = number(record.get("step"))
        if step is None:
            return
        for key, value in record.items():
            found = number(value)
            if found is None or key == "step":
                continue
            if key not in self._found:
                if len(self._found) >= MOST_KEYS:
                    continue
                self._found[key] = (array("d"), array("d"))
            steps, values = self._found[key]
            steps.append(step)
            values.append(found)

    def __iter__(self) -> Iterator[str]:
        """What was recorded."""
        return iter(self._found)

    def get(self, key: str) -> Series | None:
        """The series of a key, or None where nothing was recorded."""
        if key not in self._found:
            return None
        steps, values = self._found[key]
        if any(later < earlier for earlier, later in pairwise(steps)):
            order = sorted(range(len(steps)), key=steps.__getitem__)
            return Series([steps[i] for i in order], [values[i] for i in order])
        return Series(steps, values)

    def at(self, key: str, step: float) -> float | None:
        """The last value recorded at a step."""
        series = self.get(key)
        if series is None:
            return None
        found = [v for s, v in zip(series.steps, series.values, strict=True) if s == step]
        return found[-1] if found else None


def thin(values: Sequence[float], most: int) -> list[int]:
    """Places to keep of a series: of each stretch the first, the last, the lowest and the highest.

    All places where there are no more than `most`. What is drawn from them has the same outline
    as the whole, and every point of it was recorded.
    """
    if len(values) <= most:
        return list(range(len(values)))
    stretches = max(1, most // 4)
    kept: set[int] = set()
    for i in range(stretches):
        places = range(i * len(values) // stretches, (i + 1) * len(values) // stretches)
        kept |= {places[0], places[-1]}
        kept |= {min(places, key=values.__getitem__), max(places, key=values.__getitem__)}
    return sorted(kept)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def weighted_mean(pairs: Iterable[tuple[float, float]]) -> float | None:
    """Mean of (value, weight) pairs, or None without weight."""
    total = weight = 0.0
    for value, count in pairs:
        total += value * count
        weight += count
    return total / weight if weight > 0 else None
