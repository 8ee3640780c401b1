"""What ranks cost each other, measured between them in about a second."""

import time
from collections.abc import Callable
from functools import partial
from statistics import fmean, median

import torch

from tutelage.ranks import Ranks
from tutelage.sizing.cost import Link

_TIMES = 3
_ROUNDS = 40  # messages by which their latency is known
_TURNS = 6  # of work side by side


def measure_link(
    ranks: Ranks, work: Callable[[], object], clock: Callable[[], float], megabytes: int = 16
) -> Link:
    """Seconds of a message and of a byte between these ranks, and how long they wait.

    Args:
        ranks: all of them measure together.
        work: some tenths of a second of what a step does.
        clock: seconds of this rank's own work.
        megabytes: of the gradient that is summed.
    """
    content = bytes(2**20)
    small, full = (
        median(_clocked(partial(ranks.exchange, told)) for _ in range(20))
        for told in (b"", content)
    )
    weight = torch.nn.Parameter(torch.zeros(megabytes * 2**18))
    summed = []
    for _ in range(_TIMES + 1):
        weight.grad = torch.ones_like(weight)
        ranks.exchange()
        summed.append(_clocked(partial(ranks.sum_gradients, iter([weight]))) - small)
    share = (ranks.size - 1) / ranks.size
    return Link(
        latency_s=_latency(ranks),
        byte_s=median(summed[1:]) / (2 * share * 4 * weight.numel()),
        message_byte_s=max(full - small, 0.0) / (share * ranks.size * len(content)),
        crowding=_crowding(ranks, work, clock),
    )


def _latency(ranks: Ranks) -> float:
    """What a message adds to work, in seconds: it finds ranks that compute, and none waits for it.

    A mean, since a step has all the exchanges that take long, too.
    """
    left, right = torch.ones(256, 256), torch.ones(64, 64)

    def work() -> None:  # some milliseconds of products and of small operations
        for _ in range(8):
            left @ left
            for _ in range(200):
                right.add_(0.0)

    work()
    ranks.exchange()
    begin = time.perf_counter()
    own = 0.0
    for _ in range(_ROUNDS):
        own += _clocked(work)
        ranks.exchange()
    whole = time.perf_counter() - begin
    return max(whole - fmean(float(s) for s in ranks.gather_json(own)), 0.0) / _ROUNDS


def _crowding(ranks: Ranks, work: Callable[[], object], clock: Callable[[], float]) -> float:
    """How many times longer the slowest takes, for whom all wait, than the work of one."""
    own = whole = 0.0
    for turn in range(_TURNS):
        ranks.exchange()
        begin, before = time.perf_counter(), clock()
        work()
        used = clock() - before
        ranks.exchange()
        if turn:
            own, whole = own + used, whole + time.perf_counter() - begin
    everyone = [float(seconds) for seconds in ranks.gather_json(own)]
    return max(1.0, float(ranks.decide(lambda: whole)) / fmean(everyone))


def _clocked(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
