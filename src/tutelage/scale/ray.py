"""Workers that Ray places: actors that load once, do units, and are replaced when they die.

Ray schedules, starts, watches and carries; here is only who gets which unit next, and what a
death means.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tutelage.config import RayEngine, Resources
from tutelage.errors import MachineError, TutelageError
from tutelage.runs.interrupts import held_signals
from tutelage.scale.cluster import connect, first_words, resources_told
from tutelage.scale.units import Held, Job, Result, Unit, nothing
from tutelage.scale.worker import Worker, require_same

_LOOK_S = 0.1
"""Longest call of Ray: signals wait for its end."""
_AHEAD = 2
"""Units that a worker has at once, the one it does included, while there are plenty."""
_MESSAGE_S = 0.1
"""Work that a message to a worker holds, where units are shorter: a message takes both sides about
a millisecond of the processors that all share."""
_TRIES = 2
"""A unit whose worker died over it alone is given to one more."""


class WorkerLost(MachineError):
    """A unit ended two workers, or none is left."""


@dataclass
class _Hired:
    """A worker, and the calls that it has not answered."""

    actor: Any
    since: float
    """When it was asked to start or to load, or began what it does."""
    hello: Any | None
    """The call that it answers once it has started, or loaded; None: it has."""
    loading: int | None = None
    """The job that it loads for; None: it starts, or does units."""
    doing: deque[tuple[list[str], Any]] = field(default_factory=deque)
    """Messages of units it was given and their calls, the oldest first: that one it does."""
    learnt: set[int] = field(default_factory=set)
    """Jobs it has loaded for."""

    @property
    def call(self) -> Any | None:
        """What it will answer next."""
        return self.hello or (self.doing[0][1] if self.doing else None)


class RayWorkers:
    """A `MapUnits` whose workers live as long as it is entered.

    Its errors besides those of units: `ServerError` where Ray does not answer, `MachineError` where
    workers cannot be had, are of other versions or die twice over one unit.
    """

    def __init__(
        self, settings: RayEngine, needs: Resources, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self._settings, self._needs, self._tell = settings, needs, tell
        self._workers: list[_Hired] = []
        self._jobs: list[Job[Any, Any, Any]] = []
        """Those that workers may have loaded for; one that comes again is not loaded again."""
        self._paces: dict[int, float] = {}
        """Seconds of a unit, by job."""
        self._falls = 0
        """Deaths of workers since one has loaded that did no unit yet."""

    def __enter__(self) -> "RayWorkers":
        with held_signals():
            self._ray, self._leave = connect(self._settings, self._needs)
        try:
            with held_signals():
                self._actor = self._ray.remote(
                    num_cpus=self._needs.cpus, num_gpus=self._needs.gpus, max_restarts=0
                )(Worker)
                for _ in range(self._settings.workers):
                    self._hire()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with held_signals():
            for worker in self._workers:
                with suppress(Exception):  # a cluster that is gone has none to end
                    self._ray.kill(worker.actor)
            self._workers = []
            self._leave()

    def __call__(
        self,
        job: Job[Held, Unit, Result],
        units: Mapping[str, Unit],
        *,
        between: Callable[[], None] = nothing,
    ) -> Iterator[tuple[str, Result]]:
        """Every unit's name with its result, as they come."""
        number, todo, deaths = self._number(job), deque(units), dict[str, int]()
        finished: list[tuple[str, Result]] = []
        try:
            while todo or any(worker.doing for worker in self._workers):
                between()
                failure: Exception | None = None
                try:
                    with held_signals():
                        self._give(number, job, units, todo, deaths)
                        self._collect(number, finished, todo, deaths)
                except Exception as error:  # what is finished goes first
                    failure = error
                while finished:
                    yield finished.pop(0)
                if failure is not None:
                    raise failure
            between()
        finally:
            for worker in self._workers:
                worker.doing.clear()

    def _number(self, job: Job[Any, Any, Any]) -> int:
        """What a job is called by workers."""
        known = next((n for n, other in enumerate(self._jobs) if other is job), None)
        if known is None:
            self._jobs.append(job)
            return len(self._jobs) - 1
        return known

    def _hire(self) -> None:
        threads = max(1, int(self._needs.cpus))
        actor = self._actor.remote(os.getcwd(), threads)
        self._workers.append(_Hired(actor, time.monotonic(), actor.about.remote()))

    def _give(
        self,
        number: int,
        job: Job[Any, Unit, Any],
        units: Mapping[str, Unit],
        todo: deque[str],
        deaths: dict[str, int],
    ) -> None:
        """Hand out units, a message each before a second one to any.

        What was with a worker that died is done alone, so that a second death has one cause.
        """
        for ahead in range(1, _AHEAD + 1):
            for worker in self._workers:
                if worker.hello is not None or len(worker.doing) >= ahead:
                    continue
                if not todo or (ahead > 1 and len(todo) <= len(self._workers)):
                    return
                if worker.doing and (todo[0] in deaths or worker.doing[0][0][0] in deaths):
                    continue
                if not worker.doing:
                    worker.since = time.monotonic()
                if number not in worker.learnt:
                    worker.hello = worker.actor.learn.remote(number, job.prepare, job.work)
                    worker.loading = number
                    continue
                names = self._message(number, todo, deaths)
                call = worker.actor.do.remote(number, [units[name] for name in names])
                worker.doing.append((names, call))

    def _message(self, number: int, todo: deque[str], deaths: dict[str, int]) -> list[str]:
        """The next units, as many as make a message worth its cost and leave enough for others."""
        names, pace = [todo.popleft()], self._paces.get(number)
        if names[0] in deaths or pace is None:
            return names
        room = min(_MESSAGE_S / max(pace, 1e-6), len(todo) / (2 * _AHEAD * len(self._workers)))
        while len(names) < room and todo and todo[0] not in deaths:
            names.append(todo.popleft())
        return names

    def _collect(
        self,
        number: int,
        finished: list[tuple[str, Any]],
        todo: deque[str],
        deaths: dict[str, int],
    ) -> None:
        """Take what is answered, notice who is dead or late."""
        errors = self._ray.exceptions
        due = {worker.call: worker for worker in self._workers if worker.call is not None}
        ready, _ = self._ray.wait(list(due), timeout=_LOOK_S)
        for call in ready:
            worker = due[call]
            try:
                answer = self._ray.get(call)
            except errors.RayTaskError as error:
                if isinstance(error.cause, TutelageError):
                    raise error.cause from None
                raise
            except errors.RayError as error:
                self._lost(worker, first_words(error), todo, deaths)
                continue
            if worker.loading is not None:
                worker.learnt.add(worker.loading)
                worker.hello = worker.loading = None
                self._falls = 0
            elif worker.hello is not None:
                require_same(answer["versions"], answer["host"])
                worker.hello = None
            else:
                (names, _), (results, seconds) = worker.doing.popleft(), answer
                finished.extend(zip(names, results, strict=False))
                todo.extendleft(reversed(names[len(results) :]))  # the first of them failed
                self._paces[number] = seconds / max(1, len(results))
            worker.since = time.monotonic()
        for worker in list(self._workers):
            waited = time.monotonic() - worker.since
            if worker.call is None:
                continue
            if worker.hello is not None and worker.loading is None:
                if waited > self._settings.start_s:
                    self._never_started(worker)
            elif waited > self._settings.unit_s:
                why = f"it was not done after engine.unit_s {self._settings.unit_s:g} s"
                self._lost(worker, why, todo, deaths)

    def _lost(self, worker: _Hired, why: str, todo: deque[str], deaths: dict[str, int]) -> None:
        """Replace a worker; the units that it had are tried once more.

        Which of several ended it is not known, so that counts for none; each is then done alone.
        """
        self._workers.remove(worker)
        self._ray.kill(worker.actor)  # where it merely hung
        if worker.hello is not None:
            self._falls += 1
            if self._falls > self._settings.workers:
                raise WorkerLost(
                    f"{self._falls} workers died before they had loaded: {why}. A lack of memory "
                    "is the usual cause: give fewer workers a host"
                )
        had = [name for names, _ in worker.doing for name in names]
        for name in had:
            deaths[name] = deaths.get(name, 0) + (len(had) == 1)
        todo.extendleft(reversed(had))
        if lost := next((name for name in had if deaths[name] == _TRIES), None):
            raise WorkerLost(
                f"the unit {lost} was given to two workers and neither lived to finish it: {why}. "
                "What is finished is kept. A lack of memory is the usual cause: lower "
                "rollout.batch_size, give fewer workers a host, and start the same command again "
                "(with --resume, where it has one)"
            )
        self._tell(f"a worker died ({why}); another one takes its place")
        self._hire()

    def _never_started(self, worker: _Hired) -> None:
        """Go on without it, if there are others."""
        self._workers.remove(worker)
        self._ray.kill(worker.actor)
        told = (
            f"a worker had not started after engine.start_s {self._settings.start_s:g} s: it needs "
            f"{_needs_told(self._needs)}, and {resources_told(self._ray)}"
        )
        if not self._workers:
            raise WorkerLost(
                f"{told}; let what holds them end, ask for less in engine.student and "
                "engine.teacher, or raise engine.start_s"
            )
        self._tell(f"{told}; the others go on")


def _needs_told(needs: Resources) -> str:
    return f"{needs.cpus:g} CPU and {needs.gpus:g} GPU"
