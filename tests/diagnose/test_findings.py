"""Numbers with intervals from answers and token tables."""

import math

import pytest
import torch

from tutelage.diagnose.findings import (
    accuracy_difference,
    familiar_answers,
    grouped,
    passable_answers,
    token_mean,
    unit_sums,
)
from tutelage.types import Prompt, Rollout


def answer(question: str, tokens: int = 5, reward: float | None = None, index: int = 0) -> Rollout:
    return Rollout(
        prompt=Prompt(id=question),
        index=index,
        prompt_ids=(1,),
        completion_ids=tuple(range(tokens)),
        logprobs=(0.0,) * tokens,
        finish_reason="stop",
        text="",
        policy_step=0,
        reward=reward,
    )


def rows_of(rollouts):
    return torch.tensor([i for i, r in enumerate(rollouts) for _ in r.completion_ids])


def test_sums_of_tokens_are_gathered_by_question():
    rollouts = [answer("a", 2), answer("b", 3), answer("a", 1, index=1)]
    values = torch.tensor([1.0, 2, 10, 20, 30, 4])
    assert unit_sums(rollouts, rows_of(rollouts), values).tolist() == [7.0, 60.0]


def test_a_mean_over_tokens_has_an_interval_over_questions():
    rollouts = [answer("a", 2), answer("b", 2), answer("c", 2)]
    alike = token_mean(rollouts, rows_of(rollouts), torch.full((6,), 0.3))
    assert alike["value"] == pytest.approx(0.3)
    assert alike["interval"] == pytest.approx([0.3, 0.3])
    one = token_mean(rollouts[:1], rows_of(rollouts[:1]), torch.ones(2))
    assert "interval" not in one  # of one question there is none


def test_an_answer_with_a_mistake_is_familiar_and_one_in_another_pattern_is_not():
    """Nineteen questions that the teacher would put otherwise, one with a single mistake."""
    likely, impossible = math.log(0.9), -9.0
    rollouts = [answer(f"q{i}", 10) for i in range(20)]
    foreign = [likely, likely, likely, likely, *[impossible] * 6]
    mistaken = [likely] * 9 + [impossible]
    logprobs = torch.tensor(foreign * 19 + mistaken)
    chosen, share = familiar_answers(rollouts, logprobs, rows_of(rollouts))
    assert [r.prompt.id for r in chosen] == ["q19"]
    assert share["value"] == pytest.approx(0.05)
    assert share["interval"][0] < 0.05 < share["interval"][1]


def test_one_impossible_token_keeps_the_student_out_of_an_answer_that_is_otherwise_likely():
    rollouts = [answer("a", 10), answer("b", 10), answer("c", 10)]
    likely = math.log(0.9)
    open_, hard, shut = ([likely] * 9 + [math.log(p)] for p in (0.5, 0.002, 1e-6))
    logprobs = torch.tensor(open_ + hard + shut, dtype=torch.float64)
    found = passable_answers(rollouts, logprobs, rows_of(rollouts))
    assert found["value"] == pytest.approx(2 / 3)
    assert familiar_answers(rollouts, logprobs, rows_of(rollouts))[1]["value"] == 1


def test_accuracies_on_the_same_questions_are_compared_in_pairs():
    def judged(names, rewards):
        return grouped(
            [answer(n, reward=r) for n, r in zip(names, rewards, strict=True)],
            1,
            was_judged=True,
        )

    names = [f"q{i}" for i in range(30)]
    right = [float(i % 3 == 0) for i in range(30)]
    better = [max(r, float(i % 5 == 0)) for i, r in enumerate(right)]
    paired = accuracy_difference(judged(names, better), judged(names, right))
    apart = accuracy_difference(judged(names, better), judged([f"o{n}" for n in names], right))
    assert paired["paired"]
    assert not apart["paired"]
    assert paired["value"] == pytest.approx(apart["value"])
    width = [found["interval"][1] - found["interval"][0] for found in (paired, apart)]
    assert width[0] < width[1]
    assert accuracy_difference(judged(names, right), judged(names, [None] * 30)) is None
