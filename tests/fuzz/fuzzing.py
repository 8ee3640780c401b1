"""What hypothesis feeds to a reader, and what a reader may do with it.

`HYPOTHESIS_PROFILE=long` lets each test go on, with new examples, for its share of ten minutes.
"""

import copy
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tutelage.errors import TutelageError

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
DEADLINE_S = 20.0
"""Processor seconds of one example; they take milliseconds."""
CODES = {2, 4, 5, 6, 7, 8}


class Hang(Exception):
    """An example that does not end."""


@contextmanager
def deadline() -> Iterator[None]:
    """Processor time, so that a busy machine makes no example late."""

    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, DEADLINE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class Fuzz:
    """Feeds readers and counts; the long profile has so many seconds for each."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.examples = 0
        self.refused = 0

    def __call__(
        self, read: Callable[[Any], object], inputs: st.SearchStrategy[Any], examples: int = 200
    ) -> None:
        """`read` of any input returns, or raises an error of ours with its exit code and a text."""

        def one(case: Any) -> None:
            self.examples += 1
            told = None
            with deadline():
                try:
                    read(case)
                except TutelageError as error:
                    told = error
            if told is not None:
                self.refused += 1
                assert told.exit_code in CODES, told
                assert str(told).strip()

        def some(count: int, number: int | None) -> None:
            limits = settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=number is None,
                phases=[Phase.explicit, Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            test = limits(given(inputs)(one))
            (test if number is None else seed(number)(test))()

        if not LONG:
            some(examples, None)
            return
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            some(examples, random.getrandbits(60))


# --- values ----------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30, 1e308, -0.0, 5e-324]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.floats(-2, 2),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *("", " ", "0", "nan", "no", "true", "null", "2e-5", "~", "~nobody/x", "../../x"),
            *("/", ".", "\x00", "a\x00b", "\x1b]0;x\x07", "\ud800", "\u202e", "<script>", "{x}"),
            *("{{ 1 }}", "{% for", "x" * 300, "\n", "a: b", "- a", "hub:x", "reasoning_gym:x"),
            *("step-0", "CON", "http://169.254.169.254", "sk-secret"),
        ]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, base: Any, keys: tuple[str, ...] = ()) -> Any:
    """A JSON value with one to three places replaced, dropped, doubled or added."""
    tree = copy.deepcopy(base)
    names = st.sampled_from(keys) | TEXTS if keys else TEXTS
    for _ in range(draw(st.integers(1, 3))):
        holder, key, node = None, None, tree
        while isinstance(node, dict | list) and node:
            if holder is not None and draw(st.integers(0, 3)) == 0:
                break
            places = list(node) if isinstance(node, dict) else list(range(len(node)))
            holder, key = node, draw(st.sampled_from(places))
            node = holder[key]
        kind = draw(st.sampled_from(["replace", "replace", "drop", "add", "wrap"]))
        if holder is None:
            tree = draw(VALUES) if kind == "replace" else tree
        elif kind == "replace":
            holder[key] = draw(VALUES)
        elif kind == "wrap":
            holder[key] = draw(st.sampled_from([[node], {"type": node}, [node, node]]))
        elif isinstance(holder, list):
            if kind == "drop":
                del holder[key]
            else:
                holder.insert(key, draw(VALUES))
        elif kind == "drop":
            del holder[key]
        else:
            holder[draw(names)] = draw(VALUES)
    return tree


_PIECES = [
    *(b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\xed\xa0\x80", b'"', b"{", b"}"),
    *(b"[", b"]", b",", b":", b"NaN", b"1e999", b"-Infinity", b"9" * 5000, b"[" * 20_000),
    *(b'{"a":' * 5000, b"null", b"\\ud800", b"\x1b[2J", b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
]


@st.composite
def damaged(draw: st.DrawFn, base: bytes) -> bytes:
    """Bytes with one to four cuts, flips, copies or insertions."""
    content = bytearray(base)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        size = draw(st.sampled_from([0, 1, 2, 8, 64]) | st.integers(0, max(1, len(content))))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "copy", "insert", "replace"]))
        if kind == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[place:]
        elif kind == "drop":
            del content[place : place + size]
        elif kind == "copy":
            content[place:place] = content[place : place + min(size, 4096)]
        elif kind == "insert":
            content[place:place] = draw(st.sampled_from(_PIECES) | st.binary(max_size=8))
        elif kind == "replace":
            content[place : place + size] = draw(st.sampled_from(_PIECES) | st.binary(max_size=8))
    return bytes(content)


def as_json(value: Any) -> bytes:
    """As a careless program writes it: NaN and lone surrogates included."""
    return json.dumps(value).encode()


def json_file(base: Any, keys: tuple[str, ...] = ()) -> st.SearchStrategy[bytes]:
    """A JSON file whose content or whose bytes are changed."""
    return changed(base, keys).map(as_json) | damaged(as_json(base))


@st.composite
def lines_file(draw: st.DrawFn, records: list[Any], keys: tuple[str, ...] = ()) -> bytes:
    """A file of JSON lines, damaged in content or in bytes."""
    if draw(st.booleans()):
        return draw(damaged(b"".join(as_json(record) + b"\n" for record in records)))
    some = list(records)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(some) - 1))
        some[place] = draw(changed(some[place], keys))
    return b"".join(as_json(record) + b"\n" for record in some)
