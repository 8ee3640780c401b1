"""From nodes to an answer: what is sampled, what is spent, and what may be concluded."""

import inspect
from math import comb

import numpy as np
import pytest

from tutelage.ops.alignment import design, moves, node
from tutelage.ops.alignment.node import Counts, NodeScores, success
from tutelage.ops.alignment.pooling import (
    Positions,
    alignment_ratio,
    compare,
    compare_groups,
    pool,
    pool_by_group,
    stretched_interval,
)
from tutelage.ops.intervals import Z95, student_quantile

# what is sampled


def test_each_depth_window_is_twice_the_last():
    windows = design.depth_windows(760)
    starts = [int(np.flatnonzero(windows == w)[0]) + 1 for w in range(5)]
    assert starts == [1, 51, 151, 351, 751]
    assert (np.diff(windows) >= 0).all()


def test_inclusion_chances_are_in_proportion_to_size_and_sum_to_the_count():
    chances = design.inclusion(np.array([1.0, 2.0, 3.0, 14.0, 0.0]), 2)
    assert chances == pytest.approx([1 / 6, 2 / 6, 3 / 6, 1, 0])
    everyone = design.inclusion(np.array([1.0, 2.0, 0.0]), 5)
    assert everyone.tolist() == [1, 1, 0]


def test_a_systematic_sample_takes_each_unit_with_its_chance():
    rng = np.random.default_rng(0)
    chances = design.inclusion(rng.gamma(1, size=9), 4)
    starts = (np.arange(20_000) + 0.5) / 20_000
    taken = design.systematic(np.tile(chances, (len(starts), 1)), starts)
    assert taken.mean(0) == pytest.approx(chances, abs=2e-4)
    assert (taken.sum(-1) == 4).all()


def test_weighted_by_their_chances_drawn_nodes_sum_to_all_nodes():
    rng = np.random.default_rng(0)
    sizes, values = rng.gamma(0.5, size=400) + 0.01, rng.normal(1, 1, 400)
    sums = []
    for _ in range(1500):
        places, chances = design.draw_nodes(sizes, 6, rng)
        assert np.bincount(design.depth_windows(400)[places]).tolist() == [6, 6, 6, 6]
        sums.append((values[places] / chances).sum())
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - values.sum()) < 3.5 * error


def test_spines_stratified_by_verdict_are_weighted_back_to_natural_rollouts():
    right = np.array([True] * 3 + [False] * 9)
    weights = design.stratum_weights(right, np.array([0, 1, 5, 6]))
    assert weights == pytest.approx([0.125, 0.125, 0.375, 0.375])
    with pytest.raises(ValueError, match="9 of 12 rollouts are wrong"):
        design.stratum_weights(right, np.array([0, 1]))


def test_children_are_what_either_model_finds_likely_and_the_spines_own_token():
    p = np.array([0.9, 0.03, 0.019, 0.05, 0.001])
    teachers = np.array([[0.95, 0.0, 0.02, 0.02, 0.01], [0.99, 0, 0, 0, 0.01]])
    assert design.children(p, teachers, spine=4).tolist() == [0, 1, 2, 3, 4]
    assert design.children(p, teachers[1:], spine=0).tolist() == [0, 1, 3]


def test_a_node_without_a_chance_is_refused():
    with pytest.raises(ValueError, match="chance above 0"):
        design.node_sizes(np.zeros((1, 2, 3)), 0.0)


# what is spent


def plan_inputs(seed=0):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(4), 12), rng.dirichlet(np.ones(4), 12)
    teachers = np.stack([moves.kl_student_teacher(p, q), q - p])
    return p, teachers, rng.uniform(10, 200, (12, 4)), rng.uniform(0.5, 2, 12)


def test_the_budget_is_spent_exactly_within_floor_and_cap():
    p, teachers, lengths, weights = plan_inputs()
    kept = np.ones(p.shape, dtype=bool)
    kept[:, 3] = np.arange(12) % 2 == 0
    for budget in (200, 501, 1500, 3000):
        plan = design.allocate(p, teachers, lengths, weights, kept, budget, floor=4, cap=60)
        assert plan.sum() == min(budget, 60 * kept.sum())
        assert (plan[kept] >= 4).all()
        assert (plan[kept] <= 60).all()
        assert (plan[~kept] == 0).all()


