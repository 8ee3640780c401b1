"""Token tables in few bytes: one a number, whole tables deflated, read again by tokens.js.

A number is stored as the square root of its distance from where the scale begins, so that small
ones keep more digits than large ones. What is read back differs from a number v by at most
sqrt(|v - origin| * span) / 254 on a one-sided scale and twice that on a two-sided one, plus a
quarter of a step squared at 0; the browser marks such numbers with ≈.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ids = NDArray[np.uint32]

ABSENT = 255  # code of a number that is not defined
ELSEWHERE = 255  # a teacher's token that is not in the student's list
# Printable ASCII that JSON in a script element writes as it is: 91 letters, and 2^13 < 91^2.
LETTERS = "".join(chr(c) for c in range(33, 127) if chr(c) not in '"<\\')
_OWN_BLOCK = 256  # bytes; a table of codes costs about 60
FLOOR = 24.0  # nats; log-probabilities below -24 are told as that


@dataclass(frozen=True, slots=True)
class Scale:
    """How numbers become codes 0 to 254."""

    origin: float
    """Where it begins; the middle of a two-sided scale."""
    span: float
    """The largest distance from there."""
    direction: int
    """1: values lie above the origin, -1: below, 0: on both sides."""

    def encode(self, values: Floats) -> Bytes:
        """Codes of values; not finite ones are `ABSENT`."""
        finite = np.isfinite(values)
        away = np.where(finite, values, self.origin).astype(np.float64) - self.origin
        share = away / self.span if self.span > 0 else np.zeros_like(away)
        if self.direction:
            codes = np.rint(254 * np.sqrt(np.clip(self.direction * share, 0, 1)))
        else:
            codes = 127 + np.rint(127 * np.sign(share) * np.sqrt(np.clip(np.abs(share), 0, 1)))
        return np.where(finite, codes, ABSENT).astype(np.uint8)

    def decode(self, codes: Bytes) -> Floats:
        """What the browser reads; NaN where absent."""
        c = codes.astype(np.float64)
        if self.direction:
            away = self.direction * (c / 254) ** 2
        else:
            away = np.sign(c - 127) * ((c - 127) / 127) ** 2
        values = self.origin + self.span * away
        return np.where(codes == ABSENT, np.nan, values).astype(np.float32)


LOGPROBS = Scale(0.0, FLOOR, -1)
SHARES = Scale(0.0, 1.0, 1)


@dataclass(frozen=True, slots=True)
class Lists:
    """Both sides' likely tokens at n states, most likely first; id 0 is an empty place."""

    student: Ids
    """[n, k]"""
    student_logprobs: Floats
    """[n, k]"""
    teacher: Ids
    """[n, l]"""
    teacher_logprobs: Floats
    """[n, l]"""

    def first(self, k: int) -> "Lists":
        """The first k of each list."""
        return Lists(
            self.student[:, :k],
            self.student_logprobs[:, :k],
            self.teacher[:, :k],
            self.teacher_logprobs[:, :k],
        )

    def mapped(self, entries: Ids) -> "Lists":
        """With the entry of each id in its place."""
        return Lists(
            entries[self.student],
            self.student_logprobs,
            entries[self.teacher],
            self.teacher_logprobs,
        )

    def above(self, least: float) -> "Lists":
        """Without the tokens below a log-probability, but the first of each list stays."""

        def cut(ids: Ids, logprobs: Floats) -> tuple[Ids, Floats]:
            gone = logprobs < least
            gone[:, :1] = False
            return np.where(gone, np.uint32(0), ids), np.where(gone, np.float32(np.nan), logprobs)

        return Lists(
            *cut(self.student, self.student_logprobs), *cut(self.teacher, self.teacher_logprobs)
        )

    def at(self, places: NDArray[np.int64]) -> "Lists":
        """Those of some states."""
        return Lists(
            self.student[places],
            self.student_logprobs[places],
            self.teacher[places],
            self.teacher_logprobs[places],
        )


