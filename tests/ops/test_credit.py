"""Weights, returns and advantages: closed forms, and proofs that each changes the gradient."""

import itertools
import json

import numpy as np
import pytest
import torch

from tutelage import config as c
from tutelage.credit import (
    StepTokens,
    assign_credit,
    gate_weights,
    group_advantages,
    mean_of_others,
    needed_signals,
    pass_rate_weights,
    read_table,
    returns_to_go,
    token_weights,
)
from tutelage.errors import UsageError
from tutelage.objective import logit_gradient, token_losses
from tutelage.signals import retired
from tutelage.types import Prompt, Rollout

LENGTHS = torch.tensor([3, 1, 4])
ROWS = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
POSITIONS = torch.tensor([0, 1, 2, 0, 0, 1, 2, 3])


def rollout(prompt="p", reward=None, index=0, length=1):
    return Rollout(
        prompt=Prompt(id=prompt, text="q"),
        index=index,
        prompt_ids=(1,),
        completion_ids=(2,) * length,
        logprobs=(0.0,) * length,
        finish_reason="stop",
        text="",
        policy_step=0,
        reward=reward,
    )


def tokens(rewards=(None, None, None), **signals):
    return StepTokens(
        rollouts=[
            rollout(f"p{i}", r, length=n)
            for i, (r, n) in enumerate(zip(rewards, LENGTHS.tolist(), strict=True))
        ],
        rows=ROWS,
        positions=POSITIONS,
        signals={key: torch.tensor(value, dtype=torch.float64) for key, value in signals.items()},
    )


def weights(setting, given=None):
    return token_weights(setting, given or tokens(), LENGTHS).tolist()


ENTROPY = [0.0, 1.0, 2.0, 0.5, 0.1, 0.2, 3.0, 0.3]
DIVERGENCE = [0.9, 0.1, 0.1, 0.2, 0.0, 0.3, 0.4, 0.8]


def test_position_weights_run_from_one_minus_slope_to_one_plus_slope():
    up = c.PositionWeight(direction="up", slope=0.5, normalise=False)
    assert weights(up) == pytest.approx([0.5, 1, 1.5, 1, 0.5, 1 - 1 / 6, 1 + 1 / 6, 1.5])
    down = c.PositionWeight(direction="down", slope=1.0, normalise=False)
    assert weights(down) == pytest.approx([2, 1, 0, 1, 2, 4 / 3, 2 / 3, 0])


def test_teacher_entropy_weights_are_the_entropy_or_its_negative_exponential():
    given = tokens(**{"entropy/teacher": ENTROPY})
    high = c.TeacherEntropyWeight(favour="high", normalise=False)
    assert weights(high, given) == pytest.approx(ENTROPY)
    low = c.TeacherEntropyWeight(favour="low", normalise=False)
    assert weights(low, given) == pytest.approx(np.exp(-np.array(ENTROPY)).tolist())


def test_tip_keeps_unsure_tokens_and_sure_ones_that_are_far():
    given = tokens(**{"entropy/student": ENTROPY, "kl/reverse": DIVERGENCE})
    tip = c.TipWeight(unsure=0.375, far=0.4, normalise=False)
    # The three highest entropies are 3, 2 and 1; of the other five, two have the largest KL.
    assert weights(tip, given) == [1, 1, 1, 0, 0, 0, 1, 1]


def test_correctness_weights_follow_the_verdict_and_unknown_counts_one():
    setting = c.CorrectnessWeight(right=0.2, wrong=3.0, normalise=False)
    assert weights(setting, tokens((1.0, 0.0, None))) == [0.2, 0.2, 0.2, 3, 1, 1, 1, 1]


def test_weights_have_mean_one_over_the_step_unless_told_otherwise():
    given = tokens((1.0, 0.0, None), **{"entropy/teacher": ENTROPY})
    for setting in (
        c.PositionWeight(),
        c.TeacherEntropyWeight(favour="high"),
        c.CorrectnessWeight(right=0.2),
    ):
        assert np.mean(weights(setting, given)) == pytest.approx(1)
        raw = weights(setting.model_copy(update={"normalise": False}), given)
        assert weights(setting, given) == pytest.approx((np.array(raw) / np.mean(raw)).tolist())


