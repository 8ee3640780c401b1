"""How long completions are, and what that makes of a batch that waits for its longest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

Floats = NDArray[np.float64]
_MANY = 512  # completions whose order is taken exactly


@dataclass(frozen=True)
class Lengths:
    """A distribution of completion lengths, at least 1."""

    survival: tuple[float, ...]
    """P(length > t) for t = 0, 1, ... limit - 1; the first is 1."""

    @property
    def limit(self) -> int:
        """Most tokens of a completion."""
        return len(self.survival)

    @property
    def mean(self) -> float:
        """Tokens of a completion."""
        return float(sum(self.survival))

    def cut(self, limit: int) -> "Lengths":
        """The same where completions end after `limit` tokens, if not before."""
        return Lengths(self.survival[:limit])

    def longest(self, count: float) -> float:
        """Expected tokens of the longest of `count` completions."""
        return float(_running(self.survival, count).sum())

    def ordered(self, places: Sequence[int], count: int) -> list[float]:
        """Expected tokens of the completions at these places, from 1, of `count` sorted ones.

        Of many they are the distribution's quantiles.
        """
        ranks = np.asarray(places, dtype=float)
        survival = np.array(self.survival)
        if count <= _MANY:
            below = bdtr(ranks[:, None] - 1, count, 1 - survival[None, :])
            return [float(tokens) for tokens in below.sum(-1)]
        above = 1 - (ranks - 0.5) / count  # of the distribution, beyond the place
        return [float(n) for n in len(survival) - np.searchsorted(survival[::-1], above, "right")]


def always(limit: int) -> Lengths:
    """Every completion takes all it may."""
    return Lengths((1.0,) * limit)


def geometric(mean: float, limit: int) -> Lengths:
    """Completions that end at every token alike, cut at `limit`, of this mean.

    Raises:
        ValueError: the mean is not between 1 and the limit.
    """
    if not 1 <= mean <= limit:
        raise ValueError(f"a mean of {mean:g} tokens is not between 1 and the limit {limit}")
    low, high = 0.0, 1.0
    places = np.arange(limit)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle**places).sum()) < mean else (low, middle)
    return Lengths(tuple(float(s) for s in high**places))


def observed(lengths: Sequence[int], limit: int) -> Lengths:
    """The distribution of these lengths."""
    found = np.asarray(lengths)
    return Lengths(tuple(float((found > t).mean()) for t in range(min(limit, int(found.max())))))


@dataclass(frozen=True)
class Decoding:
    """Work of decoding one batch after its prompts were read."""

    passes: float
    """Steps over the cache."""
    rows: float
    """Rows of all steps together."""
    pairs: float
    """Of each row the tokens it looks back at, together."""


def expected_decoding(lengths: Lengths, count: int, prompt_tokens: float) -> Decoding:
    """Expected work of `count` rows in one batch, as `models/decoding.py` runs it.

    A batch shrinks to the rows that go on once they are half of it. Rows are taken at their
    expectation, the number of steps is that of the longest row.
    """
    running = _running(lengths.survival, count)
    size, passes, rows, pairs = float(count), 0.0, 0.0, 0.0
    for place in range(1, lengths.limit):
        live = count * lengths.survival[place]
        if live <= size / 2:
            size = max(live, 1.0)
        passes += running[place]
        rows += running[place] * size
        pairs += running[place] * size * (prompt_tokens + place)
    return Decoding(float(passes), float(rows), float(pairs))


def known_decoding(lengths: Sequence[int], prompt_tokens: float) -> Decoding:
    """The work of decoding rows of these lengths in one batch, counted step by step."""
    found = np.asarray(lengths)
    size, passes, rows, pairs = len(found), 0, 0.0, 0.0
    for place in range(1, int(found.max())):
        live = int((found > place).sum())
        if live <= size // 2:
            size = live
        passes += 1
        rows += size
        pairs += size * (prompt_tokens + place)
    return Decoding(float(passes), rows, pairs)


def _running(survival: Sequence[float], count: float) -> Floats:
    """P(the longest of `count` is longer than t)."""
    result: Floats = 1 - (1 - np.array(survival)) ** count
    return result
