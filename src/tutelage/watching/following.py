"""Following a run by its files: no server, nothing written."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tutelage.errors import UsageError
from tutelage.runs.directory import open_run
from tutelage.runs.following import Tail
from tutelage.runs.lock import is_locked
from tutelage.watching.view import View

State = Literal["not begun", "running", "silent", "finished", "stopped", "crashed"]
GOES_ON: frozenset[State] = frozenset({"not begun", "running", "silent"})

_QUIET_S = 60.0
_QUIET_STEPS = 10


@dataclass(frozen=True)
class Watched:
    """A run at one moment."""

    run: Path
    """Its directory."""
    state: State
    """not begun: no record yet; silent: nobody can be seen at work, and nothing was written for
    long; stopped: by a guard, a signal or an error that says what to do; crashed: by a bug, or
    killed."""
    view: View
    """What its files say."""
    since_s: float
    """Seconds since its files last grew."""
    news: Sequence[Mapping[str, Any]] = ()
    """Events and records that came since the last look."""

    @property
    def reason(self) -> str:
        """Why it is no longer at work, in words; empty while it is."""
        end = self.view.end or {}
        match self.state:
            case "finished":
                outcome = str(end.get("outcome", "finished"))
                return "" if outcome == "finished" else outcome
            case "stopped":
                return str(end.get("text", ""))
            case "crashed":
                return str(end.get("text", "killed, or the machine went down; nothing was said"))
            case _:
                return ""

    @property
    def remaining_s(self) -> float | None:
        """Seconds until its last step, while it goes on."""
        return self.view.remaining_s(self.since_s) if self.state in GOES_ON else None

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        told: dict[str, Any] = {"run_dir": str(self.run), "state": self.state}
        told["reason"] = self.reason
        told |= self.view.to_dict()
        told.pop("remaining_s", None)
        if self.remaining_s is not None:
            told["remaining_s"] = round(self.remaining_s, 3)
        return told


Observer = Callable[[Watched], None]


class Follower:
    """Reads what is new in a run directory."""

    def __init__(self, run: str | Path) -> None:
        found = open_run(run)
        self.path = found.path
        self.view = View(*_planned(found.path))
        self._metrics, self._events = Tail(found.metrics), Tail(found.events)
        self._grew = time.monotonic() - max(0.0, time.time() - _written(self.path))
        self._looked = False

    def look(self) -> Watched:
        """The run as it is now."""
        # Asked before the files are read: what was written before the end is then read too.
        present = is_locked(self.path)
        events, records = self._events.read(), self._metrics.read()
        for event in events:
            self.view.hear(event)
        for record in records:
            self.view.add(record)
        if self._looked and (events or records):
            self._grew = time.monotonic()
        self._looked = True
        since_s = max(0.0, time.monotonic() - self._grew)
        state = self._state(present, since_s)
        return Watched(self.path, state, self.view, since_s, [*events, *records])

    def _state(self, present: bool | None, since_s: float) -> State:
        end = self.view.end
        if end is not None and end.get("event") == "end":
            return "finished"
        if end is not None:
            return "crashed" if end.get("exit") == 1 else "stopped"
        if present is False:
            return "crashed"
        if present is None and since_s > max(_QUIET_S, _QUIET_STEPS * (self.view.step_s or 0.0)):
            return "silent"
        return "running" if self.view.begun else "not begun"


def watch(
    run: str | Path,
    *,
    once: bool = False,
    observer: Observer = lambda watched: None,
    poll_s: float = 1.0,
) -> Watched:
    """Follow a run until it ends; what it came to.

    Args:
        run: its directory.
        once: say how it stands now, and do not wait.
        observer: told after every look.
        poll_s: seconds between two looks.

    Raises:
        UsageError: `run` is no run directory.
    """
    if poll_s <= 0:
        raise UsageError(f"poll_s {poll_s:g} would never sleep; give seconds above 0")
    follower = Follower(run)
    while True:
        watched = follower.look()
        observer(watched)
        if once or watched.state not in GOES_ON:
            return watched
        time.sleep(poll_s)


def _planned(path: Path) -> tuple[int | None, int]:
    """Steps and steps between evaluations, as the run began; other versions' settings too."""
    try:
        tree = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        steps, every = tree["run"]["steps"], tree["evaluation"]["every"]
        return int(steps), int(every)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None, 0


def _written(path: Path) -> float:
    """When the run last wrote something."""
    times = [0.0]
    for name in ("config.yaml", "metrics.jsonl", "events.jsonl"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)
