"""Keys are shown as ***, whatever text they turn up in."""

import os
import re
import sys
import threading
import traceback
from types import TracebackType

_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
_SHORTEST = 8  # a shorter word of an environment variable would blot out ordinary text
_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_known: set[str] = set()


def keep_secret(value: str) -> None:
    """Let `redacted` hide this value too."""
    if value:
        _known.add(value)


def redacted(text: str) -> str:
    """The text without users and passwords in URLs, keys in use and those of the environment.

    Of the environment it is what stands in variables whose name speaks of a key, a token, a secret
    or a password.
    """
    variables = (v for name, v in os.environ.items() if _NAMES.search(name) and len(v) >= _SHORTEST)
    for value in sorted({*_known, *variables}, key=len, reverse=True):
        text = text.replace(value, "***")
    return _IN_URL.sub("***", text)


def redact_tracebacks() -> None:
    """What nobody caught is printed redacted too, in every thread."""

    def show(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lines = traceback.format_exception(kind, error, trace)
        print(redacted("".join(lines)), end="", file=sys.stderr)

    sys.excepthook = show
    threading.excepthook = lambda told: show(told.exc_type, told.exc_value, told.exc_traceback)
