"""Seconds by phase."""

import resource
import sys
import time

import torch


class Timings:
    """Adds up the seconds of named phases: `with timings("score"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str) -> "_Phase":
        """Add what runs inside to a phase."""
        return _Phase(self.seconds, phase)


def performance(timings: Timings, *, drawn: int, scored: int, padding: float) -> dict[str, float]:
    """perf/* of a step that sampled `drawn` tokens and trained on `scored`."""
    record: dict[str, float] = {f"perf/{phase}_s": s for phase, s in timings.seconds.items()}
    record["perf/step_s"] = sum(timings.seconds.values())
    for phase, tokens in (("rollout", drawn), ("score", scored), ("update", scored)):
        if timings.seconds.get(phase):
            record[f"perf/{phase}_tokens_per_s"] = tokens / timings.seconds[phase]
    record["perf/padding"] = padding
    # ru_maxrss is in kilobytes on Linux and in bytes on macOS.
    scale = 1 if sys.platform == "darwin" else 1024
    record["perf/peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    if torch.cuda.is_initialized():
        record["perf/peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return record


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
