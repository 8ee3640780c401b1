"""What a pair will gain: the features, the forest, its intervals and where it knows nothing."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from tutelage.diagnose.prediction import (
    FEATURES,
    NEEDED,
    POPULATION,
    Predictor,
    factor_of,
    features_of,
    gained,
    interval_of,
    kept_pairs,
    limit_of,
    predict,
    unseen,
)


def _pairs(count=80, kinds=8, seed=0):
    """A student reaches the teacher where its answers are within reach, and nothing elsewhere."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        row = {
            name: float(value)
            for name, value in zip(FEATURES, rng.random(len(FEATURES)), strict=True)
        }
        reaches = row["within_reach"] > 0.5
        row |= {
            "kind": f"kind {i % kinds}",
            "before": row["student_accuracy"],
            "teacher": row["teacher_accuracy"],
            "after": row["teacher_accuracy"] * (0.95 if reaches else 0.05),
        }
        rows.append(row)
    return rows


def test_features_are_read_from_a_look_and_what_was_not_measured_is_absent():
    look = {
        "capability": {"accuracy": {"student": 0.25, "teacher": 1, "gap": 0.75}},
        "agreement": {"kl/reverse": 0.5, "overlap/ratio": 0.0},
        "alignment": {"advantage": {"interval": [0, 1]}},
        "rescue": [
            {"outcome": "wrong", "depth": 0.6, "gain": 0.1},
            {"outcome": "wrong", "depth": 0.1, "gain": 0.4},
        ],
    }
    assert features_of(look) == {
        "student_accuracy": 0.25,
        "teacher_accuracy": 1.0,
        "accuracy_gap": 0.75,
        "kl_reverse": 0.5,
        "overlap_ratio": 0.0,
        "rescue_wrong": 0.4,
    }
    assert features_of({}) == {}
    assert predict(features_of({})) is None
    assert set(features_of(look)) | set(NEEDED) <= set(FEATURES)


def test_a_rule_that_pairs_follow_is_learnt_and_foretold_of_kinds_that_were_not_seen():
    rows = _pairs()
    foretold, _ = unseen(rows)
    rough = gained(rows) - np.mean(gained(rows))
    assert np.mean((foretold - gained(rows)) ** 2) < 0.25 * np.mean(rough**2)
    new = _pairs(seed=1)
    errors = Predictor(rows).gains(new)[0] - gained(new)
    assert np.mean(np.abs(errors) < 0.25) > 0.8


def test_a_kind_that_is_foretold_was_not_learnt_from():
    rows = _pairs(40, kinds=4)
    before, spreads = unseen(rows)
    changed = [r | {"after": 1 - r["after"]} if r["kind"] == "kind 1" else r for r in rows]
    after, _ = unseen(changed)
    of_kind = np.array([r["kind"] == "kind 1" for r in rows])
    assert np.array_equal(before[of_kind], after[of_kind])
    assert not np.array_equal(before[~of_kind], after[~of_kind])
    again, twice = unseen(rows)
    assert np.array_equal(before, again)
    assert np.array_equal(spreads, twice)


@pytest.mark.parametrize("count", [9, 40, 120])
def test_intervals_hold_the_share_they_promise(count):
    """3,000 repetitions: between .9 and .9 + 1 / (n + 1), within 4 standard errors."""
    rng, held, repetitions = np.random.default_rng(count), 0, 3000
    for _ in range(repetitions):
        spreads = rng.uniform(0.0, 0.5, count + 1)
        errors = rng.normal(0, 1, count + 1) * (spreads + 0.05)
        factor = factor_of(errors[:-1], spreads[:-1])
        held += abs(errors[-1]) <= factor * (spreads[-1] + 0.05)
    share, slack = held / repetitions, 4 * np.sqrt(0.9 * 0.1 / repetitions)
    assert 0.9 - slack < share < 0.9 + 1 / (count + 1) + slack


def test_too_few_errors_give_no_finite_width_and_accuracies_end_at_0_and_1():
    assert factor_of(np.zeros(8), np.ones(8)) == float("inf")
    low, high = interval_of(0.2, 0.1, float("inf"), 0.25)  # .25 of 64 questions: .16 to .37
    assert (low, high) == pytest.approx((-0.37, 0.84), abs=0.01)
    low, high = interval_of(0.2, 0.05, 1.0, 0.25)
    assert (low, high) == pytest.approx((0.1, 0.3))


def test_a_pair_unlike_all_others_is_outside_of_what_is_known():
    rows = _pairs()
    predictor = Predictor(rows)
    limit = limit_of(predictor)
    assert predictor.distance(rows[3]) == 0.0
    assert predictor.distance(rows[3], without=rows[3]["kind"]) > 0.0
    for name in ("kl_reverse", "entropy_student"):
        far = [predictor.distance(rows[3] | {name: 10.0**power}) for power in range(1, 5)]
        assert far == sorted(far)
        assert far[-1] > limit
    half_unknown = {name: rows[3][name] for name in FEATURES[: len(FEATURES) // 2]}
    assert predictor.distance(half_unknown) == 0.0  # over what both have
    assert predictor.distance(dict.fromkeys(NEEDED, 0.5)) == float("inf")
    shares = [predictor.distance(r, without=r["kind"]) <= limit for r in rows]
    assert np.mean(shares) == pytest.approx(0.95, abs=0.0126)


def test_the_shipped_pairs_are_whole_and_what_is_foretold_of_them_can_be_made_again():
    rows = kept_pairs()
    assert len({(row["task"], row["number"]) for row in rows}) == len(rows) >= 40
    assert len({row["kind"] for row in rows}) == 10
    for row in rows:
        assert 0 <= row["before"] <= 1
        assert 0 <= row["after"] <= 1
        assert row["gain_low"] <= row["after"] - row["before"] <= row["gain_high"]
        assert all(name in row for name in NEEDED)
    foretold, spreads = unseen(rows)
    assert foretold == pytest.approx([row["foretold"] for row in rows], abs=1e-6)
    assert spreads == pytest.approx([row["foretold_spread"] for row in rows], abs=1e-6)
    assert POPULATION.stat().st_size < 200_000
    assert set(FEATURES) < set(pq.read_schema(POPULATION).names)
