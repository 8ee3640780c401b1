"""How the ranks of a run find each other, agree that they fit, and end together.

A launcher, such as torchrun, starts the processes and sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. A process group that it has set up itself is used as it is.
"""

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from typing import Any

from tutelage.config.distributed import Distributed, SingleProcess
from tutelage.errors import MachineError, RankLost, TutelageError, UsageError
from tutelage.ranks.cores import on_own_cores
from tutelage.ranks.group import ALONE, Ranks, told_lost
from tutelage.ranks.watch import Watch
from tutelage.runs.interrupts import Interrupts

# A process may join more than once, as where a recipe trains twice; each time is a new beginning.
_JOINED = count()
_START = "torchrun --nproc-per-node 2 -m tutelage train -c run.yaml"


def place_in_launch() -> tuple[int, int] | None:
    """Rank and number of ranks as a launcher set them; None where there is none.

    Raises:
        UsageError: they are no such numbers.
    """
    told = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if told[0] is None or told[1] is None:
        return None
    try:
        rank, size = int(told[0]), int(told[1])
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise UsageError(
            f"the launcher set RANK={told[0]} and WORLD_SIZE={told[1]}, and a rank is a number "
            "from 0 to one less than their number; unset both, or start with torchrun"
        )
    return rank, size


def is_first() -> bool:
    """Whether this process is the only one, or the first of those a launcher started."""
    place = place_in_launch()
    return place is None or place[0] == 0


@contextmanager
def joined(settings: Distributed, interrupts: Interrupts) -> Iterator[tuple[Ranks, Watch]]:
    """This process among the ranks of its run; all leave the block together.

    A request to stop that one of them gets reaches the `interrupts` of all.

    Raises:
        UsageError: ranks without the setting, or the setting without ranks.
        RankLost: others never joined, or are gone.
    """
    place = _required_place(settings)
    if place is None or isinstance(settings, SingleProcess):
        yield ALONE, Watch()
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    rank, size = place
    host = socket.gethostname()
    ours = not dist.is_initialized()
    if ours:
        store = _meet(rank, size, settings.join_timeout_s)
    else:
        store = dist.distributed_c10d._get_default_store()
    store = PrefixStore(f"tutelage/{next(_JOINED)}", store)
    store.set(f"host/{rank}", host)
    tells = os.environ.get("LOCAL_RANK", "0") == "0"
    watch = Watch(rank, size, host, tells=tells, silence_s=settings.silence_s)
    watch.interrupts = interrupts
    watch.start(store)
    try:
        try:
            with told_lost():
                wait = timedelta(seconds=settings.timeout_s)
                if ours:
                    _form_group(store, rank, size, wait)
                control = dist.new_group(backend="gloo", timeout=wait)
                ranks = Ranks(rank, size, control=control, unbroken=interrupts.unbroken)
                ranks.hosts = ranks.gather_json(host)
        except RankLost as error:
            raise RankLost(
                f"the ranks met, but cannot talk to each other ({error}). Where a host has several "
                "networks, name the one to use in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
            ) from None
        threads = torch.get_num_threads()
        with nullcontext() if torch.cuda.is_available() else on_own_cores(ranks, threads):
            yield ranks, watch
        ranks.exchange()  # the first one may still be writing
    except BaseException as error:
        if isinstance(error, TutelageError) and error.agreed:
            with suppress(RankLost):
                ranks.exchange()
            error.told = not tells
        elif (other := watch.fail(error)) is not None:
            raise other from None
        raise
    finally:
        watch.stop()
        if size > 1:
            _leave_to_itself()
        if ours and dist.is_initialized():
            dist.destroy_process_group()


def _required_place(settings: Distributed) -> tuple[int, int] | None:
    """Rank and number of ranks; None of the only process of a run.

    Raises:
        UsageError: ranks without the setting, or the setting without ranks.
    """
    place = place_in_launch()
    if isinstance(settings, SingleProcess):
        if place is not None and place[1] > 1:
            raise UsageError(
                f"{place[1]} processes were started for one run, but distributed.type is none, so "
                "each would train alone in the same directory. Set distributed: {type: ddp}, or "
                "fsdp2 where one device does not hold the student, or start one process"
            )
        return None
    if place is None:
        raise UsageError(
            f"distributed.type is {settings.type}, but no launcher started this process: RANK and "
            f"WORLD_SIZE are not set. Start it as {_START}, or leave `distributed` out to train "
            "in one process"
        )
    return place


def _form_group(store: Any, rank: int, size: int, wait: timedelta) -> None:
    """The process group that tensors travel in, each rank with a device of its own."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    backend = "gloo"
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        # A launcher may show each rank its own device alone.
        torch.cuda.set_device(local % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    group = PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=wait)


@contextmanager
def collectives_told() -> Iterator[None]:
    """Inside, a collective that fails within a library, as those of sharded layers do, is told.

    Raises:
        RankLost: one did.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, TutelageError) or not any(w in str(error) for w in ("gloo", "NCCL")):
            raise
        raise RankLost(str(error).strip().split("\n")[0][:300]) from None


def _meet(rank: int, size: int, timeout_s: float) -> Any:
    from torch.distributed.rendezvous import rendezvous

    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        return store
    except ValueError as error:
        raise UsageError(
            f"the launcher left something out ({error}); start it as {_START}"
        ) from None
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0][:200]
        if rank == 0:
            raise RankLost(
                f"not all of the {size} ranks joined at {address} within {timeout_s:.0f} s "
                f"(distributed.join_timeout_s): {reason}. Look whether every host was started "
                "with the same address, port and number of ranks"
            ) from None
        raise RankLost(
            f"rank {rank} does not reach the first one at {address} within {timeout_s:.0f} s "
            f"(distributed.join_timeout_s): {reason}. Look whether that host runs, and whether "
            "its port is open to this one"
        ) from None


def _leave_to_itself() -> None:
    # Launchers end all ranks as soon as one has ended; this one is about to, with its own code.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def require_alike(ranks: Ranks, facts: Mapping[str, Any], what: str) -> None:
    """Refuse ranks that are not the same in these facts; raised alike on all of them.

    Raises:
        MachineError, or UsageError for settings: they differ, with the first differences.
    """
    everyone = ranks.gather_json(facts)
    faults = [
        f"{key} is {there.get(key)!r} on rank {rank} ({ranks.hosts[rank]}) and "
        f"{everyone[0].get(key)!r} on rank 0"
        for rank, there in enumerate(everyone)
        for key in sorted(everyone[0].keys() | there.keys())
        if there.get(key) != everyone[0].get(key)
    ]
    if not faults:
        return
    kind = UsageError if what == "settings" else MachineError
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    error = kind(
        f"the ranks of this run have different {what}: {'; '.join(faults[:3])}{more}. "
        "Every rank needs the same; start all hosts from one image and one file of settings"
    )
    error.agreed = True
    raise error
