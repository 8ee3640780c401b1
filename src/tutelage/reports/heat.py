"""Metrics by place in the completion and step, in as many columns as a page can show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.reports.records import number

KEYS = (
    "overlap/ratio",
    "entropy/student",
    "entropy/teacher",
    "entropy/gap",
    "kl/reverse",
    "reward/mean",
)
MOST_COLUMNS = 240
MOST_BINS = 256


@dataclass(slots=True)
class _Column:
    """Some steps in a row: sums of value x tokens, and of tokens, by metric and bin."""

    first: float
    last: float
    totals: dict[str, NDArray[np.float64]]
    tokens: dict[str, NDArray[np.float64]]

    def merge(self, later: "_Column") -> "_Column":
        """Both as one."""

        def added(
            one: dict[str, NDArray[np.float64]], other: dict[str, NDArray[np.float64]]
        ) -> dict[str, NDArray[np.float64]]:
            return {
                key: one[key] + other[key]
                if key in one and key in other
                else one.get(key, other.get(key, np.zeros(0)))
                for key in {**one, **other}
            }

        return _Column(
            self.first,
            later.last,
            added(self.totals, later.totals),
            added(self.tokens, later.tokens),
        )


@dataclass(slots=True)
class Heat:
    """Columns of steps, merged two by two as more records come than can be shown.

    A cell is the mean over the tokens of its steps and its bin.
    """

    most: int | None = MOST_COLUMNS
    """Columns at most; None keeps one a record."""
    edges: list[float] = field(default_factory=list)
    """Of the bins, in tokens from the beginning of the completion."""
    stretch: int = 1
    """Records in a column."""
    records: int = 0
    """Records read."""
    _columns: list[_Column] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a line of positions.jsonl; one of another shape than the first is left out."""
        step, bins = number(record.get("step")), record.get("bins")
        edges = record.get("edges")
        if step is None or not isinstance(bins, dict) or not isinstance(edges, list):
            return
        places = [e for e in map(number, edges) if e is not None]
        if not 2 <= len(places) == len(edges) <= MOST_BINS + 1:
            return
        self.edges = self.edges or places
        tokens = _numbers(bins.get("tokens"), len(places) - 1)
        if places != self.edges or tokens is None:
            return
        column = _Column(step, step, {}, {})
        for key in KEYS:
            values = _numbers(bins.get(key), len(places) - 1)
            if values is not None:
                known = np.isfinite(values) & np.isfinite(tokens)
                column.tokens[key] = np.where(known, tokens, 0.0)
                column.totals[key] = np.where(known, values * tokens, 0.0)
        self._append(column)
        self.records += 1

    def _append(self, column: _Column) -> None:
        if self.records % self.stretch:
            self._columns[-1] = self._columns[-1].merge(column)
        else:
            self._columns.append(column)
        if self.most is not None and len(self._columns) > self.most:
            old = self._columns
            self._columns = [
                old[i].merge(old[i + 1]) if i + 1 < len(old) else old[i]
                for i in range(0, len(old), 2)
            ]
            self.stretch *= 2

    @property
    def spans(self) -> list[tuple[float, float]]:
        """First and last step of every column."""
        return [(column.first, column.last) for column in self._columns]

    def cells(self, key: str) -> list[list[float | None]] | None:
        """Means, a row a bin, a column a stretch of steps; None where never measured."""
        if not any(key in column.tokens and column.tokens[key].any() for column in self._columns):
            return None
        bins = len(self.edges) - 1
        table: list[list[float | None]] = [[] for _ in range(bins)]
        for column in self._columns:
            totals = column.totals.get(key, np.zeros(bins))
            tokens = column.tokens.get(key, np.zeros(bins))
            for row, total, count in zip(table, totals, tokens, strict=True):
                row.append(float(total / count) if count > 0 else None)
        return table


def _numbers(values: Any, count: int) -> NDArray[np.float64] | None:
    """Numbers with NaN for what is undefined; None for anything but `count` of them."""
    if not isinstance(values, list) or len(values) != count:
        return None
    try:
        with np.errstate(all="ignore"):
            return np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def outliers(cells: list[list[float | None]], share: float = 0.995) -> tuple[float, float, bool]:
    """Ends of a colour scale, and whether cells lie outside them.

    The scale ends at the highest cell, or where `share` of the cells lie below if the highest is
    more than twice as far: one cell must not hide all others; likewise at the low end.
    """
    values = np.array([v for row in cells for v in row if v is not None])
    low, high = float(values.min()), float(values.max())
    middle = float(np.median(values))
    near_low, near_high = (float(v) for v in np.quantile(values, [1 - share, share]))
    cut_low = middle - low > 2 * (middle - near_low) > 0
    cut_high = high - middle > 2 * (near_high - middle) > 0
    return (near_low if cut_low else low), (near_high if cut_high else high), cut_low or cut_high
