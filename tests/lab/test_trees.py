"""Enumerable trees against worked numbers and finite differences, and the estimators on them."""

import numpy as np
import pytest

from tutelage.lab.trees import measure_trees, random_trees, tree_from_logits, walk
from tutelage.ops.alignment import moves, node, published
from tutelage.ops.alignment.pooling import pool

STUDENT = [np.array([[0.4, -0.2, 0.0]]), np.array([[0.3, -0.3], [-0.5, 0.5], [0.0, 1.0]])]
TEACHER = [np.array([[0.0, 0.5, 0.0]]), np.array([[1.0, -1.0], [0.0, 0.0], [1.0, 0.0]])]
REWARDS = np.array([1.0, 0, 0, 1, 1, 0])
close = {"abs": 1e-6}


def worked_tree():
    return tree_from_logits(STUDENT, TEACHER, REWARDS)


def test_every_number_of_the_worked_tree():
    tree = worked_tree()
    g = moves.ideal_gradient(tree.p, tree.s)
    reverse = moves.kl_student_teacher(tree.p, tree.q)
    assert tree.success == pytest.approx(0.552985024, **close)
    assert tree.visits == pytest.approx([1, 0.450626706, 0.247309180, 0.302064114], **close)
    assert tree.s[0] == pytest.approx([0.645656306, 0.731058579, 0.268941421], **close)
    assert g[0] == pytest.approx([0.041760155, 0.044039225, -0.085799379], **close)
    assert reverse[0] == pytest.approx([-0.177035796, 0.174880793, 0.002155003], **close)
    assert moves.cosines(g, reverse) == pytest.approx([0.004728789, 1, -1, 1], **close)
    forward = moves.kl_teacher_student(tree.p, tree.q)
    assert moves.cosine(g[0], forward[0]) == pytest.approx(0.141411331, **close)
    sequence = moves.kl(tree.p, tree.q)[0] + tree.p[0] @ tree.downstream[0]
    assert sequence == pytest.approx(0.355022360, **close)
    assert tree.tabular_cosine(reverse) == pytest.approx(0.506081290, **close)
    dot, square, size = tree.expected(reverse)
    assert dot / np.sqrt(square * size) == pytest.approx(0.571868261, **close)


def test_visits_times_the_ideal_gradient_is_the_derivative_of_success():
    """And visits times the sequence move that of the sequence KL: by finite differences."""
    tree, h = worked_tree(), 1e-6
    g = moves.ideal_gradient(tree.p, tree.s)
    descent = moves.sequence_kl(tree.p, tree.q, tree.downstream)
    for depth, level in enumerate(STUDENT):
        for row, column in np.ndindex(level.shape):
            ends = []
            for sign in (1, -1):
                moved = [x.copy() for x in STUDENT]
                moved[depth][row, column] += sign * h
                other = tree_from_logits(moved, TEACHER, REWARDS)
                kl = moves.kl(other.p, other.q)[0] + other.p[0] @ other.downstream[0]
                ends.append(np.array([other.success, -kl]))
            place = row + (0 if depth == 0 else 1)
            expected = tree.visits[place] * np.array([g[place, column], descent[place, column]])
            assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(expected, abs=1e-9)


