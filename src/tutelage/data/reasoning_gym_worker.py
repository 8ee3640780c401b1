"""One process that scores with reasoning-gym: a pickled generator's name, answer and entry."""

import logging
import pickle  # nosec B403 # to and from our own processes
from typing import Any

from tutelage.data.worker import Judge, limit_memory, serve

MEMORY = 4 * 1024**3
"""Bytes of memory; an answer that makes a scorer grow beyond them is unknown."""


def prepare() -> Judge:
    """Import reasoning-gym, and bound the memory."""
    from reasoning_gym import get_score_answer_fn

    limit_memory(MEMORY)
    logging.disable()
    scorers: dict[str, Any] = {}

    def score(job: bytes) -> float | None:
        name, answer, entry = pickle.loads(job)  # nosec B301 # from this process's parent
        try:
            if name not in scorers:
                scorers[name] = get_score_answer_fn(name)
            return float(scorers[name](answer=answer, entry=entry))
        except Exception:  # scorers trip over answers in every way
            return None

    return score


if __name__ == "__main__":
    serve(prepare)
