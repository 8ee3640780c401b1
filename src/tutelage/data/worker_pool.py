"""Processes that work for us, each killed at the deadline of its job.

A deadline is processor time, so that a busy machine makes nothing unknown: the kernel ends
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
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import IO, Any, NamedTuple, cast

from tutelage.data.worker import READY
from tutelage.errors import MachineError, UsageError

_START_S = 120.0  # math-verify takes 1.3 s to import on an idle core
_PATIENCE = 10  # wall-clock seconds for one of the deadline, which the kernel keeps
_STARTS = 3  # that fail in a row before it is no accident


class Fault(NamedTuple):
    """What a worker says of a job that the user has to mend."""

    told: str
    """The end of a sentence that begins with the setting."""


class WorkerPool:
    """Does jobs in parallel; a hanging or dying one costs its own answer alone.

    Processes start when they are first needed, and end with the pool or with this process.
    Several threads may use one pool; a forked process gets its own workers.
    """

    def __init__(
        self,
        worker: str,
        *arguments: str,
        setting: str,
        deadline_s: float,
        size: int,
        quiet: bool = False,
    ) -> None:
        """A pool without processes.

        Args:
            worker: module that calls `worker.serve`.
            arguments: what it reads in `sys.argv[2:]`.
            setting: the setting that asks for it, for messages.
            deadline_s: most seconds of processor time for one job.
            size: most processes.
            quiet: whether what they print is thrown away; else it goes to stderr.
        """
        self.command = [sys.executable, "-P", "-m", worker, str(deadline_s), *arguments]
        self.setting, self.deadline_s, self.size, self.quiet = setting, deadline_s, size, quiet
        self._folder = os.getcwd()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._workers, self._pid)

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers there are."""
        return [worker.process.pid for worker in self._workers]

    def start(self) -> None:
        """Have one process ready, to know that it can be had.

        Raises:
            UsageError: it says why it cannot.
            MachineError: it does not start.
        """
        with self._lock, self._ended_by_an_error():
            self._adopt()
            if not self._workers:
                self._workers.append(self._worker())
            while not any(worker.is_ready for worker in self._workers):
                self._receive([])

    def ask(self, jobs: Sequence[bytes]) -> list[Any]:
        """What each gives, or a `Fault`; None is unknown, stopped at the deadline, or crashed.

        Equal jobs are done once.

        Raises:
            UsageError: a worker says why it cannot work.
            MachineError: a worker does not start.
        """
        distinct = list(dict.fromkeys(jobs))
        with self._lock, self._ended_by_an_error():
            self._adopt()
            answers = dict(zip(distinct, self._ask(distinct), strict=True))
        return [answers[job] for job in jobs]

    def close(self) -> None:
        """End the workers; they start again if they are needed."""
        with self._lock:
            _end(self._workers, self._pid)

    @contextlib.contextmanager
    def _ended_by_an_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:  # what is under way would answer the next call
            _end(self._workers, self._pid)
            raise

    def _adopt(self) -> None:
        """After a fork, leave the workers, which answer to the other process."""
        if self._pid != os.getpid():
            self._workers.clear()
            self._pid = os.getpid()
            self._finalizer.detach()
            self._finalizer = weakref.finalize(self, _end, self._workers, self._pid)

    def _ask(self, jobs: Sequence[bytes]) -> list[Any]:
        answers: list[Any] = [None] * len(jobs)
        waiting = deque(range(len(jobs)))
        while len(self._workers) < min(self.size, len(jobs)):
            self._workers.append(self._worker())
        while waiting or any(worker.job is not None for worker in self._workers):
            for place, worker in enumerate(self._workers):
                if waiting and worker.is_ready and worker.job is None:
                    if worker.process.poll() is None:
                        worker.take(waiting.popleft(), jobs, self.deadline_s)
                    else:  # it died between two jobs
                        self._replace(place)
            self._receive(answers)
        return answers

    def _receive(self, answers: list[Any]) -> None:
        """Wait for a word or a deadline; replace workers that are gone or late."""
        active = [w for w in self._workers if w.job is not None or not w.is_ready]
        left = min(worker.until for worker in active) - time.monotonic()
        spoke = wait([worker.words for worker in active], timeout=max(0.0, left))
        for place, worker in enumerate(self._workers):
            if worker.words in spoke:
                try:
                    word = worker.words.recv_bytes()
                except (EOFError, OSError):
                    self._replace(place)
                    continue
                self._take_word(worker, word, answers)
            elif worker in active and time.monotonic() >= worker.until:
                self._replace(place)

    def _take_word(self, worker: "_Worker", word: bytes, answers: list[Any]) -> None:
        if word == READY:
            worker.is_ready, self._failed_starts = True, 0
            return
        said = json.loads(word)
        answer = Fault(said["fault"]) if isinstance(said, dict) else said
        if worker.job is None:
            raise UsageError(f"{self.setting}{answer.told}")
        answers[worker.job], worker.job = answer, None

    def _worker(self) -> "_Worker":
        return _Worker(self.command, self._folder, self.quiet)

    def _replace(self, place: int) -> None:
        worker = self._workers[place]
        worker.end()
        self._workers[place] = self._worker()
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts == _STARTS:
            raise MachineError(
                f"the process of {self.setting} does not start; see what "
                f"`{' '.join(self.command)}` says"
            )


class _Worker:
    """One process, and what it is at."""

    def __init__(self, command: Sequence[str], folder: str, quiet: bool) -> None:
        # It finds the packages that this process finds, and no others: -P keeps its own folder
        # out. A session of its own: Ctrl-C at the terminal is for the run, which stops when it
        # is ready.
        path = os.pathsep.join(part or folder for part in sys.path)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            bufsize=0,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        self.jobs = Connection(_handle(self.process.stdin), readable=False)
        self.words = Connection(_handle(self.process.stdout), writable=False)
        self.is_ready = False
        self.job: int | None = None
        self.until = time.monotonic() + _START_S

    def take(self, place: int, jobs: Sequence[bytes], deadline_s: float) -> None:
        self.job, self.until = place, time.monotonic() + _PATIENCE * deadline_s
        with contextlib.suppress(BrokenPipeError):  # it died; its closed words tell
            self.jobs.send_bytes(jobs[place])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.jobs.close()
        self.words.close()


def _handle(stream: IO[bytes] | None) -> int:
    """A descriptor of one's own of a pipe whose stream is closed."""
    pipe = cast(IO[bytes], stream)
    with pipe:
        return os.dup(pipe.fileno())


def _end(workers: list[_Worker], pid: int) -> None:
    if pid == os.getpid():
        while workers:
            workers.pop().end()
