"""What goes on, on a terminal that redraws; plain lines elsewhere."""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tutelage.secrets import redacted
from tutelage.terminal import printable
from tutelage.watching.drawing import Picture
from tutelage.watching.following import GOES_ON, Follower, Watched
from tutelage.watching.told import progress_line, record_line
from tutelage.watching.view import View

Record = Mapping[str, Any]

_PLAIN_EVERY_S = 60.0
_REDRAWS_A_SECOND = 2


class Screen:
    """Where a run is shown: redrawn in place, or a line after the other."""

    def __init__(
        self, stream: IO[str], picture: Callable[[], Picture], clock: Callable[[], float]
    ) -> None:
        self.is_live = can_redraw(stream)
        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self.lock = threading.RLock()
        self._picture, self._clock = picture, clock
        self._told_at = clock()
        self._live: Live | None = None

    def __enter__(self) -> "Screen":
        if self.is_live:
            self._live = Live(
                get_renderable=self._drawn,
                console=self.console,
                refresh_per_second=_REDRAWS_A_SECOND,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with suppress(OSError, ValueError):  # the terminal may be gone
                self._live.stop()

    def say(self, line: str) -> None:
        """One line; model text and paths are never read as markup, nor obeyed."""
        self.console.print(printable(redacted(line)), markup=False)

    def say_progress(self, view: View, remaining_s: float | None) -> None:
        """How far the run is, where nothing is redrawn: now and then."""
        now = self._clock()
        if not self.is_live and now - self._told_at >= _PLAIN_EVERY_S:
            self._told_at = now
            self.say(progress_line(view, remaining_s))

    def _drawn(self) -> Picture:
        with self.lock:
            return self._picture()


class Display:
    """An observer of a run that shows what it is told, on stderr."""

    def __init__(
        self,
        steps: int,
        *,
        name: str = "training",
        evaluate_every: int = 0,
        before: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A display that is not shown yet.

        Args:
            steps: of the whole run; 0 where that is not known.
            name: what stands above.
            evaluate_every: steps between evaluations.
            before: directory of a run that is resumed: its curves go on.
            clock: seconds that never go back.
        """
        self.view = View()
        if before is not None and (before / "config.yaml").is_file():
            self.view = Follower(before).look().view
            self.view.end = None
        self.steps = self.view.steps = steps or None
        self.view.evaluate_every = evaluate_every
        self.name, self._clock, self._last = name, clock, clock()
        self.state = "running"
        self.screen = Screen(sys.stderr, self._picture, clock)

    def __enter__(self) -> "Display":
        self.screen.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.state = "finished" if kind is None else "stopped"
        self.screen.__exit__()

    def __call__(self, record: Record) -> None:
        """Show one record; a terminal that is gone is no reason to stop."""
        with self.screen.lock, suppress(OSError, ValueError):
            self._show(record)

    def say(self, line: str) -> None:
        """One line."""
        self.screen.say(line)

    def _show(self, record: Record) -> None:
        kind = record["kind"]
        if kind in ("train", "eval", "probe"):
            self.view.steps = record.get("of", self.steps)  # of an imitation before the run
            self.view.add(record)
            self._last = self._clock()
        elif kind == "signal":
            self.view.warn(record)
        elif kind == "tracker_failed":
            self.view.hear({**record, "event": kind})
        line = record_line(record) or _other_line(record)
        if line is not None:
            self.say(line)
        elif kind == "train":
            self.screen.say_progress(self.view, self.view.remaining_s())

    def _picture(self) -> Picture:
        since = self._clock() - self._last
        remaining = self.view.remaining_s(since) if self.state == "running" else None
        state = self.state if self.view.begun else "getting ready"
        return Picture(self.view, name=self.name, state=state, remaining_s=remaining)


class WatchDisplay:
    """An observer of a run that somebody else trains, on stdout."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._watched: Watched | None = None
        self._said: set[str] = set()
        self.screen = Screen(sys.stdout, self._picture, clock)

    def __enter__(self) -> "WatchDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.__exit__()

    def __call__(self, watched: Watched) -> None:
        """Show the run as it stands."""
        with self.screen.lock:
            is_first, self._watched = self._watched is None, watched
        if self.screen.is_live:
            if is_first:
                self.screen.__enter__()
            return
        for record in sorted(watched.news, key=_step):
            line = record_line(record)
            if line is not None and line not in self._said:  # a resumed run says some again
                self._said.add(line)
                self.screen.say(line)
        self.screen.say_progress(watched.view, watched.remaining_s)
        if watched.state not in GOES_ON:
            draw(watched, sys.stdout)

    def _picture(self) -> Picture:
        assert self._watched is not None
        return Picture.of(self._watched)


class LabDisplay:
    """Progress of the lab's own training, on stderr."""

    def __init__(self, steps: int) -> None:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not can_redraw(sys.stderr),
        )
        self.task = self.bar.add_task("training", total=steps, note="")

    def __enter__(self) -> "LabDisplay":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_lab_step(self, name: str, step: int, loss: float) -> None:
        """One more step of a lab model's training."""
        self.bar.update(self.task, advance=1, description=name, note=f"loss {loss:.3f}")


def draw(watched: Watched, stream: IO[str]) -> None:
    """A run as it stands, once."""
    console = Console(file=stream, highlight=False)
    if not stream.isatty():
        console = Console(file=stream, highlight=False, width=100, color_system=None)
    console.print(Picture.of(watched))


def say(line: str) -> None:
    """One line on stderr; model text and paths are never read as markup, nor obeyed."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(printable(redacted(line)), markup=False)


def look_line(record: Mapping[str, Any]) -> str:
    """What a check found of one teacher."""
    return f"{record['teacher']}: {record['verdict']}. {record['reason']}."


def can_redraw(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that obeys."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _step(record: Record) -> int:
    step = record.get("step")
    return step if isinstance(step, int) else 0


def _other_line(record: Record) -> str | None:
    """What is no part of a run's own files."""
    match record["kind"]:
        case "note":
            return f"note: {record['text']}."
        case "look":
            return look_line(record)
        case "answers":
            return f"{record['kept']} of {record['slots']} answers kept, {record['tries']} drawn."
        case "validation":
            return f"step {record['step']:>4}  validation loss {record['loss']:.4f}"
        case _:
            return None
