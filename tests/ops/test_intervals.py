"""Intervals of means of several samples a question cover at their nominal rate."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from tutelage.ops.intervals import (
    difference_interval,
    hybrid_interval,
    independent_difference_interval,
    proportion_interval,
    ratio_interval,
    student_quantile,
)

TABLE = {
    1: 12.7062,
    2: 4.3027,
    3: 3.1824,
    4: 2.7764,
    5: 2.5706,
    9: 2.2622,
    30: 2.0423,
    120: 1.9799,
    10**6: 1.95997,
}


@pytest.mark.parametrize(("freedom", "value"), TABLE.items())
def test_students_quantile_is_that_of_the_tables(freedom, value):
    assert student_quantile(freedom) == pytest.approx(value, rel=0.002)


@pytest.mark.parametrize("samples", [4, 16])
@pytest.mark.parametrize("questions", [10, 30, 100])
def test_interval_covers_when_questions_differ_in_difficulty(questions, samples):
    rng = np.random.default_rng(0)
    right = 0
    for _ in range(1000):
        difficulty = rng.beta(2, 2, questions)
        low, high = proportion_interval((rng.binomial(samples, difficulty) / samples).tolist())
        right += low <= 0.5 <= high
    assert 0.93 <= right / 1000 <= 0.975  # .95 to .965 in 3,000; a standard error is .007


@pytest.mark.parametrize("questions", [30, 100, 300])
@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9, 0.98])
def test_interval_of_an_accuracy_covers_exactly_by_enumeration(questions, p):
    """Over every number of right answers; .936 to .978."""
    covered = 0.0
    for right in range(questions + 1):
        low, high = proportion_interval([1.0] * right + [0.0] * (questions - right))
        if low <= p <= high:
            covered += math.comb(questions, right) * p**right * (1 - p) ** (questions - right)
    assert 0.92 <= covered <= 0.98


def test_the_interval_of_two_proportions_is_that_of_newcombes_example():
    """56 of 70 against 48 of 80, method 10 of Newcombe (1998), table II."""
    one, other = [1.0] * 56 + [0.0] * 14, [1.0] * 48 + [0.0] * 32
    sides = [(sum(xs) / len(xs), *proportion_interval(xs)) for xs in (one, other)]
    assert hybrid_interval(*sides) == pytest.approx((0.0524, 0.3339), abs=2e-4)


@pytest.mark.parametrize("shared", [0.0, 0.6])
@pytest.mark.parametrize(("p", "q"), [(0.1, 0.1), (0.9, 0.5), (0.98, 0.5)])
@pytest.mark.parametrize(("questions", "samples"), [(30, 4), (100, 1)])
def test_interval_of_a_gap_covers_whatever_two_models_share(questions, samples, p, q, shared):
    """Difficulty common to both sides; a standard error is .011."""
    rng = np.random.default_rng(1)
    hits, draws = 0, 400
    for _ in range(draws):
        common = rng.normal(size=(questions, 1))
        own = [
            math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(size=common.shape)
            for _ in range(2)
        ]
        sides = []
        for rate, ease in zip((p, q), own, strict=True):
            noise = rng.normal(size=(questions, samples))
            is_right = (ease + noise) / math.sqrt(2) < NormalDist().inv_cdf(rate)
            sides.append(is_right.mean(1).tolist())
        low, high = difference_interval(*sides)
        hits += low <= p - q <= high
    assert 0.915 <= hits / draws <= 0.99


def test_a_gap_without_a_difference_still_has_a_width():
    low, high = difference_interval([1.0] * 20, [1.0] * 20)
    assert low < 0 < high


def test_a_gap_needs_pairs():
    with pytest.raises(ValueError, match="paired"):
        difference_interval([1.0], [1.0, 0.0])


@pytest.mark.parametrize("questions", [30, 100, 300])
@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9, 0.98])
def test_interval_of_an_accuracy_covers_in_replicates(questions, p):
    """2,000 of them, three standard errors allowed: of 30 at .02 every method covers .978 or less
    than .9."""
    drawn = np.random.default_rng(3).binomial(questions, p, 2000)
    covers = {
        right: low <= p <= high
        for right in set(drawn.tolist())
        for low, high in [proportion_interval([1.0] * right + [0.0] * (questions - right))]
    }
    covered = float(np.mean([covers[right] for right in drawn.tolist()]))
    slack = 3 * math.sqrt(covered * (1 - covered) / 2000)
    assert 0.92 - slack <= covered <= 0.98 + slack


@pytest.mark.parametrize("correlation", [0.1, 0.5])
@pytest.mark.parametrize("questions", [30, 100])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_interval_covers_where_samples_of_a_question_resemble_each_other(questions, p, correlation):
    """Four samples a question; beta of that intra-class correlation; 2,000 replicates."""
    rng = np.random.default_rng(4)
    spread = 1 / correlation - 1
    ease = rng.beta(p * spread, (1 - p) * spread, (2000, questions))
    shares = rng.binomial(4, ease) / 4
    covers = [low <= p <= high for low, high in map(proportion_interval, shares.tolist())]
    assert 0.92 <= np.mean(covers) <= 0.98


@pytest.mark.parametrize(("p", "q"), [(0.1, 0.1), (0.9, 0.5), (0.98, 0.02)])
@pytest.mark.parametrize(("first", "second"), [(30, 100), (100, 100)])
def test_interval_of_a_difference_of_other_questions_covers(first, second, p, q):
    """1,000 replicates; a standard error is .007."""
    rng = np.random.default_rng(5)
    covers = []
    for _ in range(1000):
        sides = [
            (rng.random(n) < rate).astype(float).tolist() for n, rate in ((first, p), (second, q))
        ]
        low, high = independent_difference_interval(*sides)
        covers.append(low <= p - q <= high)
    assert 0.92 <= np.mean(covers) <= 0.985


@pytest.mark.parametrize("questions", [10, 32, 100])
def test_interval_of_a_mean_over_tokens_covers_whatever_the_lengths(questions):
    """Long answers have larger values; 2,000 replicates."""
    rng = np.random.default_rng(6)
    truth = 1 + 0.3 * np.mean(np.arange(1, 31) ** 2) / np.mean(np.arange(1, 31)) / 10
    covers = []
    for _ in range(2000):
        lengths = rng.integers(1, 31, questions)
        totals = lengths * (1 + 0.3 * lengths / 10) + rng.normal(size=questions) * lengths
        low, high = ratio_interval(totals.tolist(), lengths.tolist())
        covers.append(low <= truth <= high)
    assert 0.91 <= np.mean(covers) <= 0.98


def test_a_ratio_of_one_question_has_no_interval():
    assert ratio_interval([1.0], [2.0]) is None
    assert ratio_interval([0.0, 0.0], [0.0, 0.0]) is None
