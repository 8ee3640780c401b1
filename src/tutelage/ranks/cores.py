"""A rank keeps to processor cores of its own.

Ranks wake each other at every message, and Linux likes to put who is woken beside who woke it:
two ranks then share a core for some milliseconds, while another one has nothing to do.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tutelage.ranks.group import Ranks


@contextmanager
def on_own_cores(ranks: Ranks, threads: int) -> Iterator[None]:
    """Inside, the ranks of a host share its cores alike, each in a block.

    Nothing is done where a launcher has given them different cores already, where a share has
    fewer than the `threads` that a rank computes with, and on systems that have no such thing.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = sorted(os.sched_getaffinity(0))
    everyone = ranks.gather_json(before)
    here = [rank for rank, host in enumerate(ranks.hosts) if host == ranks.hosts[ranks.rank]]
    own = share(before, here.index(ranks.rank), len(here))
    if any(everyone[rank] != before for rank in here) or len(own) < threads:
        yield
        return
    _keep_to(own)
    try:
        yield
    finally:
        _keep_to(before)


def share(cores: list[int], place: int, size: int) -> list[int]:
    """The cores of one of `size` ranks; blocks of neighbours, all of them dealt."""
    return cores[place * len(cores) // size : (place + 1) * len(cores) // size]


def _keep_to(cores: list[int]) -> None:
    for thread in os.listdir("/proc/self/task"):  # those of torch and gloo are there already
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread), cores)
