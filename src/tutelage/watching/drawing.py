"""A run drawn for a terminal, from a wide one down to a few columns."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from rich.console import Console, ConsoleOptions, OverflowMethod, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tutelage.terminal import one_line
from tutelage.watching.following import Watched
from tutelage.watching.told import duration, signal_text, warning_line
from tutelage.watching.view import SIGNALS, View

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
# Shade tells the phases apart where colour does not; the colours differ in lightness as well.
_SHADES, _ASCII_SHADES = "█▓▒░", "#=-."
_PHASE_COLOURS = ("blue", "yellow", "cyan", "bright_black")
_STATE_STYLES = {
    "running": "bold cyan",
    "finished": "bold green",
    "stopped": "bold yellow",
    "silent": "bold yellow",
    "crashed": "bold red",
}
_LABEL = max(len(signal.label) for signal in SIGNALS) + 2
_SHOWN_WARNINGS = 3


class Picture:
    """What a terminal shows of a run; rich renders it to the width there is."""

    def __init__(
        self,
        view: View,
        *,
        name: str,
        state: str,
        reason: str = "",
        remaining_s: float | None = None,
    ) -> None:
        self.view, self.name, self.state = view, name, state
        self.reason, self.remaining_s = reason, remaining_s

    @classmethod
    def of(cls, watched: Watched) -> "Picture":
        """The picture of a followed run."""
        return cls(
            watched.view,
            name=str(watched.run),
            state=watched.state,
            reason=watched.reason,
            remaining_s=watched.remaining_s,
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, is_ascii = options.max_width, options.ascii_only
        # An ellipsis is no ASCII.
        self._overflow: OverflowMethod = "crop" if is_ascii else "ellipsis"
        yield self._head(width)
        if not self.view.begun:
            return
        yield self._bar(width)
        yield Text()
        yield from self._signals(width, is_ascii)
        if self.view.phases:
            yield Text()
            yield from self._phases(width, is_ascii)
        yield from self._warnings(width)

    def _head(self, width: int) -> Text:
        text = Text(no_wrap=True, overflow=self._overflow)
        name = one_line(self.name)
        room = max(8, width - len(self.state) - 2)
        text.append(name if len(name) <= room else "..." + name[3 - room :], style="bold")
        text.append("  ")
        text.append(self.state, style=_STATE_STYLES.get(self.state, ""))
        if self.reason:
            text.no_wrap = False
            text.append(f": {one_line(self.reason)}")
        return text

    def _bar(self, width: int) -> Table:
        view = self.view
        count = f"step {view.step}" + (f" of {view.steps}" if view.steps else "")
        left = f"  {duration(self.remaining_s)} left" if self.remaining_s is not None else ""
        bar = Table.grid(padding=(0, 2, 0, 0))
        room = min(60, width - len(count) - len(left) - 2)
        cells: list[ProgressBar | Text] = []
        if view.steps and room >= 10:
            cells.append(
                ProgressBar(
                    view.steps,
                    min(view.step, view.steps),
                    width=room,
                    complete_style="cyan",
                    finished_style="green",
                )
            )
        cells.append(Text(count + left, no_wrap=True, overflow=self._overflow))
        bar.add_row(*cells)
        return bar

    def _signals(self, width: int, is_ascii: bool) -> RenderResult:
        shown = [signal for signal in SIGNALS if self.view.series.get(signal.key)]
        texts = {signal.key: signal_text(self.view, signal) for signal in shown}
        longest = max((len(text) for text in texts.values()), default=0)
        room = min(40, width - _LABEL - longest - 2)
        series = self.view.series
        first = min((series[signal.key][0][0] for signal in shown), default=0)
        for signal in shown:
            points = series[signal.key]
            line = Text(no_wrap=True, overflow=self._overflow)
            line.append(f"{signal.label:{_LABEL}}", style="dim")
            if room >= 8:
                steps = (first, self.view.step)
                drawn = sparkline(points, steps, room, is_ascii) if len(points) > 1 else ""
                line.append(f"{drawn:{room}}  ", style="cyan")
            line.append(texts[signal.key])
            yield line

    def _phases(self, width: int, is_ascii: bool) -> RenderResult:
        view = self.view
        shares = view.shares()
        major = list(shares.items())[:3]
        rest = 1 - sum(share for _, share in major)
        parts = [*major, *([("other", rest)] if rest > 0.005 else [])]
        line = Text(no_wrap=True, overflow=self._overflow)
        line.append(f"{'a step':{_LABEL}}", style="dim")
        words = ""
        for count in range(len(parts), 0, -1):  # the small ones go first where it is narrow
            shown = ", ".join(f"{one_line(name, 20)} {share:.0%}" for name, share in parts[:count])
            words = f"{duration(view.step_s or 0.0)}: {shown}"
            if len(words) <= width - _LABEL:
                break
        room = min(40, width - _LABEL - len(words) - 2)
        if room >= 8:
            shades = _ASCII_SHADES if is_ascii else _SHADES
            for (_, size), shade, colour in zip(
                _apportion(parts, room), shades, _PHASE_COLOURS, strict=False
            ):
                line.append(shade * size, style=colour)
            line.append("  ")
        line.append(words)
        yield line

    def _warnings(self, width: int) -> RenderResult:
        warnings = self.view.warnings
        if not warnings:
            return
        yield Text()
        hidden = len(warnings) - _SHOWN_WARNINGS
        if hidden > 0:
            yield Text(f"{hidden} earlier in events.jsonl", style="dim")
        for told in warnings[-_SHOWN_WARNINGS:]:
            text = Text("! ", style="bold yellow")
            text.append(one_line(warning_line(told), max(40, 3 * width)), style="not bold yellow")
            yield text


def sparkline(
    points: Sequence[tuple[int, float]], steps: tuple[int, int], width: int, is_ascii: bool = False
) -> str:
    """The course of a series from its least to its largest value, in at most `width` characters.

    Each character stands for as many of the steps between the first and the last of `steps`, for
    the mean of their values, or for the value before where there is none. So series of one run
    stand above each other. A constant is drawn low.
    """
    blocks = _ASCII_BLOCKS if is_ascii else _BLOCKS
    first, span = steps[0], steps[1] - steps[0] + 1
    width = min(width, span)
    columns: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        columns[min(width - 1, max(0, (step - first) * width // span))].append(value)
    means: list[float | None] = []
    for values in columns:
        means.append(fmean(values) if values else means[-1] if means else None)
    known = [mean for mean in means if mean is not None]
    low, high = min(known), max(known)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if m is None else blocks[round((m - low) * scale)] for m in means)


def _apportion(parts: Sequence[tuple[str, float]], width: int) -> list[tuple[str, int]]:
    """Whole characters for each share, which add up to the width."""
    ends, total = [0], 0.0
    for _, share in parts:
        total += share
        ends.append(round(width * min(1.0, total)))
    return [(name, b - a) for (name, _), (a, b) in zip(parts, pairwise(ends), strict=True)]
