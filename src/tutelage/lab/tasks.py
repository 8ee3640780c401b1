"""The running-total task: tiny, exactly verifiable, with two ways of thinking.

A prompt names slots and operands, `a7 b4 c9`; the answer is the last digit of
their sum. A solution walks the slots, copies each operand and writes the new
total next to it: forwards `a7 b41 c90 #0$` or backwards `c9 b43 a70 #0$`. Both
patterns use the same tokens and reach the same answer, so a teacher of the
other pattern is equally able and yet incompatible.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.types import Message, Prompt

Ints = NDArray[np.int64]
Pattern = Literal["forward", "backward"]

PAD, BOS, EOS, ASK, ANSWER = "_", "^", "$", "=", "#"
TEMPLATES = "XY"
LETTERS = "abcdefghijklmno"
VOCABULARY = [PAD, BOS, EOS, ASK, ANSWER, *TEMPLATES, *"0123456789", *LETTERS]
_DIGIT0 = VOCABULARY.index("0")
_LETTER0 = VOCABULARY.index("a")
_HELD_OUT_SHARE = 0.2
_HELD_OUT_FROM_LENGTH = 3  # two-slot problems are the sum table itself: all are needed to learn it


@dataclass(frozen=True, kw_only=True)
class SolutionStyle:
    """How written solutions look, and how often their sums are right."""

    pattern: Pattern = "forward"
    """Order in which the slots are walked."""
    skill: float = 1.0
    """Chance that adding a hard operand is written rightly; a wrong digit is uniform."""
    hard_share: float | None = None
    """Share of hard operands in the problems; None draws operands uniformly."""
    templates: str = TEMPLATES
    """Template tokens the prompts carry."""
    other_pattern_share: float = 0.0
    """Share of solutions written in the other pattern (the compatibility dial)."""


@dataclass(frozen=True, kw_only=True)
class RunningTotal:
    """The task: operands of `hard_from` and above are the hard ones."""

    hard_from: int = 7
    lengths: tuple[int, int] = (3, 7)
    """Fewest and most slots of a problem, both included."""

    def operands(
        self, rng: np.random.Generator, rows: int, slots: int, hard_share: float | None = None
    ) -> Ints:
        """Operands [rows, slots] of problems that are in the training half of the space."""
        found: list[Ints] = []
        count = 0
        while count < rows:
            drawn = rng.integers(0, 10, (2 * rows, slots))
            if hard_share is not None:
                hard = rng.random(drawn.shape) < hard_share
                drawn = np.where(
                    hard,
                    rng.integers(self.hard_from, 10, drawn.shape),
                    rng.integers(0, self.hard_from, drawn.shape),
                )
            kept = drawn[~is_held_out(drawn)]
            found.append(kept)
            count += len(kept)
        return np.concatenate(found)[:rows]

    def held_out(self, rng: np.random.Generator, rows: int, slots: int) -> Ints:
        """Distinct problems [rows, slots] that no training set of this task contains."""
        if slots < _HELD_OUT_FROM_LENGTH:
            raise ValueError(
                f"problems of {slots} slots are all used in training; ask for 3 or more"
            )
        seen: dict[tuple[int, ...], None] = {}
        for _ in range(1000):
            drawn = rng.integers(0, 10, (4 * rows, slots))
            seen.update(dict.fromkeys(map(tuple, drawn[is_held_out(drawn)].tolist())))
            if len(seen) >= rows:
                return np.array(list(seen)[:rows], dtype=np.int64)
        raise ValueError(f"{slots} slots have fewer than {rows} held-out problems; ask for fewer")

    def sequences(
        self, rng: np.random.Generator, rows: int, slots: int, style: SolutionStyle
    ) -> tuple[Ints, int]:
        """Token ids [rows, length] of prompts with solutions, and the prompt's length."""
        digits = self.operands(rng, rows, slots, style.hard_share)
        forward = self._solution(rng, digits, style.skill, reverse=False)
        backward = self._solution(rng, digits, style.skill, reverse=True)
        main, other = (forward, backward) if style.pattern == "forward" else (backward, forward)
        swapped = rng.random((rows, 1)) < style.other_pattern_share
        template = rng.choice([VOCABULARY.index(t) for t in style.templates], rows)
        prompt = _prompt_ids(digits, template)
        return np.concatenate([prompt, np.where(swapped, other, main)], axis=1), prompt.shape[1]

    def _solution(
        self, rng: np.random.Generator, digits: Ints, skill: float, *, reverse: bool
    ) -> Ints:
        rows, slots = digits.shape
        order = range(slots - 1, -1, -1) if reverse else range(slots)
        columns: list[Ints] = []
        total = np.zeros(rows, dtype=np.int64)
        for step, slot in enumerate(order):
            operand = digits[:, slot]
            columns += [np.full(rows, _LETTER0 + slot), _DIGIT0 + operand]
            total = (total + operand) % 10
            if step:
                slip = (operand >= self.hard_from) & (rng.random(rows) >= skill)
                total = np.where(slip, (total + rng.integers(1, 10, rows)) % 10, total)
                columns.append(_DIGIT0 + total)
        columns += [
            np.full(rows, VOCABULARY.index(ANSWER)),
            _DIGIT0 + total,
            np.full(rows, VOCABULARY.index(EOS)),
        ]
        return np.stack(columns, axis=1)

    def train_prompts(self, count: int, seed: int) -> list[Prompt]:
        """`count` prompts in random order, their lengths in equal parts."""
        rng = np.random.default_rng([seed, 1])
        low, high = self.lengths
        lengths = rng.permutation(np.resize(np.arange(low, high + 1), count))
        rows = {
            n: iter(self.operands(rng, int((lengths == n).sum()), int(n))) for n in set(lengths)
        }
        return [_prompt(f"train-{i}", next(rows[n])) for i, n in enumerate(lengths)]

    def eval_prompts(self, count: int, seed: int = 0) -> list[Prompt]:
        """`count` distinct held-out prompts, their lengths in equal parts."""
        rng = np.random.default_rng([seed, 2])
        low, high = self.lengths
        shares = np.bincount(np.resize(np.arange(low, high + 1), count))
        return [
            _prompt(f"eval-{n}-{i}", row)
            for n in range(low, high + 1)
            for i, row in enumerate(self.held_out(rng, int(shares[n]), n))
        ]


