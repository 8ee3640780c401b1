"""Figures as plain data: the page draws them with plotly, and CSV files hold the same rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.reports.series import thin

MOST_POINTS = 1200
"""Points of a curve in the page."""

Scale = Literal["plain", "share", "log"]
Style = Literal["line", "faint", "points", "level"]
Row = tuple[str | float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A curve, or points, of one run."""

    run: str
    """Its run; several curves of a run share a colour when runs are compared."""
    name: str
    """What it is, beside the run; empty where the figure's title says it."""
    x: Sequence[float]
    """Steps."""
    y: Sequence[float]
    """Values."""
    low: Sequence[float] = ()
    """Lower ends of 95 % intervals, or empty."""
    high: Sequence[float] = ()
    """Upper ends."""
    colour: int = 0
    """Index in the palette."""
    dash: int = 0
    """Index of the line style."""
    style: Style = "line"
    """Evaluations; single training steps; unconnected points; a level to compare with."""

    def rows(self) -> Iterator[Row]:
        """run, series, x, value, low, high."""
        for i, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            ends = (self.low[i], self.high[i]) if self.low else (None, None)
            yield (self.run, self.name, _short(x), y, *ends)

    def thinned(self) -> "Trace":
        """With at most as many points as a page needs; unconnected points are not thinned."""
        if len(self.x) <= MOST_POINTS or self.style == "points":
            return self
        kept = thin(self.y, MOST_POINTS)
        return Trace(
            run=self.run,
            name=self.name,
            x=[self.x[i] for i in kept],
            y=[self.y[i] for i in kept],
            low=[self.low[i] for i in kept] if self.low else (),
            high=[self.high[i] for i in kept] if self.high else (),
            colour=self.colour,
            dash=self.dash,
            style=self.style,
        )

    def drawn(self) -> dict[str, Any]:
        """For draw.js."""
        told: dict[str, Any] = {
            "run": self.run,
            "name": self.name,
            "x": [_short(v) for v in self.x],
            "y": list(self.y),
            "colour": self.colour,
            "dash": self.dash,
            "style": self.style,
        }
        if self.low:
            told |= {"low": list(self.low), "high": list(self.high)}
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure with everything a reader needs."""

    id: str
    """Its anchor and the name of its files."""
    title: str
    """What it shows."""
    note: str
    """How to read it."""
    kind: Literal["lines", "heat", "bars", "dots"]
    """How it is drawn."""
    x: str
    """Title of the horizontal axis, with its unit."""
    y: str
    """Title of the vertical axis, with its unit."""
    columns: tuple[str, ...] = ("run", "series", "step", "value", "low", "high")
    """Of its CSV file."""
    traces: tuple[Trace, ...] = ()
    """Of `lines`."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Of the other kinds, for draw.js."""
    data: Iterable[Row] = ()
    """Of the other kinds: the rows of the CSV file."""
    scale: Scale = "plain"
    """Of the vertical axis: from 0 where that is near; from 0 to 1; logarithmic."""
    wide: bool = False
    """Whether it takes the whole width."""

    @property
    def thinned(self) -> str:
        """What is left out of the drawing; empty where nothing is."""
        longest = max((len(t.x) for t in self.traces if t.style != "points"), default=0)
        if longest > MOST_POINTS:
            stretch = -(-longest // (MOST_POINTS // 4))
            return (
                f"Drawn from up to four of every {stretch} recorded values (first, last, lowest, "
                f"highest); the CSV of `tutelage report --csv` has all {longest:,}."
            )
        return str(self.body.get("thinned", ""))

    def rows(self) -> Iterator[Row]:
        """All rows of the CSV file."""
        for trace in self.traces:
            yield from trace.rows()
        yield from self.data

    def drawn(self) -> dict[str, Any]:
        """For draw.js."""
        told: dict[str, Any] = {
            "id": self.id,
            "title": self.title,
            "kind": self.kind,
            "x": self.x,
            "y": self.y,
            "columns": list(self.columns),
            "scale": self.scale,
            "wide": self.wide,
        }
        if self.kind == "lines":
            return told | {"traces": [trace.thinned().drawn() for trace in self.traces]}
        told |= self.body
        return told if self.kind == "heat" else told | {"rows": [list(row) for row in self.data]}

    @property
    def words(self) -> str:
        """The figure in words, for who cannot see it."""
        if self.kind != "lines":
            return f"{self.title}. {self.note}"
        told = [
            f"{' '.join(filter(None, (t.run, t.name)))} from {t.y[0]:.3g} to {t.y[-1]:.3g}"
            for t in self.traces
            if t.style in ("line", "level") and len(t.y)
        ]
        return f"{self.title}, {self.y}: {'; '.join(told[:12])}."


def _short(value: float) -> float:
    """Whole numbers without a decimal point."""
    return int(value) if float(value).is_integer() else value
