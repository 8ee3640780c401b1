"""The engine that the settings name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from tutelage.config import Engine, LocalEngine, RayEngine, Resources
from tutelage.scale.units import MapUnits, in_process

Role = Literal["student", "teacher"]


@contextmanager
def workers_of(
    engine: Engine, *roles: Role, tell: Callable[[str], None] = lambda text: None
) -> Iterator[MapUnits]:
    """Who does units while this is entered; `roles` are the models that a worker holds.

    `tell` hears of workers that die.

    Raises:
        TutelageError: workers that cannot be had.
    """
    match engine:
        case LocalEngine():
            yield in_process
        case RayEngine():
            from tutelage.scale.ray import RayWorkers

            with RayWorkers(engine, needs_of(engine, roles), tell) as workers:
                yield workers


def needs_of(engine: RayEngine, roles: tuple[Role, ...]) -> Resources:
    """What a worker takes that holds these models: they compute in turn, but lie side by side."""
    each = [engine.student if role == "student" else engine.teacher for role in roles]
    return Resources(cpus=max(r.cpus for r in each), gpus=sum(r.gpus for r in each))
