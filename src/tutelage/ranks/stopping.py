"""A request to stop, wherever it came, ends the same work on every rank."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from tutelage.errors import Stop
from tutelage.models.memory import out_of_memory
from tutelage.ranks.group import AgreedFullMemory, AgreedStop, Ranks
from tutelage.runs.interrupts import Interrupts

T = TypeVar("T")


@contextmanager
def abandoning(ranks: Ranks, interrupts: Interrupts, *, at_once: bool = True) -> Iterator[None]:
    """Work that may be thrown away: a request to any rank, also an earlier one, ends it on all.

    Not `at_once` it is finished and then thrown away: sharded weights come and go with every
    layer, and a rank that left the work there would leave the others waiting.

    Raises:
        Stop: a stop was asked for.
    """
    try:
        if not at_once:
            _agree(ranks, interrupts)
        with interrupts.abandoning() if at_once else nullcontext():
            yield
        _agree(ranks, interrupts)
    except AgreedStop as stop:
        interrupts.requested = stop.args[0]
        raise
    except Stop as stop:
        try:
            ranks.tell_stop(stop.args[0])
        except AgreedStop as agreed:
            interrupts.requested = agreed.args[0]
            raise


def _agree(ranks: Ranks, interrupts: Interrupts) -> None:
    if ranks.size > 1:
        if interrupts.requested:
            ranks.tell_stop(interrupts.requested)
        ranks.exchange()


def hear(ranks: Ranks, interrupts: Interrupts) -> bool:
    """Whether any rank was asked to stop; `interrupts` then know it here too."""
    asked = [name for name in ranks.gather_json(interrupts.requested) if name]
    if asked:
        interrupts.requested = asked[0]
    return bool(asked)


def told_full_memory(ranks: Ranks, work: Callable[[int], T]) -> Callable[[int], T]:
    """`work(size)`, in which memory that is full on one rank is full on all."""
    if ranks.size == 1:
        return work

    def attempt(size: int) -> T:
        try:
            return work(size)
        except AgreedFullMemory:
            raise
        except Exception as error:
            if not out_of_memory(error):
                raise
            ranks.tell_full_memory(error)
            raise

    return attempt
