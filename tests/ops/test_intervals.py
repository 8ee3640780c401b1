"""Intervals of means of several samples a question cover at their nominal rate."""

import numpy as np
import pytest

from tutelage.ops.intervals import proportion_interval, student_quantile

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
