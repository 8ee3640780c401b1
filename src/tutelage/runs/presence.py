"""That somebody is at work in a run directory, and how it ended.

The kernel frees a lock with its process however that ends, so a run that was killed can be
told from one that is busy, without a server, a process id or a clock.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tutelage.errors import TutelageError
from tutelage.runs.directory import Run

LOCK = "running.lock"
_TRIES = 50


@contextmanager
def present(run: Run, **details: Any) -> Iterator[None]:
    """Inside, the run is seen to be at work; an error that leaves it is an event first."""
    run.log_event("started", **details)
    with (run.path / LOCK).open("ab") as lock:
        _lock(lock)
        try:
            yield
        except BaseException as error:
            with suppress(OSError):  # the disk may be full
                run.log_event("stopped", **_said(error))
            raise


def is_present(path: Path) -> bool | None:
    """Whether somebody is at work in a run directory; None where that cannot be told."""
    try:
        lock = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(lock)
    return False


def _lock(lock: IO[bytes]) -> None:
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a reader asks at this moment; it lets go at once
            time.sleep(0.01)
        except OSError:  # a file system without locks: silence has to tell
            return
        else:
            return


def _said(error: BaseException) -> dict[str, Any]:
    if isinstance(error, TutelageError):
        return {"error": type(error).__name__, "exit": error.exit_code, "text": str(error)[:2000]}
    if isinstance(error, KeyboardInterrupt):
        return {"error": "KeyboardInterrupt", "exit": 130, "text": "ended at once by Ctrl-C"}
    text = f"{type(error).__name__}: {error}"[:2000]
    return {"error": type(error).__name__, "exit": 1, "text": text}