def test_natural_rollouts_visit_nodes_as_often_as_they_should():
    times = 40_000
    walks = walk(worked_tree().repeated(4), times // 4, np.random.default_rng(0))
    tree = worked_tree()
    share = np.bincount(walks.nodes.reshape(-1), minlength=4) / times
    error = np.sqrt(tree.visits * (1 - tree.visits) / times)
    assert (abs(share - tree.visits) <= 4 * error).all()
    assert abs(walks.right.mean() - tree.success) < 4 * np.sqrt(0.25 / times)


def forest_scores(trees, move, measured):
    where = (measured.tree, measured.node)
    return node.score(trees.p[where], trees.q[where], move[where], measured.counts.success())


OBJECTIVES = {
    "reverse": lambda t: moves.kl_student_teacher(t.p, t.q),
    "forward": lambda t: moves.kl_teacher_student(t.p, t.q),
    "jsd": lambda t: moves.jensen_shannon(t.p, t.q, 0.3),
    "sequence": lambda t: moves.sequence_kl(t.p, t.q, t.downstream),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_three_sums_are_unbiased_through_the_whole_procedure(objective):
    """Stratified spines, sampled nodes, planned rollouts: 12 trees, 400 replicates each."""
    rng = np.random.default_rng(4)
    forest = random_trees(rng, 12)
    scores = []
    for b in range(12):
        trees = forest[b].repeated(400)
        move = OBJECTIVES[objective](trees)
        measured = measure_trees(trees, [move], rng, per_window=1, windows=[0, 1, 1])
        numbers = forest_scores(trees, move, measured)
        truth = forest[b].expected(OBJECTIVES[objective](forest[b]))
        for x, exact in zip((numbers.dot, numbers.square, numbers.move_square), truth, strict=True):
            sums = np.bincount(measured.tree, measured.weights * x, 400)
            scores.append((sums.mean() - exact) / (sums.std(ddof=1) / 20))
    assert np.abs(scores).max() <= 4
    assert abs(np.mean(scores)) <= 0.4


def population(rng, count=1000, **kwargs):
    forest = random_trees(rng, count, **kwargs)
    move = moves.kl_student_teacher(forest.p, forest.q)
    dot, square, size = (x.mean() for x in forest.expected(move))
    return forest, move, dot / np.sqrt(square * size)


def test_the_interval_covers_the_populations_alignment_and_the_error_falls():
    """The full-size experiment is benchmarks/alignment_statistics.py."""
    rng = np.random.default_rng(5)
    forest, move, truth = population(rng)
    errors = {}
    for questions in (16, 64):
        covered, values = [], []
        for draw in range(60):
            rows = rng.integers(0, len(move), questions)
            trees, moved = forest[rows], move[rows]
            measured = measure_trees(trees, [moved], rng, per_window=1, windows=[0, 1, 1])
            scores = forest_scores(trees, moved, measured)
            pooled = pool(scores, measured.tree.tolist(), measured.weights, seed=draw, draws=500)
            low, high = pooled.alignment.interval
            covered.append(low <= truth <= high)
            values.append(pooled.alignment.value)
        assert np.mean(covered) >= 0.85
        errors[questions] = np.sqrt(np.mean((np.array(values) - truth) ** 2))
    assert errors[64] < 0.7 * errors[16]


def test_a_spines_own_outcome_makes_a_gap_where_there_is_no_signal():
    """Success is .6 whatever the token; the teacher is flatter than the student."""
    rng = np.random.default_rng(13)
    gaps = {True: [], False: []}
    for _ in range(36):
        forest = random_trees(rng, 64, widths=(3, 3, 3, 3))
        trees = tree_from_logits(
            forest.student, [0.7 * x for x in forest.student], np.full_like(forest.rewards, 0.6)
        )
        move = moves.kl_student_teacher(trees.p, trees.q)
        measured = measure_trees(trees, [move], rng, uniform=True, rollouts=8)
        where = (measured.tree, measured.node)
        right = measured.counts.right_a + measured.counts.right_b
        total = measured.counts.total_a + measured.counts.total_b
        own = np.eye(3)[measured.token]
        for counted in (True, False):
            cosines = published.published_cosines(
                trees.p[where],
                trees.q[where],
                right + counted * own * measured.right[:, None],
                total + counted * own,
                least=8,
            )
            means = [np.nanmean(cosines[measured.right == verdict]) for verdict in (False, True)]
            gaps[counted].append(means[0] - means[1])
        scores = forest_scores(trees, move, measured)
        assert abs(pool(scores, measured.tree.tolist(), measured.weights).dot.value) < 1e-3
    assert np.mean(gaps[True]) > 0.07
    assert abs(np.mean(gaps[False])) < 3 * np.std(gaps[False]) / 6


def test_credit_to_ancestors_is_biased_by_what_was_forced_below():
    """Expectations over the rollouts: a sure student, R forced rollouts a child of each node."""
    rng, rollouts = np.random.default_rng(14), 20
    forest = random_trees(rng, 150, (3, 3, 3, 3), sureness=3.0)
    walks = walk(forest, 12, rng)
    off = {True: [], False: []}
    for b, g in np.ndindex(150, 4):
        verdict, path, tokens = walks.right[b, g], walks.nodes[b, g], walks.tokens[b, g]
        s = forest.s[b, path]
        for depth in range(4):
            truth = s[depth, tokens[depth]]
            right = rollouts * (truth + s[depth + 1 :].sum())
            total = rollouts * (1 + s[depth + 1 :].size)
            off[bool(verdict)].append(right / total - truth)
    assert np.mean(off[True]) < -0.03
    assert np.mean(off[False]) > 0.03
