"""What runs in a worker, on whatever host: it loads once and does units until it is ended."""

import hashlib
import os
import platform
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


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


class Worker:
    """Does units of any job it has been told of."""

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

    def do(self, job: int, unit: Any) -> Any:
        """The result of a unit."""
        held, work = self._jobs[job]
        return work(held, unit)
