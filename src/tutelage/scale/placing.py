"""Training workers that Ray places, and that begin again together when one dies.

Ray keeps the places together (a placement group), starts the processes and notices who dies. Each
process is a rank of one run, as a launcher's would be. A failure that is no death is told to the
driver by the rank whose it is, before the others end because of it, and is final.

Ray Train is not used: it does the work in a thread beside the process's main one, where a signal
cannot end it, and begins again after any exception, also where settings or a disk are at fault.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tutelage.config import RayEngine, Resources
from tutelage.errors import (
    CheckpointError,
    DataError,
    GuardStop,
    Interrupted,
    MachineError,
    Preempted,
    RankLost,
    ServerError,
    UsageError,
)
from tutelage.runs.interrupts import Interrupts, held_signals
from tutelage.scale.cluster import connect, first_words, resources_told
from tutelage.scale.engines import needs_of
from tutelage.scale.rank import Desk, Post, Rank
from tutelage.scale.worker import versions

Observer = Callable[[dict[str, Any]], None]
_LOOK_S = 0.2
_KINDS = (UsageError, DataError, MachineError, ServerError, GuardStop, CheckpointError, Preempted)


@dataclass
class _Crew:
    """The ranks of one start."""

    actors: list[Any]
    calls: list[Any] = field(default_factory=list)
    """What each will answer next; none where it has ended well."""
    since: float = field(default_factory=time.monotonic)
    came: int = 0
    """Ranks that have begun."""
    result: Any = None


class TrainingWorkers:
    """Ranks of one run on Ray, while it is entered.

    Its errors besides those of the work: `ServerError` where Ray does not answer, `MachineError`
    where workers cannot be had, `RankLost` where they died more often than `engine.restarts`.
    """

    def __init__(self, engine: RayEngine, interrupts: Interrupts, observer: Observer) -> None:
        """Workers that are not placed yet.

        Args:
            engine: where they are, and how many.
            interrupts: requests to stop that this process gets; the ranks get them, too.
            observer: hears the records of the first rank, and of workers that die.
        """
        self._engine, self._interrupts, self._observer = engine, interrupts, observer
        self._needs: Resources = needs_of(engine, ("student", "teacher"))
        self._desk: Any = None
        self._group: Any = None
        self._failed: tuple[int, str] | None = None
        self._begun = self._asked = False
        """Whether anything was recorded; whether the ranks were asked to stop."""

    def __enter__(self) -> "TrainingWorkers":
        with held_signals():
            self._ray, self._leave = connect(self._engine, self._needs)
        try:
            with held_signals():
                self._desk = self._ray.remote(num_cpus=0)(Desk).remote()
                from ray.util import placement_group

                held = {"CPU": self._needs.cpus}
                held |= {"GPU": self._needs.gpus} if self._needs.gpus else {}
                self._group = placement_group([held] * self._engine.workers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with held_signals():
            with suppress(Exception):  # a cluster that is gone has none to end
                if self._desk is not None:
                    self._ray.kill(self._desk)
                if self._group is not None:
                    self._ray.util.remove_placement_group(self._group)
            self._leave()

    def run(self, work: Callable[[Post], Any]) -> Any:
        """What `work` comes to in the first rank.

        It must pickle. Begun again, as its `Post` says, it goes on from what is kept.
        """
        for deaths in range(self._engine.restarts + 1):
            with self._crew() as crew:
                why = self._sit(crew, work, again=deaths > 0)
                if why is None:
                    return crew.result
            if self._interrupts.requested:
                self._interrupts.heed(f" as a worker died ({why}); go on with --resume")
            if deaths < self._engine.restarts:
                self._note(
                    f"a worker died ({why}); all begin again from the newest checkpoint, "
                    f"{deaths + 1} of engine.restarts {self._engine.restarts}"
                )
        times = f"{deaths + 1} time{'s' if deaths else ''}"
        raise RankLost(
            f"workers died {times}, the last time so: {why}. What is "
            "saved is kept; a lack of memory is the usual cause. Go on with --resume, or raise "
            "engine.restarts"
        )

    @contextmanager
    def _crew(self) -> Iterator[_Crew]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        threads = max(1, int(self._needs.cpus))
        with held_signals():
            actors = [
                self._ray.remote(Rank)
                .options(
                    num_cpus=self._needs.cpus,
                    num_gpus=self._needs.gpus,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        self._group, placement_group_bundle_index=rank
                    ),
                )
                .remote(os.getcwd(), threads)
                for rank in range(self._engine.workers)
            ]
            crew = _Crew(actors, [actor.place.remote() for actor in actors])
        try:
            yield crew
        finally:
            with held_signals():
                for actor in crew.actors:
                    with suppress(Exception):
                        self._ray.kill(actor)

    def _sit(self, crew: _Crew, work: Callable[[Post], Any], *, again: bool) -> str | None:
        """Hear the ranks until all have ended; why one died, or None: the work is done.

        Raises:
            TutelageError: the failure of a rank, or ranks that never start.
            Preempted: a stop was asked for before any had begun.
        """
        post = {"desk": self._desk, "again": again, "begun": self._begun}
        answers: dict[Any, Any] = {}
        while len(answers) < len(crew.calls):
            with held_signals():
                waits = [call for call in crew.calls if call not in answers]
                ready, _ = self._ray.wait(waits, num_returns=len(waits), timeout=_LOOK_S)
                said = self._ray.get(self._desk.take.remote())
                if self._interrupts.requested and not self._asked:
                    # Always by this name: Ray keeps SIGINT from its workers.
                    self._ray.get(self._desk.ask.remote("SIGTERM"))
                    self._asked = True
            for kind, what in said:
                self._hear(crew, kind, what)
            if self._interrupts.requested and not crew.came:
                self._interrupts.heed(" before the workers had begun; go on with --resume")
            why = None
            for call in ready:
                try:
                    answers[call] = self._ray.get(call)
                except self._ray.exceptions.RayError as error:
                    answers[call], why = None, first_words(getattr(error, "cause", None) or error)
            if why is not None:  # what the others told before they ended goes first
                with held_signals():
                    for kind, what in self._ray.get(self._desk.take.remote()):
                        self._hear(crew, kind, what)
            if self._failed is not None:
                raise self._failure(*self._failed)
            if why is not None:
                return why
            if len(answers) == len(crew.calls) and not crew.came:
                self._launch(crew, work, post, [answers[call] for call in crew.calls])
                answers = {}
            elif not crew.came and time.monotonic() - crew.since > self._engine.start_s:
                self._never_started()
        crew.result = answers[crew.calls[0]]
        return None

    def _launch(
        self,
        crew: _Crew,
        work: Callable[[Post], Any],
        post: Mapping[str, Any],
        places: list[tuple[str, str, int]],
    ) -> None:
        """Tell every rank its place, as a launcher would."""
        _, address, port = places[0]
        shared = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(len(places))}
        on_host: Counter[str] = Counter()
        calls = []
        for rank, (actor, (node, _, _)) in enumerate(zip(crew.actors, places, strict=True)):
            own = {"RANK": str(rank), "LOCAL_RANK": str(on_host[node])}
            on_host[node] += 1
            with held_signals():
                calls.append(actor.run.remote({**shared, **own}, versions(), work, post))
        crew.calls = calls

    def _hear(self, crew: _Crew, kind: str, what: Any) -> None:
        match kind:
            case "came":
                crew.came += 1
            case "record":
                self._begun = self._begun or what["kind"] in ("train", "eval", "probe")
                self._observer(what)
            case "failed":
                self._failed = self._failed or what

    def _failure(self, code: int, text: str) -> Exception:
        """The error of a rank, here."""
        asked = self._interrupts.requested
        if code == Preempted.exit_code and asked:
            kind = Interrupted if asked == "SIGINT" else Preempted
            return kind(text.replace("SIGTERM", asked, 1))
        kinds = [kind for kind in _KINDS if kind.exit_code == code]
        return kinds[0](text) if kinds else RuntimeError(f"in a training worker:\n{text}")

    def _never_started(self) -> None:
        raise MachineError(
            f"{self._engine.workers} training workers had not started after engine.start_s "
            f"{self._engine.start_s:g} s: each needs {self._needs.cpus:g} CPU and "
            f"{self._needs.gpus:g} GPU, and {resources_told(self._ray)}; let what holds them end, "
            "ask for less in engine.student and engine.teacher, or raise engine.start_s"
        )

    def _note(self, text: str) -> None:
        self._observer({"kind": "note", "text": text})
