"""One process that compares formulas: `[reference, answer, whether all of it is the formula]`."""

import contextlib
import json
import logging
import resource
from collections.abc import Callable

from tutelage.data.judge_worker import serve

MEMORY = 4 * 1024**3
"""Bytes of address space; an expression that grows beyond them is unknown."""


def prepare() -> Callable[[bytes], float | None]:
    """Import math-verify, and bound the memory."""
    _limit_memory()
    logging.disable()
    compare("1", "1", True)
    return judge


def judge(job: bytes) -> float | None:
    """The verdict on one comparison."""
    verdict = compare(*json.loads(job))
    return None if verdict is None else float(verdict)


def compare(reference: str, answer: str, is_formula: bool) -> bool | None:
    """Whether math-verify finds both equal; None where it cannot read or compare them."""
    from math_verify import parse, verify

    # Its own time-outs are off: they need SIGALRM in the main thread.
    try:
        gold = parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
        if not gold:
            return None
        found = parse(f"\\boxed{{{answer}}}" if is_formula else answer, parsing_timeout=None)
        return bool(verify(gold, found, timeout_seconds=None, raise_on_error=True))
    except Exception:  # sympy raises whatever it likes
        return None


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # a system may refuse; the deadline holds
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


if __name__ == "__main__":
    serve(prepare)