def test_rollouts_follow_need_and_not_outcomes():
    p, teachers, lengths, weights = plan_inputs()
    kept = np.ones(p.shape, dtype=bool)
    plan = design.allocate(p, teachers, lengths, weights, kept, 20_000, floor=2, cap=10_000)
    alpha = np.abs(np.stack([node.dot_weights(p, move) for move in teachers])).max(0)
    c = np.sqrt(node.noise_weights(p))
    w = weights[:, None]
    need = w * (alpha / (w * alpha).sum() + c / (w * c).sum()) / np.sqrt(lengths)
    free = plan > 2
    assert plan[free] / plan[free].sum() == pytest.approx(need[free] / need[free].sum(), abs=2e-3)
    assert not {"right", "total", "counts", "success"} & set(
        inspect.signature(design.allocate).parameters
    )


def test_a_budget_below_the_floor_says_what_to_do():
    p, teachers, lengths, weights = plan_inputs()
    with pytest.raises(ValueError, match="score fewer nodes, or allow 192"):
        design.allocate(p, teachers, lengths, weights, np.ones(p.shape, bool), 100)


def test_where_no_move_and_no_choice_is_left_rollouts_are_spread_evenly():
    p = np.array([[1.0, 0.0], [0.0, 1.0]])
    plan = design.allocate(
        p, np.zeros((1, 2, 2)), np.ones((2, 2)), np.ones(2), np.ones((2, 2), bool), 40
    )
    assert plan.tolist() == [[10, 10], [10, 10]]


@pytest.mark.parametrize(("decode", "ratio"), [(1, 4.004), (10, 1.301), (30, 1.100)])
def test_reusing_prefixes_saves_little_where_decoding_dominates(decode, ratio):
    depths = (np.arange(40) + 0.5) * 300 / 40
    cost = design.rollout_cost(300, 300, depths, 3, 60, decode)
    assert cost.naive / cost.cached == pytest.approx(ratio, abs=5e-4)
    assert cost.naive - cost.batched == pytest.approx(59 * 3 * (301 + depths).sum())
    by_node = design.rollout_cost(300, 300, depths, np.full(40, 3), np.full(40, 60.0), decode)
    assert by_node == cost


# what may be concluded