def id_planes(ids: Ids, width: int) -> list[Bytes]:
    """Ids byte by byte, all lowest bytes first: the higher ones are mostly 0 and deflate well."""
    return [((ids >> (8 * place)) & 255).astype(np.uint8).ravel() for place in range(width)]


def list_planes(lists: Lists, width: int, *, fine: bool = False) -> list[Bytes]:
    """Lists as planes, rank by rank: student ids, their codes, the teacher's places, ids, codes.

    A teacher's token is told by its place in the student's list where it has one; codes are the
    differences from rank to rank. `fine` ones have two bytes, and are true to FLOOR / 131,068.
    """
    codes = fine_codes if fine else lambda logprobs: _steps(LOGPROBS.encode(logprobs))
    planes: list[Bytes] = []
    for column in lists.student.T:
        planes += id_planes(column, width)
    planes += codes(lists.student_logprobs)
    same = lists.teacher[:, :, None] == lists.student[:, None, :]
    known = same.any(-1) if lists.student.shape[1] else np.zeros(lists.teacher.shape, bool)
    places = np.where(known, same.argmax(-1) if same.shape[-1] else 0, ELSEWHERE).astype(np.uint8)
    planes += list(places.T)
    new = [lists.teacher[~known[:, j], j] for j in range(lists.teacher.shape[1])]
    planes += id_planes(np.concatenate(new) if new else np.empty(0, np.uint32), width)
    planes += codes(lists.teacher_logprobs)
    return planes


def fine_codes(logprobs: Floats) -> list[Bytes]:
    """Log-probabilities [n, k] in two bytes, evenly from 0 to -FLOOR; 65,535 is `ABSENT`."""
    finite = np.isfinite(logprobs)
    share = np.clip(np.where(finite, logprobs, 0.0) / -FLOOR, 0, 1)
    codes = np.where(finite, np.rint(65_534 * share), 65_535).astype(np.uint32)
    return [plane for column in codes.T for plane in id_planes(column, 2)]


def sampled_planes(tokens: Ids, lists: Lists | None, width: int) -> tuple[list[Bytes], Any]:
    """Tokens as their places in the student's lists, and the ids of those that are in none.

    Also returns which are in one: their log-probability need not be told again.
    """
    if lists is None or not lists.student.shape[1]:
        known, places = np.zeros(len(tokens), bool), np.zeros(len(tokens), np.int64)
    else:
        same = lists.student == tokens[:, None]
        known, places = same.any(-1), same.argmax(-1)
    plane = np.where(known, places, ELSEWHERE).astype(np.uint8)
    return [plane, *id_planes(tokens[~known], width)], known


def pack(planes: Sequence[Bytes]) -> tuple[str, int]:
    """Planes one after the other, deflated, as text that JSON and HTML leave as it is.

    Each plane gets codes of its own, and what repeats is only looked for where that pays. The text
    has 13 bits in two letters (base64 has 12); the number is that of the bytes in it.
    """
    tries = [_deflated(planes, how) for how in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)]
    packed = min(tries, key=len)
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    whole = np.concatenate([bits, np.zeros(-len(bits) % 13, np.uint8)])
    pairs = whole.reshape(-1, 13) @ (1 << np.arange(12, -1, -1))
    letters = np.stack(np.divmod(pairs, len(LETTERS)), -1)
    return np.frombuffer(LETTERS.encode(), np.uint8)[letters].tobytes().decode("ascii"), len(packed)


def _deflated(planes: Sequence[Bytes], strategy: int) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, 15, 9, strategy)
    parts = [
        stream.compress(plane.tobytes())
        + (stream.flush(zlib.Z_BLOCK) if plane.size >= _OWN_BLOCK else b"")
        for plane in planes
    ]
    return b"".join(parts) + stream.flush()


def _steps(codes: Bytes) -> list[Bytes]:
    """Codes [n, k] as k planes of differences from rank to rank, modulo 256."""
    return [
        column if rank == 0 else column - codes[:, rank - 1] for rank, column in enumerate(codes.T)
    ]
