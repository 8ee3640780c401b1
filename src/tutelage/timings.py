"""Seconds by phase."""

import time

import torch


class Timings:
    """Adds up the seconds of named phases: `with timings("score"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str) -> "_Phase":
        """Add what runs inside to a phase."""
        return _Phase(self.seconds, phase)


class _Phase:
    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> None:
        _wait_for_device()
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        _wait_for_device()
        passed = time.perf_counter() - self.started
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + passed


def _wait_for_device() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()  # kernels run on after their launch returns
