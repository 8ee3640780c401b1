"""One process at a time in a run directory, and whether one is at work there."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tutelage.errors import UsageError
from tutelage.paths import usable_path

LOCK = ".lock"
_TRIES = 50


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Have a run directory for oneself; it is made where it is missing, and goes if it stays empty.

    The lock is the kernel's, which frees it with its process however that ends.

    Raises:
        UsageError: another process has it, or the directory cannot be made or written to.
    """
    path = usable_path(folder, "run directory")
    if path.exists() and not _may_be_run(path):
        yield  # the caller refuses it, and nothing is left there
        return
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = (path / LOCK).open("a+")
    except OSError as error:
        raise UsageError(
            f"run directory {path} cannot be written to: {error.strerror}; choose another one"
        ) from None
    with stream:
        if not _take(stream) or not _is_at(path / LOCK, stream):
            raise UsageError(
                f"run directory {path} is in use{_holder(path / LOCK)}; wait for it or stop it, or "
                "choose another directory"
            )
        stream.truncate(0)
        stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        stream.flush()
        try:
            yield
        finally:
            if (
                path.is_dir()
                and not path.is_symlink()
                and [file.name for file in path.iterdir()] == [LOCK]
            ):
                (path / LOCK).unlink()
                path.rmdir()


def _may_be_run(path: Path) -> bool:
    if not path.is_dir():
        return False
    return (path / "config.yaml").exists() or {p.name for p in path.iterdir()} <= {LOCK}


def is_locked(folder: Path) -> bool | None:
    """Whether somebody is at work in a run directory; None where that cannot be told."""
    try:
        with (folder / LOCK).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _take(stream: IO[str]) -> bool:
    for _ in range(_TRIES):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # perhaps a reader that asks at this moment and lets go at once
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return True
        else:
            return True
    return False


def _is_at(path: Path, stream: IO[str]) -> bool:
    """Whether the file is still there; its last owner may have removed it as we opened it."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(stream.fileno()))


def _holder(lock: Path) -> str:
    try:
        told = json.loads(lock.read_text(encoding="utf-8"))
        age = time.time() - lock.stat().st_mtime
        return f" by process {told['pid']} on {told['host']}, for {age / 60:.0f} min"
    except (OSError, ValueError, LookupError, TypeError):
        return ""