def is_held_out(operands: Ints) -> NDArray[np.bool_]:
    """Which problems [rows, slots] belong to the held-out fifth of the problem space."""
    rows, slots = operands.shape
    if slots < _HELD_OUT_FROM_LENGTH:
        return np.zeros(rows, dtype=np.bool_)
    code = operands @ (10 ** np.arange(slots, dtype=np.int64)) + slots * 10**9
    # Knuth's multiplicative hash: neighbouring problems fall on both sides.
    hashed = code.astype(np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    held_out: NDArray[np.bool_] = hashed < np.uint64(_HELD_OUT_SHARE * 2**32)
    return held_out


def _prompt_ids(digits: Ints, template: Ints) -> Ints:
    rows, slots = digits.shape
    columns = [np.full(rows, VOCABULARY.index(BOS)), template]
    for slot in range(slots):
        columns += [np.full(rows, _LETTER0 + slot), _DIGIT0 + digits[:, slot]]
    columns.append(np.full(rows, VOCABULARY.index(ASK)))
    return np.stack(columns, axis=1)


def _prompt(prompt_id: str, operands: Ints) -> Prompt:
    text = " ".join(f"{LETTERS[slot]}{digit}" for slot, digit in enumerate(operands))
    return Prompt(
        id=prompt_id,
        messages=(Message(role="user", content=text),),
        answer=str(int(operands.sum()) % 10),
        metadata={"slots": len(operands)},
    )
