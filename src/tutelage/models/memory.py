"""Work that does not fit into memory, done again in smaller parts."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from tutelage.errors import MachineError, first_line

Result = TypeVar("Result")


def halve_until_it_fits(
    work: Callable[[int], Result], size: int, told: Callable[[int, str], None], advice: str
) -> Result:
    """`work(size)`, and again with half the size for as long as memory does not hold it.

    `told` hears each smaller size and why, before it is tried.

    Raises:
        MachineError: not even a size of 1 fits; `advice` says what to do.
    """
    while True:
        try:
            return work(size)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = first_line(error)[:200]
        # Only here, since the error keeps the tensors of every frame that it passed.
        if size <= 1:
            raise MachineError(f"memory does not hold a single rollout ({reason}). {advice}")
        size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        told(size, reason)


def whole_or_told(work: Callable[[int], Result], size: int) -> Result:
    """`work(size)` of sharded weights, which cannot be taken again in smaller parts.

    The other ranks wait in the middle of it, for a layer.

    Raises:
        MachineError: memory does not hold it.
    """
    try:
        return work(size)
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = first_line(error)[:200]
    raise MachineError(
        f"memory does not hold {size} rollouts ({reason}). Under distributed fsdp2 a step is not "
        "taken again in smaller parts: lower optimizer.micro_batch_size, which --resume takes with "
        "--allow-change optimizer.micro_batch_size, or set student.gradient_checkpointing"
    )


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, of a device or of the machine, is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
