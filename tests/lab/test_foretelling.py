"""The judgement of the predictor, on made-up pairs whose law is known."""

import numpy as np
import pytest

from tutelage.diagnose import prediction
from tutelage.diagnose.prediction import FEATURES
from tutelage.lab.foretelling import foretold_as_text, judge_predictor


def _rows(law, count=60, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        row = dict(zip(FEATURES, rng.random(len(FEATURES)).tolist(), strict=True))
        student, teacher = row["student_accuracy"], row["teacher_accuracy"]
        after = float(np.clip(teacher * law(row, rng), 0, 1))
        row |= {"task": "mod", "number": number, "kind": f"kind {number % 5}"}
        row |= {"before": student, "after": after, "teacher": teacher}
        row |= {"gain_low": after - student - 0.02, "gain_high": after - student + 0.02}
        rows.append(row | {"verdict": "go" if after > student else "cold-start"})
    return rows


@pytest.fixture(scope="module", autouse=True)
def small_forests():
    """Enough trees for these laws, and ten times as fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "_TREES", 40)
        yield


@pytest.fixture(scope="module")
def lawful():
    return judge_predictor(_rows(lambda row, rng: 0.95 if row["within_reach"] > 0.5 else 0.1))


def test_a_law_is_found_and_beats_single_measurements(lawful):
    assert lawful.rank.value > 0.8
    low, high = lawful.rank.interval
    assert low < lawful.rank.value < high
    assert lawful.rank.value > lawful.single["teacher's accuracy"].value
    assert lawful.without_group.value > 0.8
    assert lawful.without_task is None  # there is one task
    assert lawful.coverage.low < 0.9 < lawful.coverage.high
    assert lawful.go.count == 0
    assert sum(sum(counts.values()) for counts in lawful.verdicts.values()) == 60
    assert lawful.verdicts["go"]["harmed"] == lawful.verdicts["cold-start"]["gained"] == 0
    assert lawful.collapsed.count > 5
    assert lawful.recovery.pairs < 60
    assert set(lawful.by_kind) == {f"kind {i}" for i in range(5)}


def test_it_can_be_told_and_kept(lawful):
    told = foretold_as_text(lawful)
    assert "60 pairs of 5 kinds" in told
    assert f"collapsed {lawful.collapsed.count} of 60" in told
    assert lawful.to_dict()["coverage"]["of"] == 60


def test_where_there_is_no_law_intervals_still_hold(lawful):
    found = judge_predictor(_rows(lambda row, rng: rng.random()))
    assert found.rank.value < lawful.rank.value
    assert found.error > lawful.error
    assert found.coverage.low < 0.9 < found.coverage.high


def test_few_kinds_are_not_judged():
    rows = [row for row in _rows(lambda row, rng: 1.0) if row["kind"] in ("kind 0", "kind 1")]
    assert judge_predictor(rows) is None
