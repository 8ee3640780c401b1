"""Answers that repeat themselves, told from text alone."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

LINE_LENGTH, LINE_TIMES = 20, 5
PASSAGE_LENGTH, PASSAGE_TIMES = 100, 3
LONGEST_PERIOD = 400
LEAST_ECHO = 30
"""Characters that must equal those one period before, where the period is shorter."""

RepetitionKind = Literal["line", "passage", "loop"]


@dataclass(frozen=True, slots=True)
class Repetition:
    """What repeats in a text."""

    kind: RepetitionKind
    """line: a line of 20 or more characters stands there five times or more; passage: 100
    characters stand there three times or more without overlap; loop: at least the last third
    repeats one period."""
    text: str
    """What is repeated."""
    times: float
    """How often it stands there; of a loop, its length in periods."""


def find_repetition(text: str) -> Repetition | None:
    """The first way in which a text is degenerate: by lines, by passages, by a loop at its end.

    Every offset of a passage and every period from 1 to 400 characters is looked at.
    """
    return repeated_line(text) or repeated_passage(text) or final_loop(text)


def repeated_line(text: str) -> Repetition | None:
    """The line that stands most often in a text, if that is five times or more."""
    lines = Counter(line for part in text.splitlines() if len(line := part.strip()) >= LINE_LENGTH)
    line, times = max(lines.items(), key=lambda item: item[1], default=("", 0))
    return Repetition("line", line, times) if times >= LINE_TIMES else None


def repeated_passage(text: str) -> Repetition | None:
    """The first 100 characters that have stood in a text three times, without overlap."""
    seen: dict[str, tuple[int, int]] = {}
    for start in range(len(text) - PASSAGE_LENGTH + 1):
        passage = text[start : start + PASSAGE_LENGTH]
        last, times = seen.get(passage, (-PASSAGE_LENGTH, 0))
        if start - last >= PASSAGE_LENGTH:
            if times + 1 == PASSAGE_TIMES:
                return Repetition("passage", passage, PASSAGE_TIMES)
            seen[passage] = start, times + 1
    return None


def final_loop(text: str) -> Repetition | None:
    """The shortest period that fills the end of a text, twice or more and for a third of it.

    White space after the loop is passed over; a loop of white space is one too.
    """
    return _loop(text) or _loop(text.rstrip())


def _loop(text: str) -> Repetition | None:
    characters = np.array([ord(character) for character in text], np.int32)
    for period in range(1, min(LONGEST_PERIOD, len(text) // 2) + 1):
        # So many characters at the end equal those one period before.
        needed = max(LEAST_ECHO, period, -(-len(text) // 3) - period)
        if needed > len(text) - period or not np.array_equal(
            characters[-needed:], characters[-needed - period : -period]
        ):
            continue
        differing = np.flatnonzero(characters[period:] != characters[:-period])
        start = int(differing[-1]) + 1 if len(differing) else 0
        return Repetition("loop", text[-period:], (len(text) - start) / period)
    return None
