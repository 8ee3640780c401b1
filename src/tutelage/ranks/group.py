"""What the ranks of a run tell each other.

Every rank does its share of a step and then knows all of it, so all of them write the same
record, reach the same verdicts and end at the same step; only the first one writes it down.

An exchange is one message from every rank to all. Where a rank cannot go on with the work (it was
asked to stop, its memory is full), it says so in place of its next message, and every rank
leaves the work there alike. Collectives without such a message, those of gradients and of sharded
weights, therefore only ever follow an exchange in which all was well.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from tutelage.errors import RankLost, Stop

T = TypeVar("T")
_FINE, _STOP, _MEMORY = 0, 1, 2
_BUCKET = 2**24  # numbers of a gradient that are summed at once
_HEAD = struct.Struct("<Bq")  # status, and bytes of the content
_AT_ONCE = 1024  # bytes with which every message begins; a short one is all told by them


class AgreedStop(Stop):
    """A stop that every rank knows of."""


class AgreedFullMemory(torch.OutOfMemoryError):
    """Memory that was full on a rank, as every rank knows."""


@dataclass(eq=False)
class Ranks:
    """The processes of a run; alone by default."""

    rank: int = 0
    """Place of this one."""
    size: int = 1
    """How many there are."""
    hosts: Sequence[str] = ("",)
    """The host of each."""
    control: Any = None
    """Process group of the messages; on CPUs."""
    unbroken: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    """Inside, a request to stop is noted and ends nothing: a message is sent whole or not."""

    @property
    def first(self) -> bool:
        """Whether this one writes the run directory."""
        return self.rank == 0

    def deal(self, items: Sequence[T]) -> list[T]:
        """This rank's share: every `size`-th item, beginning with its own place."""
        return list(items[self.rank :: self.size])

    # --- messages ----------------------------------------------------------------------------

    def exchange(self, content: bytes = b"") -> list[bytes]:
        """What every rank said, in their order.

        Raises:
            AgreedStop: a rank was asked to stop.
            AgreedFullMemory: a rank's memory was full.
            RankLost: a rank is gone.
        """
        if self.size == 1:
            return [content]
        return self._exchange(_FINE, content)

    def tell_stop(self, name: str) -> None:
        """Say, in place of the next message, that this rank was asked to stop.

        Raises:
            Stop: always, with the name of the first rank's request.
        """
        if self.size > 1:
            self._exchange(_STOP, name.encode())
        raise Stop(name)

    def tell_full_memory(self, error: Exception) -> None:
        """Say, in place of the next message, that this rank's memory is full.

        Raises:
            OutOfMemoryError: always, unless a rank was asked to stop at the same time.
            AgreedStop: one was.
        """
        if self.size > 1:
            self._exchange(_MEMORY, str(error).strip().split("\n")[0][:200].encode())
        raise error

    def _exchange(self, status: int, content: bytes) -> list[bytes]:
        told = bytearray(_HEAD.pack(status, len(content)) + content)
        with self.unbroken(), told_lost():
            said = self._told(told[:_AT_ONCE], _AT_ONCE)
            states, sizes = zip(*map(_HEAD.unpack_from, said), strict=True)
            rest = max(sizes) + _HEAD.size - _AT_ONCE
            if rest > 0:
                more = self._told(told[_AT_ONCE:], rest)
                said = [first + then for first, then in zip(said, more, strict=True)]
        said = [part[_HEAD.size : _HEAD.size + n] for part, n in zip(said, sizes, strict=True)]
        if _STOP in states:
            raise AgreedStop(said[states.index(_STOP)].decode())
        if _MEMORY in states:
            full = states.index(_MEMORY)
            raise AgreedFullMemory(f"rank {full}: {said[full].decode()}")
        return said

    def _told(self, content: bytearray, room: int) -> list[bytes]:
        """What every rank said, each filled up to `room` bytes."""
        import torch.distributed as dist

        own = torch.zeros(room, dtype=torch.uint8)
        if content:
            own[: len(content)] = torch.frombuffer(content, dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self.control)
        return [part.numpy().tobytes() for part in parts]

    def gather_json(self, content: Any) -> list[Any]:
        """What every rank said, as JSON."""
        if self.size == 1:
            return [content]
        return [json.loads(said) for said in self.exchange(json.dumps(content).encode())]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors of every rank, on the CPU."""
        if self.size == 1:
            return [dict(tensors)]
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        return [load(said) for said in self.exchange(content)]

    def decide(self, choose: Callable[[], T]) -> T:
        """What the first rank chooses, in JSON's values; the others do not ask themselves."""
        chosen: T = self.gather_json(choose() if self.first else None)[0]
        return chosen

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather_json(here))

    def undealt(self, dealt: Sequence[Sequence[T]]) -> list[T]:
        """The items that `deal` dealt, in the order they had."""
        count = sum(map(len, dealt))
        return [dealt[i % self.size][i // self.size] for i in range(count)]

    # --- gradients ---------------------------------------------------------------------------

    def sum_gradients(self, parameters: Iterator[Tensor]) -> None:
        """Every parameter's gradient becomes the sum over all ranks; an exchange goes before.

        A parameter that no rank's loss reached keeps none.
        """
        if self.size == 1:
            return
        import torch.distributed as dist

        learned = [p for p in parameters if p.requires_grad]
        reached = self.exchange(bytes(p.grad is not None for p in learned))
        used = [p for p, *flags in zip(learned, *reached, strict=True) if any(flags)]
        for p in used:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        with self.unbroken(), told_lost():
            for bucket in _buckets(used):
                gradients = [p.grad for p in bucket if p.grad is not None]
                flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
                dist.all_reduce(flat)
                parts = flat.split([gradient.numel() for gradient in gradients])
                for gradient, part in zip(gradients, parts, strict=True):
                    gradient.copy_(part.view_as(gradient))


ALONE = Ranks()
"""A run of one process."""


@contextmanager
def told_lost() -> Iterator[None]:
    """Inside, a collective that fails is a rank that is gone.

    Raises:
        RankLost: it failed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankLost(str(error).strip().split("\n")[0][:300]) from error


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type and device, some 16 million numbers at a time."""
    bucket: list[Tensor] = []
    for p in parameters:
        kind = (p.dtype, p.device)
        full = sum(q.numel() for q in bucket) + p.numel() > _BUCKET
        if bucket and (full or kind != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket
