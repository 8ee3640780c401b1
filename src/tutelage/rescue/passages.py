"""Which known texts share passages with a new one: every shingle of it, looked up in an index.

Of a known text only some shingles are kept: in each window of neighbours the one with the
smallest hash (winnowing; Schleimer, Wilkerson, Aiken 2003). Two texts that share a run of
`SHINGLE + WINDOW - 1` words then share a kept one, and nothing depends on how long the rest is,
which is what tells a question in an unknown template from another question.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

SHINGLE = 4
WINDOW = 4
COMMON = 200
"""Known texts with a shingle, above which it tells nothing."""
KEPT = 2 / (WINDOW + 1)
"""Share of a long text's shingles that are kept, in the mean."""
LEAST_HITS = 0.4
"""Share of the shorter text's kept shingles that are shared, below which it is not held."""
_PENDING = 20_000
_MIX = np.uint64(0x9E3779B97F4A7C15)


def shingles(words: Sequence[str]) -> set[tuple[str, ...]]:
    """Runs of `SHINGLE` words; the whole of a shorter text."""
    return set(_runs(words))


def contained_share(words: Sequence[str], others: Sequence[str]) -> float:
    """Share of the shorter text's shingles that are in the longer one."""
    a, b = shingles(words), shingles(others)
    return len(a & b) / min(len(a), len(b))


def hashes_of(words: Sequence[str]) -> Hashes:
    """The hashes of a text's runs of words, in order; the same in every process."""
    single = np.array([_hash_of(word) for word in words or [""]], np.uint64)
    count = max(1, len(single) - SHINGLE + 1)
    runs = np.zeros(count, np.uint64)
    for place in range(min(SHINGLE, len(single))):
        runs = (runs ^ single[place : place + count]) * _MIX
        runs ^= runs >> np.uint64(29)
    return runs


class PassageIndex:
    """Texts by their passages, 12 bytes a kept shingle; texts may join at any time."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, np.uint64)
        self._places = np.empty(0, np.uint32)
        self._pending: defaultdict[int, list[int]] = defaultdict(list)
        self._waiting = 0
        self._kept: list[int] = []

    def add(self, runs: Hashes) -> None:
        """A text of these `hashes_of`; its place is how many came before."""
        window = min(WINDOW, len(runs))
        kept = np.unique(np.lib.stride_tricks.sliding_window_view(runs, window).min(1)).tolist()
        for value in kept:
            self._pending[value].append(len(self._kept))
        self._kept.append(len(kept))
        self._waiting += len(kept)
        if self._waiting > max(_PENDING, len(self._hashes) // 16):
            self._settle()

    def find(self, runs: Hashes, most: int = 8) -> list[tuple[int, int]]:
        """Texts that share shingles with this one: (place, texts that have the rarest of them).

        At most `most`, those that share the most first. Shingles of more than `COMMON`
        texts are passed over.
        """
        hits: defaultdict[int, int] = defaultdict(int)
        rarest: dict[int, int] = {}
        values = np.unique(runs)
        low = np.searchsorted(self._hashes, values, "left").tolist()
        high = np.searchsorted(self._hashes, values, "right").tolist()
        for value, first, last in zip(values.tolist(), low, high, strict=True):
            waiting = self._pending.get(value, ())
            count = last - first + len(waiting)
            if not 0 < count <= COMMON:
                continue
            for place in (*self._places[first:last].tolist(), *waiting):
                hits[place] += 1
                rarest[place] = min(count, rarest.get(place, count))
        # Of a text that holds this one, about as many are kept as this one would keep.
        own = KEPT * len(values)
        likely = [p for p in hits if hits[p] >= LEAST_HITS * min(own, self._kept[p])]
        best = sorted(likely, key=lambda place: (-hits[place], place))[:most]
        return [(place, rarest[place]) for place in best]

    def _settle(self) -> None:
        pairs = [(value, place) for value, places in self._pending.items() for place in places]
        hashes = np.concatenate([self._hashes, np.array([v for v, _ in pairs], np.uint64)])
        places = np.concatenate([self._places, np.array([p for _, p in pairs], np.uint32)])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], places[order]
        self._pending.clear()
        self._waiting = 0


@lru_cache(maxsize=100_000)
def _hash_of(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for start in range(max(1, len(words) - SHINGLE + 1)):
        yield tuple(words[start : start + SHINGLE])
