"""The run's side of its mirrors: a process each, which the run never waits for while it trains."""

import importlib.util
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tutelage.config import Config, Tracker, WandB
from tutelage.errors import MachineError, Preempted
from tutelage.runs.directory import Run
from tutelage.terminal import one_line
from tutelage.tracking.writers import folder_of

Record = dict[str, Any]
Observer = Callable[[Record], None]

STALLED_S = 60.0
"""Seconds without a word, while there is something to mirror, after which a mirror is given up."""
# Trackers read their settings, where to send and keys from these; ours come from the config.
_STOPPED_WAIT_S = 5.0  # of the ten seconds within which a stopped run ends
_THEIRS = re.compile(r"^(WANDB|TRACKIO|HF|HUGGING_FACE|GRADIO)_", re.IGNORECASE)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_QUIET = {
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_ERROR_REPORTING": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}


def require_trackers(config: Config) -> None:
    """Refuse a tracker that is not installed, before hours of training without it.

    Raises:
        MachineError: one is not.
    """
    for tracker in config.run.trackers:
        if not _is_installed(tracker.type):
            raise MachineError(
                f"run.trackers names {tracker.type}, which is not installed; "
                "pip install 'tutelage[track]', or leave it out"
            )
        key = tracker.key_env if isinstance(tracker, WandB) else None
        if key is not None and not os.environ.get(key):
            raise MachineError(
                f"run.trackers: wandb's key_env names {key}, and no such environment variable is "
                "set; set it, or use mode: offline"
            )


def _is_installed(package: str) -> bool:
    try:
        found = importlib.util.find_spec(package)
    except ValueError:
        return False
    # A folder that wandb left where the run starts is no package.
    return found is not None and found.origin is not None


class Mirrors:
    """All mirrors of a run: `with Mirrors(...) as mirrors`, which is an observer.

    A mirror that fails, hangs or is slow costs the run nothing: it follows metrics.jsonl by
    itself. Its failure is an event, once, and how much it mirrored is another when it ends.
    """

    def __init__(self, config: Config, run: Run, observer: Observer) -> None:
        self.run, self.observer = run, observer
        self.wait_s = config.run.tracker_wait_s
        self.mirrors = [_Mirror(t, config, run.path) for t in config.run.trackers]

    def __enter__(self) -> "Mirrors":
        for mirror in self.mirrors:
            mirror.start()
        return self

    def __call__(self, record: Record) -> None:
        """Pass a record on, and see how the mirrors do."""
        self.observer(record)
        if record["kind"] in ("train", "eval", "probe"):
            for mirror in self.mirrors:
                mirror.look(time.monotonic(), written=1)
            self._tell_failures()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wait_s = self.wait_s
        if kind is not None and issubclass(kind, Preempted):
            wait_s = min(wait_s, _STOPPED_WAIT_S)  # the run's next sitting mirrors the rest
        if kind is KeyboardInterrupt:  # who presses Ctrl-C twice does not want to wait
            wait_s = 0.0
        until = time.monotonic() + wait_s
        try:
            for mirror in self.mirrors:
                mirror.close()
            for mirror in self.mirrors:
                mirror.wait(until)
        finally:
            for mirror in self.mirrors:
                mirror.kill()
        with suppress(OSError):  # the disk may be full
            self._tell_failures()
            for mirror in self.mirrors:
                self.run.log_event(
                    "tracker_closed",
                    tracker=mirror.type,
                    mirrored=mirror.mirrored,
                    dropped=max(0, mirror.written - mirror.mirrored),
                )

    def _tell_failures(self) -> None:
        for mirror in self.mirrors:
            if mirror.fault is not None and not mirror.is_told:
                mirror.is_told = True
                event = {"tracker": mirror.type, "text": mirror.fault}
                self.run.log_event("tracker_failed", **event)
                self.observer({"kind": "tracker_failed", **event})


class _Mirror:
    def __init__(self, tracker: Tracker, config: Config, run: Path) -> None:
        self.type = tracker.type
        self.tracker, self.config, self.run = tracker, config, run.absolute()
        self.state = self.run / "trackers" / f"{self.type}.json"
        self.process: subprocess.Popen[bytes] | None = None
        self.phase, self.is_told, self.is_done = "start", False, False
        self.fault: str | None = None
        self.mirrored, self.written = 0, _lines(self.run / "metrics.jsonl")
        self._rest = b""
        self._heard = time.monotonic()

    def start(self) -> None:
        """Start its process; a failure to do so is its own."""
        try:
            order = self._order()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tutelage.tracking.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(self.tracker),
                start_new_session=True,  # Ctrl-C at the terminal is for the run
            )
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            os.set_blocking(self.process.stdout.fileno(), False)
            os.set_blocking(self.process.stdin.fileno(), False)  # an order fits into the pipe
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except (OSError, RuntimeError, ValueError) as error:  # a folder that cannot be had
            self.fault = f"it did not start: {one_line(str(error))}"

    def look(self, now: float, written: int = 0) -> None:
        """Hear what it says; give it up where it has said nothing for too long."""
        if self.mirrored >= self.written:
            self._heard = now  # it had nothing to do
        self.written += written
        if self.process is None or self.fault is not None:
            return
        self._hear(now)
        if self.fault is None and self.process.poll() is not None and not self.is_done:
            self._hear(now)
            self.fault = self.fault or f"its process died in {self.phase}"
        if self.fault is None and now - self._heard > STALLED_S:
            self.fault = f"it hung in {self.phase} for {now - self._heard:.0f} s"
        if self.fault is not None:
            self.kill()

    def close(self) -> None:
        """Let it read the rest and end."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def wait(self, until: float) -> None:
        """Wait for its end, not longer than until a time."""
        while self.process is not None and self.fault is None and not self.is_done:
            now = time.monotonic()
            self._hear(now)
            if self.is_done or self.fault is not None:
                return
            if self.process.poll() is not None:
                self._hear(now)
                if not self.is_done:
                    self.fault = self.fault or f"its process died in {self.phase}"
                return
            if now >= until:
                self.fault = f"it was still at {self.phase} when the run ended, and was given up"
                return
            time.sleep(0.02)

    def kill(self) -> None:
        """End it and what it started."""
        if self.process is None:
            return
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self.process = None

    def _hear(self, now: float) -> None:
        if self.process is None or self.process.stdout is None:
            return
        while chunk := self._read(self.process.stdout.fileno()):
            self._heard = now
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                word = json.loads(line)
                self.phase = word.get("phase", self.phase)
                self.mirrored = word.get("mirrored", self.mirrored)
                self.is_done = self.is_done or word.get("done", False)
                if "fault" in word:
                    self.fault = f"{word['fault']} (in {self.phase})"

    @staticmethod
    def _read(descriptor: int) -> bytes:
        try:
            return os.read(descriptor, 65536)
        except BlockingIOError:
            return b""

    def _order(self) -> dict[str, Any]:
        """What its process needs to know. No key is in it, nor in the settings."""
        known: Mapping[str, Any] = {}
        with suppress(OSError, ValueError):
            known = json.loads(self.state.read_text(encoding="utf-8"))
        tracker = self.tracker.model_dump(mode="json")
        name = known.get("name") or self.tracker.name or self.run.name
        folder = folder_of(self.run, tracker, name)
        folder.mkdir(parents=True, exist_ok=True)
        self.state.parent.mkdir(parents=True, exist_ok=True)
        return {
            "tracker": tracker,
            "config": self.config.model_dump(mode="json"),
            "run": str(self.run),
            "state": str(self.state),
            "folder": str(folder),
            "name": name,
            "id": known.get("id") or secrets.token_hex(4),
            "continues": bool(known),
            "last": known.get("last", {}),
            "wait_s": self.config.run.tracker_wait_s,
        }


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as stream:
            return sum(1 for _ in stream)
    except OSError:
        return 0


def _environment(tracker: Tracker) -> dict[str, str]:
    """Variables of the mirror's process: what may send or tell something is left out."""
    sends = isinstance(tracker, WandB) and tracker.mode == "online"
    kept = {
        name: value
        for name, value in os.environ.items()
        if not _THEIRS.match(name) and not _SECRET.search(name)
    }
    own = {"PYTHONPATH": os.pathsep.join(part or os.getcwd() for part in sys.path), **_QUIET}
    if sends and isinstance(tracker, WandB) and tracker.key_env is not None:
        own["WANDB_API_KEY"] = os.environ.get(tracker.key_env, "")
    return kept | own
