"""Probes while a student trains, and what is made of them."""

from pathlib import Path

import pytest

from helpers import read_jsonl
from tutelage.alignment.bench import plant
from tutelage.config import parse_config
from tutelage.errors import UsageError
from tutelage.lab.embedded import model_path
from tutelage.signals import exhausted
from tutelage.training import train


@pytest.fixture
def probed(tree, tmp_path):
    def make(teacher="compatible", steps=2, **probe):
        return parse_config(
            {
                **tree,
                "teacher": {"path": str(model_path(teacher))},
                "rollout": {"max_new_tokens": 28, "prompts_per_step": 4},
                "data": {**tree["data"], "held_out": 8},
                "objective": {"type": "full"},
                "optimizer": {"lr": 1e-3},
                "evaluation": {"every": 0},
                "align": {
                    "spines": 2,
                    "samples": 4,
                    "rollouts": 4,
                    "teachers": {"good": {"path": str(model_path("compatible"))}},
                    "probe": {"every": 1, "questions": 8, "budget": 9000, **probe},
                },
                "run": {"dir": str(tmp_path / "run"), "steps": steps, "save_every": 1},
            }
        )

    return make


def probes(config):
    records = read_jsonl(Path(config.run.dir) / "metrics.jsonl")
    return [record for record in records if record["kind"] == "probe"]


def test_probes_are_recorded_and_change_no_step(probed, tmp_path):
    config = probed()
    assert train(config).outcome == "finished"
    found = probes(config)
    assert [record["step"] for record in found] == [0, 1, 2]
    for record in found:
        low, high = record["alignment/advantage/low"], record["alignment/advantage/high"]
        assert low < record["alignment/advantage"] < high
        assert record["alignment/tokens"] > 0
    silent = config.model_copy(
        update={
            "align": config.align.model_copy(update={"probe": None}),
            "run": config.run.model_copy(update={"dir": str(tmp_path / "silent")}),
        }
    )
    train(silent)
    trained = [
        [
            {k: v for k, v in record.items() if "perf" not in k}
            for record in read_jsonl(Path(c.run.dir) / "metrics.jsonl")
            if record["kind"] != "probe"
        ]
        for c in (config, silent)
    ]
    assert trained[0] == trained[1]


def test_a_harmful_teacher_ends_the_run_where_the_policy_says_so(probed):
    config = probed("incompatible", steps=9, policy="stop", patience=2)
    result = train(config)
    assert result.outcome == "teacher_exhausted"
    assert result.step == 1
    assert result.checkpoint.exists()


def test_a_teacher_that_harms_from_the_start_is_not_trained_on(probed):
    result = train(probed("incompatible", steps=9, policy="stop", patience=1))
    assert (result.outcome, result.step) == ("teacher_exhausted", 0)
    assert result.checkpoint.exists()


def test_a_harmful_teacher_is_changed_for_one_that_helps_and_stays_changed(probed, tmp_path):
    config = probed("incompatible", policy="switch_teacher", patience=1)
    train(config)
    now = [record["alignment/next_teacher"] for record in probes(config)]
    assert now[0] == "good"
    longer = config.model_copy(update={"run": config.run.model_copy(update={"steps": 4})})
    train(longer, resume=True)
    whole = longer.model_copy(
        update={"run": longer.run.model_copy(update={"dir": str(tmp_path / "whole")})}
    )
    train(whole)
    assert [_timeless(r) for r in probes(longer)] == [_timeless(r) for r in probes(whole)]


def test_a_budget_that_became_too_small_ends_no_run(probed, monkeypatch):
    def short_from_step_1(bench):
        if bench.seed != probed().run.seed:
            raise UsageError("not enough")
        return plant(bench)

    monkeypatch.setattr("tutelage.alignment.probe.plant", short_from_step_1)
    config = probed("incompatible", steps=2, patience=1)
    assert train(config).outcome == "finished"
    assert [record.get("alignment/note") for record in probes(config)] == [
        None,
        "not enough",
        "not enough",
    ]


def test_a_budget_too_small_from_the_start_is_refused(probed):
    with pytest.raises(UsageError, match="not enough"):
        train(probed(budget=100))


def _timeless(record):
    return {k: v for k, v in record.items() if "perf" not in k}


def probe(teacher, value, low):
    return {
        "alignment/teacher": teacher,
        "alignment/advantage": value,
        "alignment/advantage/low": low,
    }


@pytest.mark.parametrize(
    ("lows", "patience", "fires"),
    [
        ([-0.1], 1, True),
        ([0.1], 1, False),
        ([-0.1], 2, False),
        ([-0.1, 0.1], 2, False),
        ([0.1, -0.1, 0.0], 2, True),
    ],
)
def test_a_teacher_is_exhausted_after_enough_probes_in_a_row(lows, patience, fires):
    records = [probe("t", low + 0.05, low) for low in lows]
    assert (exhausted(records, patience) is not None) == fires


def test_a_probe_without_numbers_or_of_another_teacher_says_nothing():
    empty = {"alignment/teacher": "t", "alignment/note": "all right"}
    assert exhausted([probe("t", 0, -1), empty], 2) is None
    assert exhausted([probe("s", 0, -1), probe("t", 0, -1)], 2) is None


def test_a_probe_that_cannot_act_is_refused(probed, tree):
    with pytest.raises(UsageError, match="needs another teacher"):
        parse_config({**tree, "align": {"probe": {"policy": "switch_teacher"}}})
    data = {**tree["data"], "verifier": None}
    with pytest.raises(UsageError, match=r"needs data\.verifier"):
        parse_config({**tree, "data": data, "align": {"probe": {}}})
    view = {"path": tree["student"]["path"], "user_prompt": "{question}"}
    with pytest.raises(UsageError, match="must read what the student reads"):
        parse_config(
            {**tree, "align": {"teachers": {"x": view}, "probe": {"policy": "switch_teacher"}}}
        )


def test_a_probed_run_keeps_its_probe_on_resume(probed):
    config = probed("incompatible", steps=1)
    train(config)
    with pytest.raises(UsageError, match=r"align\.probe\.policy was 'warn' and is 'stop'"):
        train(probed("incompatible", steps=2, policy="stop"), resume=True)
