"""One process that compares formulas; the pool in `math_pool.py` starts and kills it.

It is run by its path and imports nothing of tutelage, so it is small and quick to replace.
A line of JSON comes in on stdin, `[reference, answer, whether all of it is the formula,
seconds]`; one word goes out: 1, 0 or unknown.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys

MEMORY = 4 * 1024**3
"""Bytes of address space; an expression that grows beyond them is unknown."""


def main() -> None:
    """Judge lines until stdin is closed."""
    out = os.dup(1)
    os.dup2(2, 1)  # whatever libraries print must not be taken for a verdict
    _limit_memory()
    logging.disable()
    compare("1", "1", True)  # imports and compiles everything before the clock runs
    os.write(out, b"ready\n")
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in sys.stdin.buffer:
        reference, answer, is_formula, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        verdict = compare(reference, answer, is_formula)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(out, {True: b"1\n", False: b"0\n", None: b"unknown\n"}[verdict])


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
    main()
