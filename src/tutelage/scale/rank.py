"""A rank of a run in a process that Ray started, and what it has of the driver."""

import os
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tutelage.errors import RankLost, TutelageError
from tutelage.ranks.watch import OtherRankFailed
from tutelage.runs.interrupts import Interrupts
from tutelage.scale.worker import require_same

_ASK_S = 0.5


class Desk:
    """Where the ranks of a run leave what they have to tell, and see whether to stop."""

    def __init__(self) -> None:
        self._said: list[tuple[str, Any]] = []
        self._asked: str | None = None

    def say(self, kind: str, what: Any) -> None:
        """Leave something for the driver."""
        self._said.append((kind, what))

    def take(self) -> list[tuple[str, Any]]:
        """What was left since this was called last."""
        said, self._said = self._said, []
        return said

    def ask(self, name: str | None) -> None:
        """Ask all ranks to stop, as this signal would."""
        self._asked = name

    def asked(self) -> str | None:
        """The signal that asks them to stop, if one does."""
        return self._asked


class Post:
    """What a rank tells the driver and hears from it, while it is entered."""

    def __init__(self, desk: Any, *, again: bool, begun: bool) -> None:
        import ray

        self._ray, self._desk, self._done = ray, desk, threading.Event()
        self.again, self.begun = again, begun
        """Whether ranks of this command were started before; whether they recorded anything."""
        self.interrupts = Interrupts()
        """Requests to stop; in the main thread, so that work is abandoned at once."""

    def __enter__(self) -> "Post":
        self.interrupts.__enter__()
        self._say("came", None)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._listener.join(2 * _ASK_S)
        self.interrupts.__exit__(*error)

    def record(self, record: Mapping[str, Any]) -> None:
        """An observer whose records the driver shows."""
        self._desk.say.remote("record", dict(record))

    def fails(self, error: BaseException) -> None:
        """Tell why this rank fails, before the others know and end; a loss is no failure.

        Nor is another rank's failure, which that one has told.
        """
        if isinstance(error, RankLost | OtherRankFailed):
            return
        if isinstance(error, TutelageError):
            self._say("failed", (error.exit_code, str(error)))
        else:
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            self._say("failed", (code, "".join(traceback.format_exception(error)).strip()))

    def _say(self, kind: str, what: Any) -> None:
        with self.interrupts.unbroken():
            self._ray.get(self._desk.say.remote(kind, what))

    def _listen(self) -> None:
        with suppress(self._ray.exceptions.RayError):  # the driver is gone, and Ray ends this
            while not self._done.wait(_ASK_S):
                if name := self._ray.get(self._desk.asked.remote()):
                    self.interrupts.ask(name)
                    return


class Rank:
    """One of the processes of a run."""

    def __init__(self, folder: str, threads: int) -> None:
        if os.path.isdir(folder):  # so that relative paths mean the same on shared disks
            os.chdir(folder)
        self._threads = threads

    def place(self) -> tuple[str, str, int]:
        """Its node, and an address and a free port there."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        node = ray.get_runtime_context().get_node_id()
        return node, ray.util.get_node_ip_address(), port  # type: ignore[no-untyped-call]

    def run(
        self,
        launched: Mapping[str, str],
        versions: Mapping[str, str],
        work: Callable[[Post], Any],
        post: Mapping[str, Any],
    ) -> Any:
        """Do the work of a rank; `launched` is what a launcher sets.

        Raises:
            RuntimeError: what `work` raised, in words; the desk has it too, unless it is a loss.
        """
        os.environ.update(launched)
        import torch

        torch.set_num_threads(self._threads)
        with Post(**post) as own:
            try:
                require_same(versions)
                return work(own)
            except BaseException as error:
                own.fails(error)
                raise RuntimeError(str(error).strip()[:400]) from None
