"""Signs of life of the ranks, and the one cause that ends them all.

Every rank counts up in the launcher's store, from a thread of its own. The first rank looks at all
counters and all look at the first one's. Who fails writes the cause into the store, once; the
others read it there and end, also out of a collective that would wait for ever.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tutelage.errors import RankLost, TutelageError
from tutelage.runs.interrupts import Interrupts
from tutelage.secrets import redacted
from tutelage.terminal import printable

_EVERY_S = 1.0
_LINGER_S = 4.0  # beats within which the others have read why a rank fails


@dataclass(frozen=True)
class Cause:
    """Why all ranks of a run end."""

    rank: int
    """Who failed."""
    host: str
    """Where."""
    teller: str
    """The host on which its message is printed by the one who found it."""
    exit: int
    """Exit code of every rank."""
    text: str
    """Its message."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} ended the run: {self.text}"


class OtherRankFailed(TutelageError):
    """Another rank of the run failed; its message says why."""

    def __init__(self, cause: Cause, told: bool) -> None:
        super().__init__(str(cause))
        self.exit_code, self.told = cause.exit, told


class Watch:
    """The watch of one rank over the others."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        host: str = "",
        *,
        tells: bool = True,
        silence_s: float = 30.0,
    ) -> None:
        self.rank, self.size, self.host, self.tells = rank, size, host, tells
        self.silence_s, self.every = silence_s, min(_EVERY_S, silence_s / 5)
        self.interrupts: Interrupts | None = None
        self.last_words: Callable[[int, str], None] = lambda code, text: None
        self.heard = time.monotonic()
        self._done, self._ending = threading.Event(), threading.Lock()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._beat, self._judge)
        ]

    def start(self, store: Any) -> None:
        """Begin to count and to look, in a store that all ranks reach."""
        # A connection each, since one that waits for an answer is waited for by whoever asks next.
        self.own, self.store = store.clone(), store.clone()
        self.own.set(f"alive/{self.rank}", "1")
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the watch: this rank is done."""
        self._done.set()
        self._threads[0].join(2 * self.every)

    # --- failing -----------------------------------------------------------------------------

    def fail(self, error: BaseException) -> OtherRankFailed | None:
        """Tell all ranks why this one fails; the failure that was first, if it is another's."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # the watch is ending the process
        is_loss = isinstance(error, RankLost)
        cause = self._standing(wait_s=_LINGER_S if is_loss else 0)
        if cause is None:
            text = self._who_is_lost(error) if is_loss else str(error)
            if not isinstance(error, TutelageError):
                text = f"{type(error).__name__}: {error}"
            code = error.exit_code if isinstance(error, TutelageError) else 1
            code = 130 if isinstance(error, KeyboardInterrupt) else code
            told = redacted(text.strip())[:2000]
            cause = self._claim(Cause(self.rank, self.host, self.host, code, told))
        ours = cause.rank == self.rank
        if ours:
            if is_loss:  # what the library says of it names nobody
                error.args = (cause.text,)
            self._linger()
        else:
            self._acknowledge()
        self.stop()
        return None if ours else OtherRankFailed(cause, told=not self._must_tell(cause))

    def _who_is_lost(self, error: BaseException) -> str:
        silent = self._silent_since(3 * self.every)
        if not silent:
            return f"the ranks cannot reach each other any more ({error}); go on with --resume"
        names = " and ".join(f"rank {rank}" for rank in silent)
        return (
            f"{names} ended without a word, killed perhaps, or out of memory; the run stops. Go on "
            "with --resume"
        )

    def _silent_since(self, seconds: float) -> list[int]:
        with contextlib.suppress(RuntimeError):
            others = [rank for rank in range(self.size) if rank != self.rank]
            before = {rank: self._count(self.own, rank) for rank in others}
            time.sleep(seconds)
            return [r for r, count in before.items() if self._count(self.own, r) == count]
        return []

    def _standing(self, wait_s: float) -> Cause | None:
        """The cause that is written down, waited for."""
        until = time.monotonic() + wait_s
        with contextlib.suppress(RuntimeError):
            while True:
                if self.own.check(["failure"]):
                    return Cause(**json.loads(self.own.get("failure")))
                if time.monotonic() >= until:
                    return None
                time.sleep(self.every / 4)
        return None

    def _claim(self, cause: Cause) -> Cause:
        """Write the cause down, unless there is one; the one that stands."""
        try:
            standing = self.own.compare_set("failure", "", json.dumps(asdict(cause)))
        except RuntimeError:  # the store is gone: everyone finds that out alone
            return cause
        return Cause(**json.loads(standing))

    def _linger(self) -> None:
        """Stay until all others know; the store may be this process's own."""
        keys = [f"knows/{rank}" for rank in range(self.size) if rank != self.rank]
        until = time.monotonic() + _LINGER_S
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < until and not self.own.check(keys):
                time.sleep(self.every / 10)

    def _acknowledge(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.own.set(f"knows/{self.rank}", "1")

    def _must_tell(self, cause: Cause) -> bool:
        return self.tells and cause.teller != self.host

    # --- watching ----------------------------------------------------------------------------

    def _beat(self) -> None:
        counts: dict[int, tuple[int, float]] = {}
        number = 1
        while not self._done.wait(self.every):
            number += 1
            try:
                self.store.set(f"alive/{self.rank}", str(number))
                if self.store.check(["failure"]):
                    self._end(Cause(**json.loads(self.store.get("failure"))))
                self._relay_stop()
                self._look(counts)
            except RuntimeError:  # the store does not answer; `_judge` says for how long
                continue
            self.heard = time.monotonic()

    def _look(self, counts: dict[int, tuple[int, float]]) -> None:
        now = time.monotonic()
        for rank in range(1, self.size) if self.rank == 0 else [0]:
            count = self._count(self.store, rank)
            before, since = counts.get(rank, (-1, now))
            counts[rank] = (count, since if count == before else now)
            if now - counts[rank][1] > self.silence_s:
                who = f"rank {rank}" if count else f"rank {rank}, which never began,"
                self._end(self._claim(self._lost(f"{who} has not been heard of")))

    def _count(self, store: Any, rank: int) -> int:
        key = f"alive/{rank}"
        return int(store.get(key)) if store.check([key]) else 0

    def _relay_stop(self) -> None:
        if self.interrupts is None:
            return
        if self.interrupts.requested is not None:
            self.store.compare_set("stop", "", self.interrupts.requested)
        elif self.store.check(["stop"]):
            self.interrupts.ask(self.store.get("stop").decode())

    def _judge(self) -> None:
        while not self._done.wait(self.every):
            if time.monotonic() - self.heard > self.silence_s:
                self._end(self._lost("the host of the first rank has not answered"))

    def _lost(self, what: str) -> Cause:
        text = (
            f"{what} for {self.silence_s:.0f} s (distributed.silence_s): the process was killed, "
            "or its host or the network between is down. Go on with --resume"
        )
        return Cause(self.rank, self.host, self.host, RankLost.exit_code, text)

    def _end(self, cause: Cause) -> None:
        """End this process where the main thread cannot: it may wait in a collective."""
        if not self._ending.acquire(blocking=False):
            return
        self._acknowledge_from_here()
        if self._must_tell(cause) or cause.rank == self.rank:
            print(f"tutelage: {printable(redacted(str(cause)))}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            self.last_words(cause.exit, str(cause))
        os._exit(cause.exit)

    def _acknowledge_from_here(self) -> None:
        # The connection of the beats may be the one that hangs, so nobody waits for this.
        thread = threading.Thread(target=self._acknowledge, daemon=True)
        thread.start()
        thread.join(self.every)
