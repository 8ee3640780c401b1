"""Intervals of means of several samples a question cover at their nominal rate."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from tutelage.ops.intervals import difference_interval, proportion_interval, student_quantile

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
