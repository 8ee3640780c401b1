"""Errors a user can mend, each with the exit code of its kind.

TutelageError
├── UsageError        2   config, flags, paths, pairs that cannot be combined
├── DataError         4   something inside a prompts or answers file
├── MachineError      5   versions, disk, memory, an extra that is not installed
│   └── RankLost      5   another process of the run, or its host, is gone
├── ServerError       6   a server
├── GuardStop         7   a guard stopped the run
├── CheckpointError   8   nothing valid to resume from
└── Preempted        75   stopped by a signal, state saved
    └── Interrupted 130   the same by Ctrl-C

A message says what was found, why it cannot work and what to do. Anything
else that escapes is a bug in tutelage and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TutelageError(Exception):
    """Base of every error whose message is meant for the user."""

    exit_code = 1
    agreed = False
    """Raised alike on every rank of a run, so that one of them tells it."""
    told = False
    """Another rank of the run has told it."""


class UsageError(TutelageError, ValueError):
    """A setting, flag or path that cannot be used."""

    exit_code = 2


class DataError(TutelageError, ValueError):
    """A prompts or answers file that cannot be used."""

    exit_code = 4


class MachineError(TutelageError, RuntimeError):
    """The environment lacks something."""

    exit_code = 5


class RankLost(MachineError):
    """Another process of the run is gone, or cannot be reached."""


class ServerError(TutelageError, RuntimeError):
    """A server failed or refused."""

    exit_code = 6


class GuardStop(TutelageError, RuntimeError):
    """A guard stopped the run before it did harm."""

    exit_code = 7
    agreed = True


class CheckpointError(TutelageError, RuntimeError):
    """No valid checkpoint to resume from."""

    exit_code = 8


class Preempted(TutelageError, RuntimeError):
    """A signal stopped the run after its state was saved."""

    exit_code = 75
    agreed = True


class Interrupted(Preempted):
    """Ctrl-C stopped the run after its state was saved."""

    exit_code = 130


class Stop(BaseException):
    """Ends abandoned work; not an Exception, so that no library takes it for a failure.

    Its argument is the signal that asked.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to append to a message, or all choices where none is close."""
    choices = sorted(known)
    close = get_close_matches(word, choices, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(choices)}."
