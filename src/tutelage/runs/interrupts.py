"""Signals as requests to stop, honoured where nothing can be lost.

Work that may be thrown away, such as loading, sampling, scoring and evaluating, is abandoned
at once. Work that changes what is kept, such as the optimizer's step or a save, is finished
first, and the loop looks whether a stop was asked for.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tutelage.errors import Interrupted, Preempted, Stop

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Launchers pass a signal on that the process has had already.
_SAME_REQUEST_S = 1.0


class Interrupts:
    """While entered, signals ask for a stop; `requested` names the first one.

    A second one, or Ctrl-C twice, does not wait: it raises KeyboardInterrupt.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = SIGNALS) -> None:
        self.requested: str | None = None
        self._signals, self._since, self._abandons = signals, 0.0, False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                # A shell starts background jobs with SIGINT ignored, and means it.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._note:  # nobody has taken it over since
                signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Work that may be thrown away: a request, also an earlier one, ends it.

        Raises:
            Stop: a stop was asked for.
        """
        outer, self._abandons = self._abandons, True
        try:
            if self.requested:
                raise Stop(self.requested)
            yield
        finally:
            self._abandons = outer

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Work that is finished also where a request comes; it is heard at the end.

        Raises:
            Stop: a stop was asked for, and what is around may be thrown away.
        """
        outer, self._abandons = self._abandons, False
        try:
            yield
        finally:
            self._abandons = outer
        if outer and self.requested:
            raise Stop(self.requested)

    def ask(self, name: str) -> None:
        """A request from elsewhere, from any thread; one that was made before stands."""
        if self.requested is not None:
            return
        if self._previous:  # the handler runs in the main thread, whose work it may end
            os.kill(os.getpid(), signal.Signals[name])
        else:
            self.requested = name

    def heed(self, told: str) -> None:
        """End here, where the state is kept, if a stop was asked for.

        Raises:
            Preempted: it was; `told` follows "stopped by SIGTERM" in its message.
        """
        if self.requested:
            kind = Interrupted if self.requested == "SIGINT" else Preempted
            raise kind(f"stopped by {self.requested}{told}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.requested is None:
            self.requested, self._since = name, now
            if self._abandons:
                raise Stop(name)
        elif now > self._since + _SAME_REQUEST_S or name == self.requested == "SIGINT":
            raise KeyboardInterrupt


@contextmanager
def held_signals(signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Signals wait until the block ends, and then go to whoever had them before it.

    For calls of libraries that neither end at a signal nor let an exception of its handler
    through, or that put a handler of their own in its place. They must be short.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {n: signal.getsignal(n) for n in signals}
    heard = [n for n in signals if before[n] is not signal.SIG_IGN and before[n] is not None]
    for number in heard:
        signal.signal(number, lambda n, frame: came.append(n))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
        for caught in came:
            signal.raise_signal(caught)
