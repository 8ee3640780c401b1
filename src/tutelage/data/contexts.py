"""What a teacher is shown beside the question: columns of the row, and other answers to it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tutelage.types import Prompt, Rollout

SIBLINGS = ("correct", "wrong", "attempt", "verdict")
"""Columns that come from other rollouts of the question."""


def siblings(rollout: Rollout, others: Sequence[Rollout]) -> dict[str, str | None]:
    """The first right, wrong and judged other answer to the same question, and its verdict.

    Never the rollout itself, which a teacher would only have to copy.
    """
    judged = [r for r in others if r.reward is not None and r.index != rollout.index]
    right = next((r.text for r in judged if r.reward == 1), None)
    wrong = next((r.text for r in judged if r.reward == 0), None)
    attempt = judged[0] if judged else None
    return {
        "correct": right,
        "wrong": wrong,
        "attempt": None if attempt is None else attempt.text,
        "verdict": None if attempt is None else "right" if attempt.reward == 1 else "wrong",
    }


def partners(prompts: Sequence[Prompt], seed: int) -> dict[str, Prompt]:
    """For each prompt, by id, another one whose answer differs where there is one."""
    order = np.random.default_rng([seed, len(prompts)]).permutation(len(prompts))
    found: dict[str, Prompt] = {}
    for place, i in enumerate(order):
        mine = prompts[i]
        ahead = (prompts[order[(place + k) % len(order)]] for k in range(1, len(order)))
        following = prompts[order[(place + 1) % len(order)]]
        found[mine.id] = next((p for p in ahead if p.answer != mine.answer), following)
    return found


def with_context_of(prompt: Prompt, other: Prompt) -> Prompt:
    """The question of one row beside the answer and columns of another."""
    return replace(prompt, answer=other.answer, metadata=other.metadata)


def shown(columns: Mapping[str, str | None], prompt: Prompt) -> Prompt:
    """The prompt with further columns to show."""
    return replace(prompt, metadata={**prompt.metadata, **columns})