def test_reliability_table_is_looked_up_by_relative_position_and_entropy(tmp_path):
    path = tmp_path / "table.json"
    content = {"positions": [0.5], "entropies": [0.25, 1.5], "weights": [[1, 2, 3], [4, 5, 6]]}
    path.write_text(json.dumps(content))
    setting = c.ReliabilityWeight(table=str(path), normalise=False)
    given = tokens(**{"entropy/teacher": ENTROPY})
    assert weights(setting, given) == [1, 5, 6, 2, 1, 1, 6, 5]
    for damage in ({"weights": [[1, 2]]}, {"weights": [[1, 2, -3], [4, 5, 6]]}, {"positions": "x"}):
        path.write_text(json.dumps(content | damage))
        with pytest.raises(UsageError, match="reliability table"):
            read_table(str(path))


def test_returns_to_go_discount_within_a_rollout_and_never_cross_into_another():
    losses = torch.arange(1.0, 9.0, dtype=torch.float64)
    found = returns_to_go(losses, ROWS, 0.5)
    expected = [2 * 0.5 + 3 * 0.25, 3 * 0.5, 0, 0]
    expected += [6 * 0.5 + 7 * 0.25 + 8 * 0.125, 7 * 0.5 + 8 * 0.25, 8 * 0.5, 0]
    assert found.tolist() == pytest.approx(expected)


