"""Tiny tasks, exactly verifiable, each with two ways of thinking.

A prompt names slots and operands; the answer is their total. A solution walks the slots, copies
each operand and writes the new total next to it, forwards or backwards. Both patterns use the
same tokens and reach the same answer, so a teacher of the other pattern is equally able and yet
incompatible.

    RunningTotal, modulo 10     a7 b4 c9  ->  a7 b41 c90 #0$          or  c9 b43 a70 #0$
    ModTotal, modulo 31         5 a7 b4   ->  5 a 7 12 b 4 16 # 16 $  or  5 b 4 9 a 7 16 # 16 $
"""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage import config
from tutelage.types import Message, Prompt

Ints = NDArray[np.int64]
Pattern = Literal["forward", "backward"]

PAD, BOS, EOS, ASK, ANSWER = "_", "^", "$", "=", "#"
TEMPLATES = "XY"
LETTERS = "abcdefghijklmno"
_MARKS = (PAD, BOS, EOS, ASK, ANSWER, *TEMPLATES)
_NUMBER0 = len(_MARKS)
_HELD_OUT_SHARE = 0.2
_HELD_OUT_FROM_LENGTH = 3  # shorter problems are the sum table itself: all are needed to learn it


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
    gate: str | None = None
    """The only template token under which `skill` and `hard_share` hold; None: all are alike."""
    skill_outside: float = 0.15
    """Skill under other templates than the gate."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Totals of slots; operands are digits, those of `hard_from` and above are the hard ones.

    A problem is a row of numbers: the start, where the task has one, and the operands.
    """

    hard_from: int = 7
    lengths: tuple[int, int] = (3, 7)
    """Fewest and most slots of a problem, both included."""
    modulus: int = 10
    """Totals are taken modulo this; every residue is one token."""

    has_start: ClassVar[bool]
    """Whether a problem names the number that the walk starts from."""
    separator: ClassVar[str]
    """What stands between two tokens in text."""

    @property
    @abstractmethod
    def letters(self) -> str:
        """Names of the slots."""

    @property
    @abstractmethod
    def verifier(self) -> config.Pattern:
        """How a written solution is judged."""

    @property
    @abstractmethod
    def example(self) -> str:
        """A prompt, for error messages."""

    @abstractmethod
    def next_batch(self, rng: np.random.Generator, done: float) -> tuple[int, int]:
        """Slots and rows of a batch when this share of the training is done: short ones first.

        Every batch has one length, so nothing is padded.
        """

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every token."""
        return (*_MARKS, *map(str, range(self.modulus)), *self.letters)

    @property
    def longest_solution(self) -> int:
        """Tokens of a solution of the longest problem, its end included."""
        return len(self.solution([0] * (self.lengths[1] + self.has_start)))

    def problems(
        self, rng: np.random.Generator, rows: int, slots: int, hard_share: float | None = None
    ) -> Ints:
        """Problems [rows, slots or slots + 1] of the training half of the space."""
        found: list[Ints] = []
        count = 0
        while count < rows:
            drawn = self._draw(rng, 2 * rows, slots, hard_share)
            kept = drawn[~self.is_held_out(drawn)]
            found.append(kept)
            count += len(kept)
        return np.concatenate(found)[:rows]

    def held_out(self, rng: np.random.Generator, rows: int, slots: int) -> Ints:
        """Distinct problems that no training set of this task contains."""
        if slots < _HELD_OUT_FROM_LENGTH:
            raise ValueError(
                f"problems of {slots} slots are all used in training; ask for 3 or more"
            )
        seen: dict[tuple[int, ...], None] = {}
        for _ in range(1000):
            drawn = self._draw(rng, 4 * rows, slots)
            seen.update(dict.fromkeys(map(tuple, drawn[self.is_held_out(drawn)].tolist())))
            if len(seen) >= rows:
                return np.array(list(seen)[:rows], dtype=np.int64)
        raise ValueError(f"{slots} slots have fewer than {rows} held-out problems; ask for fewer")

    def is_held_out(self, problems: Ints) -> NDArray[np.bool_]:
        """Which problems belong to the held-out fifth of the problem space."""
        operands = problems[:, int(self.has_start) :]
        rows, slots = operands.shape
        if slots < _HELD_OUT_FROM_LENGTH:
            return np.zeros(rows, dtype=np.bool_)
        # One number for each problem: its digits, how many they are, and where it starts.
        code = operands @ (10 ** np.arange(slots, dtype=np.int64)) + slots * 10**9
        if self.has_start:
            code = code + problems[:, 0] * 10**10
        # Knuth's multiplicative hash: neighbouring problems fall on both sides.
        hashed = code.astype(np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
        held_out: NDArray[np.bool_] = hashed < np.uint64(_HELD_OUT_SHARE * 2**32)
        return held_out

    def sequences(
        self, rng: np.random.Generator, rows: int, slots: int, style: SolutionStyle
    ) -> tuple[Ints, int]:
        """Token ids [rows, length] of prompts with solutions, and the prompt's length."""
        if style.gate is not None:
            return self._gated(rng, rows, slots, style)
        problems = self.problems(rng, rows, slots, style.hard_share)
        # Both are written whatever is asked for, so that all styles draw the same problems.
        forward = self._solutions(rng, problems, style.skill, reverse=False)
        backward = self._solutions(rng, problems, style.skill, reverse=True)
        main, other = (forward, backward) if style.pattern == "forward" else (backward, forward)
        swapped = rng.random((rows, 1)) < style.other_pattern_share
        template = rng.choice([_MARKS.index(t) for t in style.templates], rows)
        prompt = self._prompt_ids(problems, template)
        return np.concatenate([prompt, np.where(swapped, other, main)], axis=1), prompt.shape[1]

    def _gated(
        self, rng: np.random.Generator, rows: int, slots: int, style: SolutionStyle
    ) -> tuple[Ints, int]:
        """Half of the rows under the gate, half under the other templates."""
        inside = replace(style, gate=None, templates=style.gate or TEMPLATES)
        outside = replace(
            style,
            gate=None,
            templates=style.templates.replace(inside.templates, ""),
            skill=style.skill_outside,
            hard_share=None,
        )
        parts = [
            self.sequences(rng, count, slots, part)
            for count, part in ((rows - rows // 2, inside), (rows // 2, outside))
        ]
        return np.concatenate([ids for ids, _ in parts]), parts[0][1]

    def solution(self, problem: Sequence[int], pattern: Pattern = "forward") -> tuple[int, ...]:
        """Token ids of the right solution of a problem."""
        rows = np.array([problem], dtype=np.int64)
        rng = np.random.default_rng(0)  # of slips, and a right solution has none
        return tuple(self._solutions(rng, rows, 1.0, reverse=pattern == "backward")[0].tolist())

    def first_error(self, problem: Sequence[int], completion: Sequence[int]) -> int | None:
        """Place of the first token that the right solution of no pattern has there.

        None where the completion is such a solution, or the beginning of one. Later errors may
        cancel the first one, so a completion with an error may still end in the right answer.
        """
        places = []
        for pattern in ("forward", "backward"):
            right = self.solution(problem, pattern)
            differs = (i for i, token in enumerate(completion) if right[i : i + 1] != (token,))
            places.append(next(differs, None))
        return None if None in places else max(place for place in places if place is not None)

    def problem_of(self, prompt: Prompt) -> tuple[int, ...]:
        """The problem that a prompt asks."""
        return tuple(map(int, re.findall(r"\d+", prompt.question)))

    def train_prompts(self, count: int, seed: int, hard_share: float | None = None) -> list[Prompt]:
        """`count` prompts in random order, their lengths in equal parts.

        `hard_share` of their operands are hard ones; None draws operands uniformly.
        """
        rng = np.random.default_rng([seed, 1])
        low, high = self.lengths
        lengths = rng.permutation(np.resize(np.arange(low, high + 1), count))
        rows = {
            n: iter(self.problems(rng, int((lengths == n).sum()), int(n), hard_share))
            for n in set(lengths)
        }
        return [self._prompt(f"train-{i}", next(rows[n])) for i, n in enumerate(lengths)]

    def eval_prompts(self, count: int, seed: int = 0) -> list[Prompt]:
        """`count` distinct held-out prompts, their lengths in equal parts."""
        rng = np.random.default_rng([seed, 2])
        low, high = self.lengths
        shares = np.bincount(np.resize(np.arange(low, high + 1), count), minlength=high + 1)
        return [
            self._prompt(f"eval-{n}-{i}", row)
            for n in range(low, high + 1)
            for i, row in enumerate(self.held_out(rng, int(shares[n]), n))
        ]

    def _draw(
        self, rng: np.random.Generator, rows: int, slots: int, hard_share: float | None = None
    ) -> Ints:
        operands = rng.integers(0, 10, (rows, slots))
        if hard_share is not None:
            hard = rng.random(operands.shape) < hard_share
            operands = np.where(
                hard,
                rng.integers(self.hard_from, 10, operands.shape),
                rng.integers(0, self.hard_from, operands.shape),
            )
        if not self.has_start:
            return operands
        return np.concatenate([rng.integers(0, self.modulus, (rows, 1)), operands], axis=1)

    def _solutions(
        self, rng: np.random.Generator, problems: Ints, skill: float, *, reverse: bool
    ) -> Ints:
        operands = problems[:, int(self.has_start) :]
        rows, slots = operands.shape
        order = range(slots - 1, -1, -1) if reverse else range(slots)
        total = problems[:, 0] if self.has_start else np.zeros(rows, dtype=np.int64)
        columns: list[Ints] = [_NUMBER0 + total] if self.has_start else []
        for step, slot in enumerate(order):
            operand = operands[:, slot]
            columns += [np.full(rows, self._letter0 + slot), _NUMBER0 + operand]
            total = (total + operand) % self.modulus
            if step or self.has_start:
                slip = (operand >= self.hard_from) & (rng.random(rows) >= skill)
                wrong = (total + rng.integers(1, self.modulus, rows)) % self.modulus
                total = np.where(slip, wrong, total)
                columns.append(_NUMBER0 + total)
        columns += [
            np.full(rows, _MARKS.index(ANSWER)),
            _NUMBER0 + total,
            np.full(rows, _MARKS.index(EOS)),
        ]
        return np.stack(columns, axis=1)

    def _prompt_ids(self, problems: Ints, template: Ints) -> Ints:
        operands = problems[:, int(self.has_start) :]
        rows, slots = operands.shape
        columns = [np.full(rows, _MARKS.index(BOS)), template]
        columns += [_NUMBER0 + problems[:, 0]] if self.has_start else []
        for slot in range(slots):
            columns += [np.full(rows, self._letter0 + slot), _NUMBER0 + operands[:, slot]]
        columns.append(np.full(rows, _MARKS.index(ASK)))
        return np.stack(columns, axis=1)

    def _prompt(self, prompt_id: str, problem: Ints) -> Prompt:
        operands = problem[int(self.has_start) :]
        words = [f"{self.letters[slot]}{digit}" for slot, digit in enumerate(operands)]
        return Prompt(
            id=prompt_id,
            messages=(
                Message(
                    role="user", content=" ".join([*map(str, problem[: -len(operands)]), *words])
                ),
            ),
            answer=str(int(problem.sum()) % self.modulus),
            metadata={"slots": len(operands)},
        )

    @property
    def _letter0(self) -> int:
        return _NUMBER0 + self.modulus


@dataclass(frozen=True, kw_only=True)
class RunningTotal(Task):
    """The last digit of a sum, one token a character."""

    has_start = False
    separator = ""
    letters = LETTERS
    example = "a7 b4 c9"
    verifier = config.Pattern(pattern=r"^[^#]*#(\d)$")
    """A right solution ends right after the digit that follows its only `#`."""

    def next_batch(self, rng: np.random.Generator, done: float) -> tuple[int, int]:
        """The sum table, then three slots, then all."""
        high = self.lengths[1]
        if done < 0.14:
            return 2, 128  # the sum table
        if done < 0.38:
            return 3, 96  # two slots allow a short-cut: the running total equals the first operand
        if done < 0.55:
            return int(rng.integers(2, high - 1)), 64
        return int(rng.integers(2, high + 2)), 64


@dataclass(frozen=True, kw_only=True)
class ModTotal(Task):
    """A total modulo 31, say, from a start: two errors cancel in one of `modulus` - 1 cases."""

    modulus: int = 31
    lengths: tuple[int, int] = (3, 6)

    has_start = True
    separator = " "
    example = "5 a7 b4"
    verifier = config.Pattern(pattern=r"^[^#]*# (\d+)$")
    """A right solution ends right after the number that follows its only `#`."""

    @property
    def letters(self) -> str:
        """One slot more than the longest problem has: training goes that far."""
        return LETTERS[: self.lengths[1] + 1]

    def next_batch(self, rng: np.random.Generator, done: float) -> tuple[int, int]:
        """The sum table, two slots, then all: copying from late slots takes longest to learn."""
        if done < 0.12:
            return 1, 256
        if done < 0.24:
            return 2, 128
        return int(rng.integers(2, self.lengths[1] + 2)), 64


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Chat prompts as the rows of a .jsonl file; whoever reads it sees all of them."""
    rows = (
        {
            "id": prompt.id,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.messages],
            "answer": prompt.answer,
        }
        for prompt in prompts
    )
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.replace(path)
