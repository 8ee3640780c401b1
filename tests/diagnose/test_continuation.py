"""Continuations from a student's prefixes."""

import math

import numpy as np
import pytest

from tutelage.diagnose.continuation import (
    Continued,
    choose_answers,
    compare_continuations,
    helps_until,
)
from tutelage.types import Prompt, Rollout


def answer(question: str, index: int, reward: float | None, length: int = 5) -> Rollout:
    return Rollout(
        prompt=Prompt(id=question),
        index=index,
        prompt_ids=(1,),
        completion_ids=tuple(range(length)),
        logprobs=(0.0,) * length,
        finish_reason="stop",
        text="",
        policy_step=0,
        reward=reward,
    )


def test_answers_are_half_wrong_and_spread_over_questions():
    rollouts = [answer(f"q{q}", i, float(q % 2)) for q in range(8) for i in range(4)]
    chosen = choose_answers(rollouts, 8)
    assert [r.reward for r in chosen] == [0.0] * 4 + [1.0] * 4
    assert len({r.prompt.id for r in chosen}) == 8


@pytest.mark.parametrize(("right", "wrong"), [(1, 9), (9, 1), (0, 5), (5, 0), (2, 2)])
def test_what_one_verdict_lacks_the_other_fills(right, wrong):
    rollouts = [answer(f"q{i}", 0, float(i < right)) for i in range(right + wrong)]
    assert len(choose_answers(rollouts, 6)) == min(6, right + wrong)


def test_answers_that_nobody_judged_or_that_have_no_prefix_are_left_out():
    rollouts = [answer("a", 0, None), answer("b", 0, 1.0, length=1), answer("c", 0, 0.0)]
    assert [r.prompt.id for r in choose_answers(rollouts, 9)] == ["c"]


def test_gains_are_of_the_same_prefixes_by_outcome():
    answers = [answer("a", 0, 0.0), answer("b", 0, 0.0), answer("c", 0, 1.0)]
    student = np.array([[0.0, 0.5], [0.5, 0.0], [1.0, 1.0]])
    teacher = np.array([[1.0, 0.5], [0.5, np.nan], [0.5, 1.0]])
    found = {
        (c.outcome, c.depth): c
        for c in compare_continuations(answers, (0.1, 0.9), student, teacher)
    }
    assert found["wrong", 0.1].gain == 0.5
    assert found["wrong", 0.9].answers == 1  # an unknown one is no wrong one
    assert found["right", 0.1].gain == -0.5
    assert all(c.low <= c.gain <= c.high for c in found.values())


def test_help_ends_at_the_first_depth_without_it():
    def part(depth, low):
        return Continued(
            outcome="wrong", depth=depth, answers=9, student=0, teacher=0, gain=0, low=low, high=1
        )

    assert helps_until([part(0.1, 0.2), part(0.3, 0.1), part(0.6, -0.1), part(0.9, 0.1)]) == 0.3
    assert helps_until([part(0.1, -0.2), part(0.3, 0.1)]) is None
    assert helps_until([]) is None
    assert not math.isnan(helps_until([part(0.1, 0.2)]) or 0)
