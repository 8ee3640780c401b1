"""When work in a run directory began, and how it ended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tutelage.errors import TutelageError
from tutelage.runs.directory import Run


@contextmanager
def present(run: Run, **details: Any) -> Iterator[None]:
    """Beginning is an event, and so is an error that leaves the block."""
    run.log_event("started", **details)
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # the disk may be full
            run.log_event("stopped", **_said(error))
        raise


def last_words(run: Run) -> Callable[[int, str], None]:
    """What to do where a process ends from outside its main thread: that, too, is an event."""

    def tell(code: int, text: str) -> None:
        run.log_event("stopped", error="OtherRankFailed", exit=code, text=text[:2000])

    return tell


def _said(error: BaseException) -> dict[str, Any]:
    if isinstance(error, TutelageError):
        return {"error": type(error).__name__, "exit": error.exit_code, "text": str(error)[:2000]}
    if isinstance(error, KeyboardInterrupt):
        return {"error": "KeyboardInterrupt", "exit": 130, "text": "ended at once by Ctrl-C"}
    text = f"{type(error).__name__}: {error}"[:2000]
    return {"error": type(error).__name__, "exit": 1, "text": text}
