"""Processes that compare formulas, each killed at the deadline of its job.

A deadline is processor time, so that a busy machine makes no verdict unknown: the kernel ends
a worker that has used it up. One that waits without computing is killed by the clock.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, NamedTuple, cast

from tutelage.errors import MachineError

_WORKER = Path(__file__).with_name("math_worker.py")
_START_S = 120.0  # math-verify takes 1.3 s to import on an idle core
_PATIENCE = 10  # wall-clock seconds for one of the deadline, which the kernel keeps
_STARTS = 3  # that fail in a row before it is no accident
_VERDICTS = {b"1\n": 1.0, b"0\n": 0.0, b"unknown\n": None}


class Comparison(NamedTuple):
    """What one job asks: do these two say the same?"""

    reference: str
    """A formula."""
    answer: str
    """Another, or prose that holds it."""
    is_formula: bool
    """Whether all of `answer` is the formula."""


class MathPool:
    """Judges comparisons in parallel; a hanging or dying one costs its own verdict alone.

    `deadline_s` is processor time. Processes start when they are first needed, and end with the
    pool or with this process. Several threads may use one pool; a forked process gets its own
    workers.
    """

    def __init__(self, *, deadline_s: float, size: int) -> None:
        self.deadline_s, self.size = deadline_s, size
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._workers, self._pid)

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers there are."""
        return [worker.process.pid for worker in self._workers]

    def compare(self, jobs: Sequence[Comparison]) -> list[float | None]:
        """1 equal, 0 not; None at the deadline, after a crash, or where it cannot be told.

        Equal jobs are judged once.

        Raises:
            MachineError: a worker does not start.
        """
        distinct = list(dict.fromkeys(jobs))
        with self._lock:
            try:
                verdicts = dict(zip(distinct, self._judge(distinct), strict=True))
            except BaseException:  # what is under way would answer the next call
                _end(self._workers, self._pid)
                raise
        return [verdicts[job] for job in jobs]

    def close(self) -> None:
        """End the workers; they start again if they are needed."""
        with self._lock:
            _end(self._workers, self._pid)

    def _judge(self, jobs: Sequence[Comparison]) -> list[float | None]:
        if self._pid != os.getpid():  # a fork: these workers answer to the other process
            self._workers.clear()
            self._pid = os.getpid()
            self._finalizer.detach()
            self._finalizer = weakref.finalize(self, _end, self._workers, self._pid)
        verdicts: list[float | None] = [None] * len(jobs)
        waiting = deque(range(len(jobs)))
        while len(self._workers) < min(self.size, len(jobs)):
            self._workers.append(_Worker())
        while waiting or any(worker.job is not None for worker in self._workers):
            for place, worker in enumerate(self._workers):
                if waiting and worker.is_ready and worker.job is None:
                    if worker.process.poll() is None:
                        worker.take(waiting.popleft(), jobs, self.deadline_s)
                    else:  # it died between two jobs
                        self._replace(place)
            self._receive(verdicts)
        return verdicts

    def _receive(self, verdicts: list[float | None]) -> None:
        """Wait for a word or a deadline; replace workers that are gone or late."""
        active = [w for w in self._workers if w.job is not None or not w.is_ready]
        left = min(worker.until for worker in active) - time.monotonic()
        spoke = wait([worker.output.fileno() for worker in active], timeout=max(0.0, left))
        for place, worker in enumerate(self._workers):
            if worker.output.fileno() in spoke:
                word = worker.output.read(64)
                if word == b"ready\n":
                    worker.is_ready, self._failed_starts = True, 0
                elif word in _VERDICTS and worker.job is not None:
                    verdicts[worker.job], worker.job = _VERDICTS[word], None
                else:
                    self._replace(place)
            elif worker in active and time.monotonic() >= worker.until:
                self._replace(place)

    def _replace(self, place: int) -> None:
        worker = self._workers[place]
        worker.end()
        self._workers[place] = _Worker()
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts == _STARTS:
            raise MachineError(
                "the process of data.verifier math does not start; see what "
                f"`{sys.executable} {_WORKER}` says"
            )


class _Worker:
    """One process, and what it is at."""

    def __init__(self) -> None:
        # -P: the folder of the script must not hide packages. A session of its own: Ctrl-C
        # at the terminal is for the run, which stops when it is ready.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self.output = cast(IO[bytes], self.process.stdout)
        self.is_ready = False
        self.job: int | None = None
        self.until = time.monotonic() + _START_S

    def take(self, place: int, jobs: Sequence[Comparison], deadline_s: float) -> None:
        self.job, self.until = place, time.monotonic() + _PATIENCE * deadline_s
        line = memoryview(json.dumps([*jobs[place], deadline_s]).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):  # it died; its closed output tells
            while line:
                line = line[cast(IO[bytes], self.process.stdin).write(line) :]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            cast(IO[bytes], stream).close()


def _end(workers: list[_Worker], pid: int) -> None:
    if pid == os.getpid():
        while workers:
            workers.pop().end()
