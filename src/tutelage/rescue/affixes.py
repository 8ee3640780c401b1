"""Instruction prefixes and suffixes, learned from a column of prompts and taken off.

A template leaves one text at the beginning or the end of many rows, whatever the
question is; questions branch after a few characters. So a text that a group of rows
shares, and along which the group stays together for at least 20 characters, is an affix.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

LEAST_LENGTH = 20
TOGETHER = 0.99
LEAST_SHARE = 0.05
LEAST_ROWS = 8
SMALL_SHARE, SMALL_GROUP = 0.2, 50
_OPENING, _CLOSING = "([{$\\\"'“‘（「", ")]}$.?!\"'”’。？！）」"
_LAST = chr(0x10FFFF)


@dataclass(frozen=True)
class Affixes:
    """What the rows of a column begin and end with besides their questions."""

    prefixes: tuple[str, ...] = ()
    """Shared beginnings, the most frequent first."""
    suffixes: tuple[str, ...] = ()
    """Shared ends, the most frequent first."""
    rows: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """How many of the rows learned from have each prefix and suffix; '' for none."""

    def strip(self, text: str) -> str:
        """The question inside a row's text."""
        prefix, suffix = self.of(text)
        text = tidy(text)
        return text[len(prefix) : len(text) - len(suffix)].strip()

    def of(self, text: str) -> tuple[str, str]:
        """The longest known prefix and suffix of a text; '' for none.

        A row that holds nothing else has none: it would be no question.
        """
        text = tidy(text)
        prefix = max((p for p in self.prefixes if text.startswith(p)), key=len, default="")
        suffix = max((s for s in self.suffixes if text.endswith(s)), key=len, default="")
        if len(prefix) + len(suffix) >= len(text):
            return "", ""
        return prefix, suffix

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "prefixes": list(self.prefixes),
            "suffixes": list(self.suffixes),
            "templates": [
                {"prefix": prefix, "suffix": suffix, "rows": rows}
                for (prefix, suffix), rows in self.rows.items()
            ],
        }


def learn_affixes(
    texts: Iterable[str], *, least_share: float = LEAST_SHARE, least_length: int = LEAST_LENGTH
) -> Affixes:
    """The affixes of a column in which one or several templates may be mixed.

    An affix is the longest text that at least 99 % of the rows share, or 99 % of a group of
    them, over at least `least_length` characters in which no other row leaves the group. A
    group has 8 rows or more, `least_share` of all, and in a small column a fifth of all up to
    50 rows: there phrases of questions recur, too. Punctuation that closes a question, or opens
    one, is the question's.
    """
    rows = [tidy(text) for text in texts]
    shares = (least_share * len(rows), min(SMALL_SHARE * len(rows), SMALL_GROUP))
    least = max(LEAST_ROWS, ceil(max(shares)))
    prefixes = _shared_beginnings(rows, least, least_length, _without_opening)
    backwards = [row[::-1] for row in rows]
    suffixes = _shared_beginnings(backwards, least, least_length, _without_closing)
    found = Affixes(tuple(prefixes), tuple(suffix[::-1] for suffix in suffixes))
    counts = Counter(map(found.of, rows))
    return Affixes(found.prefixes, found.suffixes, dict(counts.most_common()))


def affixes_of(template: str) -> Affixes:
    """The affixes of a template that is known, with its {question}."""
    prefix, _, suffix = template.replace("\r\n", "\n").partition("{question}")
    prefix, suffix = prefix.lstrip(), suffix.rstrip()
    return Affixes((prefix,) if prefix else (), (suffix,) if suffix else ())


def tidy(text: str) -> str:
    """A text with one kind of line ends and nothing around it."""
    return text.replace("\r\n", "\n").strip()


def _shared_beginnings(
    rows: Sequence[str], least: int, length: int, end_of: Callable[[str, str], str]
) -> list[str]:
    texts = sorted(rows)
    found = _grow(texts, 0, len(texts), 0, least, length)
    kept: dict[str, int] = {}
    for text, count in sorted(found, key=lambda pair: -pair[1]):
        following = "".join(
            {row[len(text) : len(text) + 1] for row in rows if row.startswith(text)}
        )
        text = end_of(text, following)
        if len(text.strip()) >= length:
            kept.setdefault(text, count)
    return list(kept)


def _grow(
    texts: Sequence[str], low: int, high: int, start: int, least: int, length: int
) -> list[tuple[str, int]]:
    """Affixes of the sorted rows low to high, which share their first `start` characters."""
    rows = high - low
    if rows < least:
        return []
    # Whatever most rows share, the row in the middle shares it too.
    middle = texts[(low + high) // 2]
    shortest, longest = start, len(middle)
    while shortest < longest:
        depth = (shortest + longest + 1) // 2
        first, last = _block(texts, low, high, middle[:depth])
        if last - first >= max(least, TOGETHER * rows):
            shortest = depth
        else:
            longest = depth - 1
    depth = shortest
    first, last = _block(texts, low, high, middle[:depth])
    inner: list[tuple[str, int]] = []
    place = first
    while place < last:
        head = texts[place][: depth + 1]
        after = _block(texts, place, last, head)[1]
        if len(head) > depth:
            # The character after a fork is where the next stretch begins.
            inner += _grow(texts, place, after, depth + 1, least, length)
        place = after
    if depth - start + (start > 0) < length:
        return inner
    covered = sum(count for _, count in inner)
    return inner if covered >= 0.9 * (last - first) else [(middle[:depth], last - first)]


def _block(texts: Sequence[str], low: int, high: int, head: str) -> tuple[int, int]:
    return (
        bisect_left(texts, head, low, high),
        bisect_right(texts, head + _LAST, low, high),
    )


def _without_opening(prefix: str, following: str) -> str:
    """A prefix that ends between words, without what opens the question."""
    if any(map(_in_word, following)):
        while prefix and _in_word(prefix[-1]):
            prefix = prefix[:-1]
    return prefix.rstrip(_OPENING)


def _without_closing(backwards: str, following: str) -> str:
    """The same for a suffix read backwards."""
    if any(map(_in_word, following)):
        while backwards and _in_word(backwards[-1]):
            backwards = backwards[:-1]
    return backwards.rstrip(_CLOSING)


def _in_word(character: str) -> bool:
    """Whether a character is part of a longer word; scripts without cases have no such words."""
    return character.isdigit() or character.lower() != character.upper()
