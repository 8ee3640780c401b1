"""One process that compares formulas: `[reference, answer, whether all of it is the formula]`."""

import json
import logging

from tutelage.data.worker import Judge, limit_memory, serve

MEMORY = 4 * 1024**3
"""Bytes of memory; an expression that grows beyond them is unknown."""


def prepare() -> Judge:
    """Import math-verify, and bound the memory."""
    limit_memory(MEMORY)
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


if __name__ == "__main__":
    serve(prepare)
