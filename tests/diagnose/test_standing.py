"""Which evaluation was the best, and how long ago."""

import pytest

from tutelage.signals.standing import Standing


def heard(scores, applied=(), metric="accuracy"):
    standing = Standing(metric)
    key = "accuracy" if metric == "accuracy" else "kl/reverse"
    for step, score in enumerate(scores):
        record = {} if score is None else {key: score}
        standing.hear(step, record, applied=step not in applied)
    return standing


@pytest.mark.parametrize(
    ("scores", "best", "since"),
    [
        ([], 0, 0),
        ([0.3], 0, 0),
        ([0.3, 0.5, 0.4, 0.4], 1, 2),
        ([0.3, 0.5, 0.5], 1, 1),  # the earlier of equals
        ([0.3, None, 0.5, None], 2, 0),  # what is undefined has no place
    ],
)
def test_the_best_evaluation_and_how_many_came_since(scores, best, since):
    standing = heard(scores)
    assert (standing.best_step, standing.since_best) == (best, since)


def test_a_step_that_was_not_applied_is_never_the_best():
    standing = heard([0.3, 0.9, 0.4], applied=(1,))
    assert standing.best(3) == [2, 0]
    assert standing.since_best == 0
    assert heard([0.3], applied=(0,)).best_step == 0
    assert heard([0.3], applied=(0,)).since_best == 1


def test_of_divergences_the_smallest_is_the_best():
    assert heard([0.9, 0.2, 0.5], metric="reverse_kl").best(2) == [1, 2]
