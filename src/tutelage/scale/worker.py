"""What runs in a process that Ray starts, on whatever host."""

import hashlib
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tutelage.errors import MachineError


def versions() -> dict[str, str]:
    """What must be equal everywhere for results to be."""
    python = ".".join(platform.python_version_tuple()[:2])
    packages = {name: version(name) for name in ("torch", "transformers", "ray")}
    return {"tutelage": _source(), "python": python, **packages}


def _source() -> str:
    """A digest of the code itself: two trees may bear one version."""
    folder = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return f"code {digest.hexdigest()}"


def require_same(theirs: Mapping[str, str], host: str | None = None) -> None:
    """Refuse a worker whose versions are not the driver's.

    Args:
        theirs: `versions()` of the other side.
        host: of the worker, in whose driver this is; None in the worker itself.

    Raises:
        MachineError: they differ, with what does.
    """
    worker, driver = (theirs, versions()) if host is not None else (versions(), theirs)
    if differ := [name for name in driver if driver[name] != worker.get(name)]:
        told = ", ".join(f"{name} {worker.get(name)}, not {driver[name]}" for name in differ)
        raise MachineError(
            f"the worker on {host or socket.gethostname()} has {told}: its results would not be "
            "this machine's; install the same versions on every host"
        )


class Worker:
    """Does units of any job it has been told of, loading once, until it is ended."""

    def __init__(self, folder: str, threads: int) -> None:
        if os.path.isdir(folder):  # so that relative paths mean the same, where disks are shared
            os.chdir(folder)
        self._threads = threads
        self._jobs: dict[int, tuple[Any, Callable[[Any, Any], Any]]] = {}

    def about(self) -> dict[str, Any]:
        """Where it is, and of which versions."""
        return {"host": socket.gethostname(), "pid": os.getpid(), "versions": versions()}

    def learn(self, job: int, prepare: Callable[[], Any], work: Callable[[Any, Any], Any]) -> None:
        """Load what a job needs."""
        import torch

        torch.set_num_threads(self._threads)
        self._jobs[job] = prepare(), work

    def do(self, job: int, units: Sequence[Any]) -> tuple[list[Any], float]:
        """The results of units, and the seconds they took; up to one that fails.

        Raises:
            Exception: what the first of them raised.
        """
        held, work = self._jobs[job]
        began, results = time.perf_counter(), []
        for unit in units:
            try:
                results.append(work(held, unit))
            except Exception:
                if not results:
                    raise
                break  # what is finished goes first
        return results, time.perf_counter() - began