def example(questions=24, nodes=4, rollouts=12, seed=0, signal=1.0):
    """Counts at random nodes of several questions, and two teachers' moves."""
    rng = np.random.default_rng(seed)
    n = questions * nodes
    p = rng.dirichlet(np.full(3, 2.0), n)
    s = 0.5 + signal * rng.uniform(-0.4, 0.4, (n, 3))
    teachers = [moves.renormalise(p * np.exp(a * s + rng.normal(0, 0.4, s.shape))) for a in (3, 0)]
    half = np.full(p.shape, rollouts // 2)
    counts = Counts(
        right_a=rng.binomial(half, s), total_a=half, right_b=rng.binomial(half, s), total_b=half
    )
    names = [f"q{i // nodes}" for i in range(n)]
    return p, teachers, counts, names, rng.uniform(0.5, 2, n)


def scored(p, q, counts, half="both"):
    return node.score(p, q, moves.kl_student_teacher(p, q), counts.success(half))


def test_alignment_is_the_ratio_of_weighted_sums():
    p, (q, _), counts, names, w = example()
    scores = scored(p, q, counts)
    pooled = pool(scores, names, w)
    square = (w * scores.square).sum()
    by_hand = (w * scores.dot).sum() / np.sqrt(square * (w * scores.move_square).sum())
    assert pooled.alignment.value == pytest.approx(by_hand)
    assert pooled.dot.value == pytest.approx((w * scores.dot).sum() / w.sum())
    assert pooled.reliability == pytest.approx(square / (w * scores.raw_square).sum())
    low, high = pooled.alignment.interval
    assert low < by_hand < high
    assert (pooled.questions, pooled.nodes, pooled.warnings) == (24, 96, ())


def test_swapping_the_halves_changes_nothing_and_neither_does_scaling_a_move():
    p, (q, _), counts, names, w = example()
    once = pool(scored(p, q, counts), names, w)
    assert pool(scored(p, q, counts.swapped()), names, w) == once
    move = 7 * moves.kl_student_teacher(p, q)
    scaled = pool(node.score(p, q, move, counts.success()), names, w)
    assert scaled.alignment.value == pytest.approx(once.alignment.value, rel=1e-12)
    assert scaled.alignment.interval == pytest.approx(once.alignment.interval, rel=1e-9)


def test_the_error_of_a_sum_is_that_of_its_questions():
    p, (q, _), counts, names, w = example()
    scores = scored(p, q, counts)
    by_question = (w * scores.square).reshape(24, 4).sum(1)
    expected = by_question.std(ddof=1) * np.sqrt(24) / w.sum()
    assert pool(scores, names, w).square_error == pytest.approx(expected)


def test_nodes_without_a_direction_stay_in_the_sums():
    p, (q, _), counts, names, w = example()
    scores = scored(p, q, counts)
    still = np.zeros(8)
    more = NodeScores(
        dot=np.append(scores.dot, still),
        square=np.append(scores.square, still),
        raw_square=np.append(scores.raw_square, still),
        move_square=np.append(scores.move_square, still + 1),
        advantage=np.append(scores.advantage, still),
        cosine=np.append(scores.cosine, still + np.nan),
    )
    before = pool(scores, names, w)
    after = pool(more, names + names[:8], np.append(w, still + 1))
    assert after.alignment.value < before.alignment.value
    assert after.mean_cosine.value == pytest.approx(before.mean_cosine.value)
    assert after.informative == pytest.approx(before.informative * 96 / 104)


def test_without_an_outcome_signal_there_is_a_dot_and_no_direction():
    p, (q, _), counts, names, w = example(signal=0.0)
    pooled = pool(scored(p, q, counts), names, w)
    assert not pooled.signal
    assert pooled.alignment is None
    low, high = pooled.dot.interval
    assert low < 0 < high
    assert any("no detectable outcome signal" in text for text in pooled.warnings)


def test_few_questions_come_with_a_warning_and_one_without_an_interval():
    p, (q, _), counts, names, w = example(questions=8)
    assert "8 questions" in pool(scored(p, q, counts), names, w).warnings[0]
    alone = pool(scored(p, q, counts), ["one"] * len(w), w)
    assert alone.dot.interval is None
    assert alone.square_error is None
    assert not alone.signal
    with pytest.raises(ValueError, match="no nodes"):
        pool(scored(p, q, counts)[:0], [], w[:0])


def test_an_interval_is_stretched_about_its_estimate():
    draws = np.random.default_rng(0).normal(size=4001)
    low, high = np.quantile(draws, [0.025, 0.975], method="closest_observation")
    stretch = student_quantile(15) / Z95 * np.sqrt(16 / 15)
    interval = stretched_interval(0.1, draws, 16)
    assert interval == pytest.approx((0.1 + (low - 0.1) * stretch, 0.1 + (high - 0.1) * stretch))


def test_resamples_without_signal_lie_at_the_ends_of_an_interval():
    ratios = alignment_ratio(np.array([1.0, -1.0, 0.0, 2.0]), np.array([-1.0, 0, 0, 4]), np.ones(4))
    assert ratios.tolist() == [np.inf, -np.inf, 0, 1]
    assert stretched_interval(0.5, np.append(np.zeros(90), [np.inf] * 10), 20) is None


def test_what_two_teachers_share_cancels_in_their_difference():
    p, (good, random), counts, names, w = example(questions=40)
    scores = [scored(p, q, counts) for q in (good, random)]
    same = compare(scores[0], scores[0], names, w)
    assert same.alignment.interval == same.dot.interval == same.advantage.interval == (0, 0)
    gap = compare(*scores, names, w)
    pooled = [pool(x, names, w) for x in scores]
    assert gap.alignment.value == pytest.approx(
        pooled[0].alignment.value - pooled[1].alignment.value
    )
    assert gap.advantage.value == pytest.approx(
        pooled[0].advantage.value - pooled[1].advantage.value
    )
    assert gap.alignment.interval[0] > 0
    _, _, other_counts, *_ = example(questions=40, seed=1)
    with pytest.raises(ValueError, match="one set of counts"):
        compare(scores[0], scored(p, random, other_counts), names, w)


def test_a_group_is_pooled_like_its_nodes_alone():
    p, (q, _), counts, names, w = example()
    scores, verdicts = scored(p, q, counts), [i % 2 == 0 for i in range(96)]
    groups = pool_by_group(scores, names, w, verdicts)
    assert groups[True] == pool(scores[::2], names[::2], w[::2])
    assert groups[True].nodes + groups[False].nodes == 96


def test_groups_are_compared_within_questions():
    p, (q, _), counts, names, w = example()
    scores, right = scored(p, q, counts), np.arange(96) % 2 == 0
    gap = compare_groups(scores, names, w, ~right, right)
    groups = pool_by_group(scores, names, w, right.tolist())
    for name in ("dot", "advantage", "mean_cosine", "alignment"):
        expected = getattr(groups[False], name).value - getattr(groups[True], name).value
        assert getattr(gap, name).value == pytest.approx(expected), name
    low, high = gap.dot.interval
    assert low < gap.dot.value < high
    itself = compare_groups(scores, names, w, right, right)
    assert itself.mean_cosine.interval == (0, 0)
    with pytest.raises(ValueError, match="no nodes"):
        compare_groups(scores, names, w, right, right & ~right)


def test_the_size_of_moves_may_come_from_every_position():
    p, (q, _), counts, names, w = example()
    scores = scored(p, q, counts)
    everywhere = Positions(
        questions=names * 2, weights=np.tile(w / 2, 2), move_square=np.tile(scores.move_square, 2)
    )
    once, again = pool(scores, names, w), pool(scores, names, w, everywhere=everywhere)
    assert again.alignment.value == pytest.approx(once.alignment.value)
    stranger = Positions(questions=["new"], weights=np.ones(1), move_square=np.ones(1))
    with pytest.raises(ValueError, match="no scored nodes"):
        pool(scores, names, w, everywhere=stranger)


# what averaging cosines and looking twice does


@pytest.mark.parametrize(("rollouts", "expected"), [(20, 0.53), (100, 0.86)])
def test_noise_draws_the_cosine_of_a_perfect_teacher_towards_zero(rollouts, expected):
    """Exact: with two children the cosine is the sign of the difference."""
    chances = [
        np.array(
            [comb(rollouts, x) * s**x * (1 - s) ** (rollouts - x) for x in range(rollouts + 1)]
        )
        for s in (0.5, 0.6)
    ]
    joint = np.outer(*chances)
    below, above = np.triu(joint, 1).sum(), np.tril(joint, -1).sum()
    assert (below - above) / (below + above) == pytest.approx(expected, abs=0.01)


def test_choosing_nodes_by_the_noise_that_scores_them_makes_a_random_teacher_look_aligned():
    p, (_, random), counts, *_ = example(questions=400, rollouts=16)
    move = moves.kl_student_teacher(p, random)
    chosen, fresh = node.score_selected(p, random, move, counts, lambda s: s.cosine > 0.5)
    stale = scored(p, random, counts, "a")[chosen]
    assert np.nanmean(stale.cosine) > 0.8
    error = np.nanstd(fresh.cosine) / np.sqrt(len(chosen))
    truth_like = np.nanmean(fresh.cosine)
    assert truth_like < np.nanmean(stale.cosine) - 5 * error


def test_the_choice_to_back_up_must_not_look_at_how_many_left():
    """Exact: 40 rollouts, one in five leaves the children and then mostly fails."""
    n, p_rest, s_inside, s_rest = 40, 0.2, 0.9, 0.2
    left = np.arange(n + 1)
    chances = np.array([comb(n, k) * p_rest**k * (1 - p_rest) ** (n - k) for k in left])
    truth = (1 - p_rest) * s_inside + p_rest * s_rest
    direct = (n - left) / n * s_inside + left / n * s_rest
    assert chances @ direct == pytest.approx(truth)
    switching = np.where(left >= 8, truth, direct)
    assert chances @ switching > truth + 0.01
    assert not node.backup_is_due(np.array(n), np.array(p_rest))
    assert node.backup_is_due(np.array(80), np.array(p_rest))
    assert node.backup_is_due(np.array(4), np.array(0.0))


def test_counts_of_a_node_in_two_stages_joined_not_added():
    """T1's node, 16 rollouts and 60 more where the first looked uncertain; 400,000 replicates."""
    rng = np.random.default_rng(13)
    p, s, q = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.4, 0.1]), np.array([0.2, 0.3, 0.5])
    move, times = moves.kl_student_teacher(p, q), 400_000
    early = np.broadcast_to([6, 5, 5], (times, 3))
    first = rng.binomial(early, s)
    raw = first / early
    shares = np.abs(node.dot_weights(p, move)) * np.sqrt(raw * (1 - raw)) + 1e-9
    late = 4 + np.floor(48 * shares / shares.sum(-1, keepdims=True)).astype(int)
    second = rng.binomial(late, s)
    scores = node.combine_stages(
        p, q, move, success(first, early), success(second, late), share=0.2,
        chance=np.ones(times), continued=np.ones(times, dtype=bool),
    )  # fmt: skip
    g = moves.ideal_gradient(p, s)
    added = node.score(p, q, move, success(first + second, early + late))
    for name, truth in (("dot", g @ move), ("square", g @ g), ("advantage", (q - p) @ s)):
        joined = getattr(scores, name)
        assert abs(joined.mean() - truth) < 3.5 * joined.std() / np.sqrt(times), name
        pooled = getattr(added, name)
        assert abs(pooled.mean() - truth) > 10 * pooled.std() / np.sqrt(times), name
