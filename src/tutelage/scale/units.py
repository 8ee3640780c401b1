"""Units of work: pure functions of serialisable inputs, done one by one or by many workers.

Whoever has units writes results down itself, as they come; so a result is in the run directory
once, whatever became of the worker that found it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Held = TypeVar("Held")
Unit = TypeVar("Unit")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Held, Unit, Result]):
    """What is done to every unit, and what that takes."""

    prepare: Callable[[], Held]
    """Loads what `work` needs, models most of all, once in each worker; must pickle."""
    work: Callable[[Held, Unit], Result]
    """The result of a unit, which depends on nothing else; must pickle, as units and results."""
    here: Held | None = None
    """What this process holds loaded already."""


def nothing() -> None:
    """Between units nothing is looked at."""


class MapUnits(Protocol):
    """Does units somewhere."""

    def __call__(
        self,
        job: Job[Held, Unit, Result],
        units: Mapping[str, Unit],
        *,
        between: Callable[[], None] = nothing,
    ) -> Iterator[tuple[str, Result]]:
        """Every unit's name with its result, in the order in which they are finished.

        `between` is called now and then, and may raise to end the work.

        Raises:
            TutelageError: what `prepare` or `work` raised, or workers that cannot be had.
        """
        ...


def in_process(
    job: Job[Held, Unit, Result],
    units: Mapping[str, Unit],
    *,
    between: Callable[[], None] = nothing,
) -> Iterator[tuple[str, Result]]:
    """Do units here, one after the other, in their order."""
    if not units:
        return
    held: Any = job.prepare() if job.here is None else job.here
    for name, unit in units.items():
        between()
        yield name, job.work(held, unit)
    between()
