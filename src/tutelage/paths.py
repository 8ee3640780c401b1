"""Paths as users and files write them."""

from pathlib import Path

from tutelage.errors import TutelageError, UsageError


def usable_path(
    text: str | Path, what: str = "path", error: type[TutelageError] = UsageError
) -> Path:
    """The path with its `~` expanded; whether something is there can be asked without surprises.

    Args:
        text: as it was given.
        what: it is for, in messages.
        error: what to raise.

    Raises:
        TutelageError: no file system takes it (a name too long, a zero character, a user that is
            not there), or this one lets nobody look.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError, RuntimeError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        shown = ascii(str(text))
        shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
        raise error(f"{what} {shown} cannot be used: {reason}; give another") from None
    return path
