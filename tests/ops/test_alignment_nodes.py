"""Gradient alignment at one node: worked cases, invariants, and expectations by enumeration."""

from itertools import product
from math import comb

import numpy as np
import pytest

from tutelage.ops.alignment import moves, node, published
from tutelage.ops.alignment.moves import cosine, ideal_gradient, restrict
from tutelage.ops.alignment.node import Counts, Success, success

P, S, Q = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.4, 0.1]), np.array([0.2, 0.3, 0.5])
GOOD = np.array([0.7, 0.2, 0.1])
close = {"abs": 1e-6}


def binomial_outcomes(totals):
    """Every outcome of independent binomials, as counts [M, K], without its probability."""
    return np.array(list(product(*(range(n + 1) for n in totals))), dtype=float)


def binomial_chances(right, totals, s):
    chances = np.ones(len(right))
    for k, n in enumerate(totals):
        ways = np.array([comb(n, int(x)) for x in right[:, k]])
        chances *= ways * s[k] ** right[:, k] * (1 - s[k]) ** (n - right[:, k])
    return chances


def exact(s):
    return Success(s=s, variance=np.zeros_like(s), known=np.ones_like(s, dtype=bool))


def random_nodes(count, seed=0):
    """p, q and s over two to five children, some probabilities and successes extreme."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        k = rng.integers(2, 6)
        p, q = rng.dirichlet(np.full(k, rng.choice([0.3, 1.0, 5.0])), 2)
        yield p, q, rng.beta(0.5, 0.5, k).round(rng.integers(1, 9))


# worked cases


def test_vectors_of_a_node_are_those_worked_out_by_hand():
    g = ideal_gradient(P, S)
    assert pytest.approx(0.59, **close) == P @ S
    assert g == pytest.approx([0.155, -0.057, -0.098], **close)
    assert np.linalg.norm(g) == pytest.approx(0.192036455, **close)
    reverse = moves.kl_student_teacher(P, Q)
    assert reverse == pytest.approx([-0.320701756, 0.082466166, 0.238235590], **close)
    forward = moves.kl_teacher_student(P, Q)
    assert forward == pytest.approx([-0.3, 0, 0.3], **close)
    jsd = moves.jensen_shannon(P, Q, 0.5)
    assert jsd == pytest.approx([-0.072565157, 0.009962147, 0.062603010], **close)
    assert moves.kl(P, Q) == pytest.approx(0.274887220, **close)
    assert moves.teacher_advantage(P, Q, S) == pytest.approx(-0.24, **close)
    cosines = [cosine(g, move) for move in (reverse, forward, jsd)]
    assert cosines == pytest.approx([-0.992584576, -0.931583619, -0.970117290], **close)
    assert [g @ reverse, g @ forward] == pytest.approx([-0.077756432, -0.0759], **close)


def test_a_teacher_that_prefers_what_succeeds_is_aligned():
    g = ideal_gradient(P, S)
    assert cosine(g, moves.kl_student_teacher(P, GOOD)) == pytest.approx(0.996714726, **close)
    assert cosine(g, moves.kl_teacher_student(P, GOOD)) == pytest.approx(0.988538511, **close)
    assert moves.teacher_advantage(P, GOOD, S) == pytest.approx(0.13, **close)


def test_two_children_give_a_sign_however_small_the_stakes():
    p, s, q = np.array([0.8, 0.2]), np.array([0.3, 0.31]), np.array([0.79, 0.21])
    g, move = ideal_gradient(p, s), moves.kl_student_teacher(p, q)
    assert g == pytest.approx([-0.0016, 0.0016], **close)
    assert move == pytest.approx([-0.009819031, 0.009819031], **close)
    assert cosine(g, move) == pytest.approx(1.0, **close)


@pytest.mark.parametrize(
    ("p", "q", "s"),
    [
        ([0.5, 0.5], [0.3, 0.7], [0.5, 0.5]),
        ([1.0, 0.0], [0.3, 0.7], [0.9, 0.1]),
        ([0.4, 0.6], [0.4, 0.6], [0.9, 0.1]),
        ([0.2, 0.3, 0.5], [0.5, 0.3, 0.2], [1.0, 1.0, 1.0]),
        ([1.0, 0.0], [0.0, 1.0], [0.9, 0.1]),
        ([0.3, 0.7], [0.0, 0.0], [0.6, 0.6]),
        ([0.1 + 0.2, 0.7], [0.2, 0.8], [0.1 + 0.2, 0.30000000000000004]),
    ],
)
def test_a_node_without_a_direction_has_no_cosine_and_a_dot_of_zero(p, q, s):
    p, q, s = np.array(p), np.array(q), np.array(s)
    for move in (
        moves.kl_student_teacher(p, q),
        moves.kl_teacher_student(p, q),
        moves.jensen_shannon(p, q, 0.3),
        (p[:, None] * moves.sampled_token(p, q)).sum(0),
    ):
        g = ideal_gradient(p, s)
        assert np.isfinite(move).all()
        assert cosine(g, move) is None
        assert g @ move == pytest.approx(0, abs=1e-15)
        scores = node.score(p, q, move, exact(s))
        assert np.isnan(scores.cosine)
        assert np.isfinite([scores.dot, scores.square, scores.advantage]).all()


def test_estimates_from_counts_are_those_worked_out_by_hand():
    right, total = np.array([15, 9, 2]), np.array([20, 20, 20])
    estimate, move = success(right, total), moves.kl_student_teacher(P, Q)
    scores = node.score(P, Q, move, estimate)
    assert ideal_gradient(P, estimate.s) == pytest.approx([0.11, -0.024, -0.086], **close)
    assert scores.raw_square == pytest.approx(0.020072, **close)
    assert scores.square == pytest.approx(0.018034368, **close)
    assert scores.dot == pytest.approx(-0.057744642, **close)
    assert np.sqrt(node.dot_variance(P, move, estimate)) == pytest.approx(0.013705828, **close)
    assert scores.cosine == pytest.approx(-0.999151281, **close)
    shares = node.neyman_shares(P, move, right, total, np.ones(3))
    assert shares == pytest.approx([0.519959950, 0.255420280, 0.224619770], **close)


def test_a_forced_branch_is_weighed_by_its_probability_not_by_how_often_it_was_forced():
    """Below child v: the student takes token 0 nine times in ten, token 1 was forced 100 times."""
    natural, forced = [("v", 0)] * 20, [("v", 1)] * 100
    pooled = published.ancestor_counts(
        [(path, i < 18) for i, path in enumerate(natural)]
        + [(path, i < 55) for i, path in enumerate(forced)]
    )
    right, total = pooled[()]["v"]
    assert right / total == pytest.approx(0.608333333, **close)
    ours = node.backup(
        np.array([0.1]), success(np.array([55]), np.array([100])),
        np.array(0.9), success(np.array(18), np.array(20)),
    )  # fmt: skip
    assert ours.s == pytest.approx(0.865, **close)
    variance = 0.1**2 * 0.55 * 0.45 / 99 + 0.9**2 * 0.9 * 0.1 / 19
    assert ours.variance == pytest.approx(variance, rel=1e-12)


# moves


def test_the_one_token_estimator_averages_to_the_move_of_the_reverse_kl():
    for q in (Q, GOOD):
        average = (P[:, None] * moves.sampled_token(P, q)).sum(0)
        assert average == pytest.approx(moves.kl_student_teacher(P, q), abs=1e-14)


def test_every_move_descends_its_loss_along_the_steepest_path():
    """Each move is minus the finite difference of its divergence in the logits."""
    beta, downstream = 0.3, np.array([0.4, 0.1, 0.9])

    def losses(logits):
        p = np.exp(logits - np.logaddexp.reduce(logits))
        m = beta * Q + (1 - beta) * p
        return np.array(
            [
                p @ np.log(p / Q),
                Q @ np.log(Q / p),
                beta * Q @ np.log(Q / m) + (1 - beta) * p @ np.log(p / m),
                p @ (np.log(p / Q) + downstream),
            ]
        )

    h, z = 1e-6, np.log(P)
    slopes = [(losses(z + h * e) - losses(z - h * e)) / (2 * h) for e in np.eye(3)]
    ours = [
        moves.kl_student_teacher(P, Q),
        moves.kl_teacher_student(P, Q),
        moves.jensen_shannon(P, Q, beta),
        moves.sequence_kl(P, Q, downstream),
    ]
    assert pytest.approx(np.array(ours), abs=1e-9) == -np.array(slopes).T


def test_a_teacher_probability_of_zero_is_floored_and_counted():
    q = np.array([0.6, 0.4, 0.0])
    assert moves.floored(P, q) == 1
    move = moves.kl_student_teacher(P, q)
    assert np.isfinite(move).all()
    assert move == pytest.approx(moves.kl_student_teacher(P, np.array([0.6, 0.4, np.exp(-30)])))
    assert moves.floored(np.array([0.5, 0.5, 0.0]), q) == 0


def test_gradient_and_moves_sum_to_zero():
    for p, q, s in random_nodes(50):
        for vector in (
            ideal_gradient(p, s),
            moves.kl_student_teacher(p, q),
            moves.kl_teacher_student(p, q),
            moves.jensen_shannon(p, q, 0.7),
        ):
            assert vector.sum() == pytest.approx(0, abs=1e-12)


def test_a_constant_added_to_success_or_to_the_teachers_log_probabilities_changes_nothing():
    for p, q, s in random_nodes(50):
        q = moves.renormalise(q + 1e-6)  # above the floor of log q
        g, move = ideal_gradient(p, s), moves.kl_student_teacher(p, q)
        assert ideal_gradient(p, s - 1.7) == pytest.approx(g, abs=1e-12)
        assert moves.kl_student_teacher(p, q * np.exp(3.1)) == pytest.approx(move, abs=1e-12)


def test_renaming_tokens_renames_the_entries_of_every_vector():
    rng = np.random.default_rng(1)
    for p, q, s in random_nodes(50):
        order = rng.permutation(len(p))
        for vector in (
            lambda p, q, s: ideal_gradient(p, s),
            lambda p, q, s: moves.kl_student_teacher(p, q),
            lambda p, q, s: moves.jensen_shannon(p, q, 0.4),
            lambda p, q, s: node.noise_weights(p),
        ):
            renamed = vector(p[order], q[order], s[order])
            assert renamed == pytest.approx(vector(p, q, s)[order], abs=1e-13)


# restriction

FULL_P = np.array([[0.4, 0.1, 0.2, 0.05, 0.25]])
FULL_Q = np.array([[0.1, 0.3, 0.3, 0.2, 0.1]])
IDS, KEPT = np.array([[2, 0, 4]]), np.array([[True, True, False]])


def test_renormalising_compares_the_distributions_among_the_children_alone():
    reduced = restrict("renormalise", FULL_P, FULL_Q, moves.kl_student_teacher, IDS, KEPT)
    p, q = np.array([0.2, 0.4]) / 0.6, np.array([0.3, 0.1]) / 0.4
    assert reduced.p[0] == pytest.approx([*p, 0])
    assert reduced.move[0] == pytest.approx([*moves.kl_student_teacher(p, q), 0])
    assert reduced.student_mass == pytest.approx([0.6])
    assert reduced.teacher_mass == pytest.approx([0.4])


def test_slicing_keeps_the_full_move_of_the_children():
    reduced = restrict("slice", FULL_P, FULL_Q, moves.kl_student_teacher, IDS, KEPT)
    full = moves.kl_student_teacher(FULL_P, FULL_Q)[0]
    assert reduced.p[0] == pytest.approx([1 / 3, 2 / 3, 0])
    assert reduced.move[0] == pytest.approx([full[2], full[0], 0])


def test_lumping_is_the_gradient_of_a_policy_whose_other_tokens_share_a_logit():
    """Both lumped vectors are derivatives along that shared logit, by finite differences."""
    s = np.array([0.9, 0.2, 0.4, 0.7, 0.1])
    reduced = restrict("lump", FULL_P, FULL_Q, moves.kl_student_teacher, IDS, KEPT)
    others = np.array([1, 3, 4])

    def both(step, direction):
        p = FULL_P[0] * np.exp(step * direction)
        p /= p.sum()
        return np.array([p @ s, -p @ np.log(p / FULL_Q[0])])

    h = 1e-6
    for column, tokens in ((0, [2]), (1, [0]), (3, others)):
        direction = np.isin(np.arange(5), tokens).astype(float)
        success_slope, descent = (both(h, direction) - both(-h, direction)) / (2 * h)
        s_other = (FULL_P[0] * s)[others].sum() / FULL_P[0][others].sum()
        g = ideal_gradient(reduced.p, np.array([[s[2], s[0], 0.0, s_other]]))
        assert g[0, column] == pytest.approx(success_slope, abs=1e-9)
        assert reduced.move[0, column] == pytest.approx(descent, abs=1e-9)
    assert reduced.p.sum() == pytest.approx(1)


def test_lumping_slices_where_the_rest_is_not_worth_rollouts():
    p, q = np.repeat(FULL_P, 2, 0), np.repeat(FULL_Q, 2, 0)
    ids, kept = np.repeat(IDS, 2, 0), np.repeat(KEPT, 2, 0)
    move = moves.kl_student_teacher
    mixed = restrict("lump", p, q, move, ids, kept, rest_known=np.array([True, False]))
    lumped, sliced = (restrict(mode, p, q, move, ids, kept) for mode in ("lump", "slice"))
    for name in ("p", "q", "move"):
        assert getattr(mixed, name)[0] == pytest.approx(getattr(lumped, name)[0])
        assert getattr(mixed, name)[1] == pytest.approx([*getattr(sliced, name)[1], 0])


def test_lumping_a_bucket_is_lumping_first():
    """Where the objective itself lumps the same tokens, both orders agree."""
    p, q = (np.append(x[0, [2, 0]], 1 - x[0, [2, 0]].sum()) for x in (FULL_P, FULL_Q))
    bucketed = moves.kl_student_teacher(p, q)

    def bucket_move(full_p, full_q):
        move = full_p * (bucketed[2] / p[2])
        move[0, [2, 0]] = bucketed[:2]
        return move

    reduced = restrict("lump", FULL_P, FULL_Q, bucket_move, IDS, KEPT)
    assert reduced.move[0] == pytest.approx([bucketed[0], bucketed[1], 0, bucketed[2]])


# unbiasedness by enumeration


def test_averaged_over_every_outcome_the_estimates_are_the_truth():
    rng = np.random.default_rng(2)
    for case in random_nodes(25):
        p, q, s = (x[:3] for x in case)
        p, q = moves.renormalise(p), moves.renormalise(q)
        totals = rng.integers(2, 5, len(p)).tolist()
        right = binomial_outcomes(totals)
        chances = binomial_chances(right, totals, s)
        estimate = success(right, np.broadcast_to(totals, right.shape))
        move = moves.jensen_shannon(p, q, 0.5)
        scores, g = node.score(p, q, move, estimate), ideal_gradient(p, s)
        assert chances @ scores.dot == pytest.approx(g @ move, abs=1e-12)
        assert chances @ scores.square == pytest.approx(g @ g, abs=1e-12)
        assert chances @ scores.advantage == pytest.approx((q - p) @ s, abs=1e-12)
        spread = chances @ (scores.dot - g @ move) ** 2
        estimated = chances @ node.dot_variance(p, move, estimate)
        assert estimated == pytest.approx(spread, abs=1e-12)


def test_a_single_nodes_error_is_not_zero_where_few_outcomes_agree():
    """Exact: how often the dot lies within 1.96 errors of the truth, over all outcomes."""
    p, q, totals = np.array([0.7, 0.3]), np.array([0.4, 0.6]), (4, 4)
    move = moves.kl_student_teacher(p, q)
    right = binomial_outcomes(totals)
    unbiased = success(right, np.array(totals))
    variance = node.cautious_variance(right, np.array(totals))
    assert variance[0] == pytest.approx(1 / 6 * 5 / 6 / 6)
    cautious = Success(s=unbiased.s, variance=variance, known=unbiased.known)
    for s in ([0.05, 0.1], [0.5, 0.5], [0.95, 0.02]):
        s = np.array(s)
        off = (ideal_gradient(p, unbiased.s) - ideal_gradient(p, s)) @ move
        held = {}
        for name, estimate in (("unbiased", unbiased), ("cautious", cautious)):
            error = np.sqrt(node.dot_variance(p, move, estimate))
            held[name] = binomial_chances(right, totals, s) @ (np.abs(off) <= 1.96 * error)
        assert held["cautious"] >= held["unbiased"]
        assert held["cautious"] > 0.92
        assert s[0] == 0.5 or held["unbiased"] < 0.6


def test_the_split_half_square_is_unbiased_and_noisier():
    totals, s = (3, 2, 2, 3), np.array([0.9, 0.3])
    p, right = np.array([0.6, 0.4]), binomial_outcomes(totals)
    chances = binomial_chances(right, totals, np.array([0.9, 0.3, 0.9, 0.3]))
    counts = Counts(
        right_a=right[:, :2],
        total_a=np.broadcast_to(totals[:2], (len(right), 2)),
        right_b=right[:, 2:],
        total_b=np.broadcast_to(totals[2:], (len(right), 2)),
    )
    halves = node.split_half_square(p, counts.success("a"), counts.success("b"))
    both = node.score(p, p, np.zeros(2), counts.success()).square
    g = ideal_gradient(p, s)
    truth = g @ g
    assert chances @ halves == pytest.approx(truth, abs=1e-12)
    assert chances @ (halves - truth) ** 2 > chances @ (both - truth) ** 2
    assert node.score(p, p, np.zeros(2), counts.swapped().success()).square == pytest.approx(
        both, abs=1e-15
    )


def test_backup_is_unbiased_with_its_variance():
    totals, s = (2, 3, 2), np.array([0.8, 0.3, 0.6])
    p, p_rest = np.array([0.5, 0.2]), np.array(0.3)
    right = binomial_outcomes(totals)
    chances = binomial_chances(right, totals, s)
    all_of = np.broadcast_to(totals, right.shape)
    backed = node.backup(
        p, success(right[:, :2], all_of[:, :2]), p_rest, success(right[:, 2], all_of[:, 2])
    )
    truth = p @ s[:2] + p_rest * s[2]
    assert chances @ backed.s == pytest.approx(truth, abs=1e-12)
    assert chances @ backed.variance == pytest.approx(chances @ (backed.s - truth) ** 2, abs=1e-12)


def test_a_second_stage_that_looked_at_the_first_stays_unbiased_when_joined_and_not_when_added():
    """Exact over all outcomes: the second stage gives more rollouts to the child that failed."""
    p, q, s = np.array([0.6, 0.4]), np.array([0.3, 0.7]), np.array([0.7, 0.4])
    move, share = moves.kl_student_teacher(p, q), 0.4
    g = ideal_gradient(p, s)
    joined, added = np.zeros(3), np.zeros(2)
    for first in binomial_outcomes((2, 2)):
        weight = binomial_chances(first[None], (2, 2), s)[0]
        one = success(first, np.array([2, 2]))
        surprising = first[0] == first[1]
        chance = 0.25 if surprising else 1.0
        totals = (4, 2) if first[0] < first[1] else (2, 3)
        right = binomial_outcomes(totals)
        chances = binomial_chances(right, totals, s)
        all_of = np.broadcast_to(totals, right.shape)
        for continued, chance_of in ((True, chance), (False, 1 - chance)):
            scores = node.combine_stages(
                p, q, move, one, success(right, all_of), share=share,
                chance=np.full(len(right), chance), continued=np.full(len(right), continued),
            )  # fmt: skip
            numbers = np.stack([scores.dot, scores.square, scores.advantage])
            joined += weight * chance_of * numbers @ chances
            pooled = success(first + right * continued, 2 + all_of * continued)
            sums = node.score(p, q, move, pooled)
            added += weight * chance_of * np.stack([sums.dot, sums.square]) @ chances
    truth = np.array([g @ move, g @ g, (q - p) @ s])
    assert joined == pytest.approx(truth, abs=1e-12)
    assert (abs(added - truth[:2]) > 0.001).all()


# refusals


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="between 0 and"):
        success(np.array([3]), np.array([2]))


def test_a_child_with_one_rollout_must_be_left_out_before_scoring():
    lonely = success(np.array([1, 1]), np.array([4, 1]))
    assert lonely.known.tolist() == [True, False]
    with pytest.raises(ValueError, match="restrict"):
        node.score(np.array([0.5, 0.5]), np.array([0.5, 0.5]), np.zeros(2), lonely)
    kept = np.array([1.0, 0.0])
    assert node.score(kept, kept, np.zeros(2), lonely).dot == 0