def test_return_to_go_of_one_gives_the_gradient_of_the_whole_divergence():
    """On an enumerable two-step tree: finite differences of E sum_t D_t."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(4, 3)))  # root, and one state after each first token
    teacher = torch.tensor(rng.normal(size=(4, 3))).log_softmax(-1)
    objective = c.Full(return_to_go=1.0)

    def value(z):
        p, d = z.softmax(-1), (z.softmax(-1) * (z.log_softmax(-1) - teacher)).sum(-1)
        return d[0] + (p[0] * d[1:]).sum()

    gradient = torch.zeros_like(logits)
    root = logits.softmax(-1)[0]
    for first, second in itertools.product(range(3), range(3)):
        states, drawn = torch.tensor([0, 1 + first]), torch.tensor([first, second])
        chance = (root[first] * logits.softmax(-1)[1 + first, second]).item()
        p, q = logits[states].log_softmax(-1), teacher[states]
        losses = token_losses(objective, p, q, drawn).losses
        credit = assign_credit(
            objective,
            "token_mean",
            StepTokens(
                rollouts=[rollout(length=2)],
                rows=torch.tensor([0, 0]),
                positions=torch.tensor([0, 1]),
                signals={"loss": losses},
            ),
        )
        _, pulled = logit_gradient(objective, p, q, drawn, credit.teacher, credit.logprob)
        gradient[states] += 2 * chance * pulled  # the token mean divides by two
    for i, j in itertools.product(range(4), range(3)):
        step = torch.zeros_like(logits)
        step[i, j] = 1e-6
        slope = (value(logits + step) - value(logits - step)).item() / 2e-6
        assert gradient[i, j].item() == pytest.approx(slope, abs=1e-8)


def test_group_advantages_are_standardised_within_each_prompt():
    rewards = [("a", 1.0), ("a", 0.0), ("a", 0.0), ("b", 1.0), ("b", 1.0), ("c", None), ("a", None)]
    found = group_advantages([rollout(p, r) for p, r in rewards]).tolist()
    deviation = (2 / 9) ** 0.5
    expected = [(2 / 3) / deviation, (-1 / 3) / deviation, (-1 / 3) / deviation, 0, 0, 0, 0]
    assert found == pytest.approx(expected)


def test_pass_rate_weights_favour_prompts_solved_half_the_time():
    rewards = [("a", 1.0), ("a", 0.0), ("b", 1.0), ("b", 1.0), ("c", 0.0), ("c", 0.0)]
    assert pass_rate_weights([rollout(p, r) for p, r in rewards]).tolist() == [3, 3, 0, 0, 0, 0]


def test_a_gate_decides_nothing_where_the_teachers_answers_are_unknown():
    drawn = [rollout(name) for name in ("a", "a", "b", "c", "d")]
    rates = {"a": 1.0, "b": 0.5, "c": 0.0, "d": None}
    assert gate_weights(drawn, rates, 0.6).tolist() == [2, 2, 0, 0, 1]
    without = gate_weights(drawn[:-1], rates, 0.6).tolist()
    assert gate_weights(drawn, rates, 0.6).tolist()[:-1] == without
    assert gate_weights(drawn, dict.fromkeys("abcd", 0.0) | {"d": None}, 0.6).tolist() == [
        0
    ] * 4 + [1]
    assert gate_weights(drawn, dict.fromkeys("abcd"), 0.6).tolist() == [1] * 5


def test_the_batch_mean_leaves_the_own_token_out():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert mean_of_others(values).tolist() == [4.0, 3.5, 1.5]
    assert mean_of_others(torch.tensor([5.0])).tolist() == [0.0]


@pytest.mark.parametrize(
    "baseline", [c.KLBaseline(), c.KLBaseline(k=2), c.NoBaseline()], ids=["kl", "kl-2", "none"]
)
def test_a_baseline_never_changes_the_expected_gradient(baseline):
    rng = np.random.default_rng(1)
    p, q = (torch.tensor(rng.normal(size=(4, 6))).log_softmax(-1) for _ in range(2))
    ones = torch.ones(4, dtype=torch.float64)

    def expectation(objective):
        total = torch.zeros_like(p)
        second = torch.zeros(4, dtype=torch.float64)
        for token in range(6):
            drawn = torch.full((4,), token)
            _, gradient = logit_gradient(objective, p, q, drawn, ones)
            total += p[:, token, None].exp() * gradient
            second += p[:, token].exp() * (gradient**2).sum(-1)
        return total, second

    plain, noise = expectation(c.Sampled())
    found, less_noise = expectation(c.Sampled(baseline=baseline))
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=0)
    if isinstance(baseline, c.KLBaseline):
        assert (less_noise != noise).all()


def test_a_bound_clips_the_reward_and_leaves_small_ratios_alone():
    p, q = torch.tensor([[0.5, 0.4, 0.1]]).log(), torch.tensor([[0.1, 0.5, 0.4]]).log()
    ones = torch.ones(1)
    for token, changed in ((0, True), (1, False), (2, True)):
        drawn = torch.tensor([token])
        _, free = logit_gradient(c.Sampled(), p, q, drawn, ones)
        _, bound = logit_gradient(c.Sampled(bound=0.5), p, q, drawn, ones)
        assert torch.equal(free, bound) != changed
        scale = abs(bound[0, token] / (1 - p[0, token].exp())).item()
        assert scale <= 0.5 + 1e-6


def test_a_reward_pulls_towards_right_and_away_from_wrong_rollouts():
    objective = c.Full(reward=c.RewardMix(coefficient=2.0))
    given = StepTokens(
        rollouts=[rollout("a", 1.0, length=2), rollout("a", 0.0, 1, length=1)],
        rows=torch.tensor([0, 0, 1]),
        positions=torch.tensor([0, 1, 0]),
        signals={},
    )
    credit = assign_credit(objective, "token_mean", given, teacher_share=0.25)
    assert credit.logprob.tolist() == pytest.approx([-2 / 3, -2 / 3, 2 / 3])
    assert credit.teacher.tolist() == pytest.approx([0.25 / 3] * 3)


def test_the_teacher_retires_once_the_student_is_near_and_comes_no_nearer():
    def records(*pairs):
        return [{"accuracy": a, "kl/reverse": kl} for a, kl in pairs]

    near = records((0.5, 1.0), (0.9, 0.5), (0.9, 0.5), (0.9, 0.6))
    assert retired(near, 0.9, 0.9, 2)
    assert retired(near + records((0.1, 0.1)), 0.9, 0.9, 2)  # for good
    assert not retired(near[:3], 0.9, 0.9, 2)
    far = records((0.5, 1.0), (0.5, 1.0), (0.5, 1.0))
    assert not retired(far, 0.9, 0.9, 2)
    falling = records((0.9, 1.0), (0.9, 0.9), (0.9, 0.8))
    assert not retired(falling, 0.9, 0.9, 1)
    assert not retired(near, None, 0.9, 2)


def test_only_what_needs_the_whole_step_asks_for_a_sweep_ahead():
    assert needed_signals(c.TopK()) == set()
    assert needed_signals(c.TopK(weight=c.PositionWeight())) == set()
    assert needed_signals(c.TopK(weight=c.TipWeight())) == {"entropy/student", "kl/reverse"}
    assert needed_signals(c.TopK(return_to_go=0.9)) == {"loss"}
    assert needed_signals(c.Sampled(baseline=c.BatchMeanBaseline())) == {"reward"}
