"""Probes while a student trains, and what is made of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from helpers import read_jsonl
from tutelage.alignment.bench import plant
from tutelage.alignment.curriculum import Curriculum
from tutelage.beginning import start_run
from tutelage.config import CurriculumPolicy, parse_config
from tutelage.errors import DataError, UsageError
from tutelage.lab.embedded import model_path
from tutelage.signals import collapsed, exhausted, of_probes
from tutelage.trainer import Trainer
from tutelage.training import train
from tutelage.types import Prompt, RenderedPrompt


@pytest.fixture
def probed(tree, tmp_path):
    def make(teacher="compatible", steps=2, folder="run", **probe):
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
                "run": {"dir": str(tmp_path / folder), "steps": steps, "save_every": 1},
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


def test_a_teacher_that_brings_nothing_counts_less_and_less_and_a_resumed_run_agrees(probed):
    lower = {"type": "lower_weight", "factor": 0.5, "floor": 0.2}
    cut = probed("incompatible", steps=2, folder="cut", policy=lower)
    train(cut)
    longer = probed("incompatible", steps=4, folder="cut", policy=lower)
    train(longer, resume=True)
    whole = probed("incompatible", steps=4, folder="whole", policy=lower)
    train(whole)
    warned = probed("incompatible", steps=4, folder="warned", policy="warn")
    train(warned)
    assert [_timeless(r) for r in probes(longer)] == [_timeless(r) for r in probes(whole)]
    weights = [record["alignment/next_weight"] for record in probes(whole)]
    fires = [record["alignment/advantage/low"] <= 0 for record in probes(whole)]
    expected, weight = [], 1.0
    for fired in fires:
        weight = max(0.2, weight / 2) if fired else weight
        expected.append(weight)
    assert weights == expected
    assert fires[0]
    # The first step is that of the unlowered run at half its gradient: AdamW moves alike, the loss
    # is half.
    first = [
        next(r for r in read_jsonl(Path(c.run.dir) / "metrics.jsonl") if r["kind"] == "train")
        for c in (whole, warned)
    ]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"] / 2)
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"] / 2)


def test_a_curriculum_trains_on_the_easiest_until_they_teach_nothing_and_resumes_alike(
    probed, monkeypatch
):
    seen: dict[str, list[list[int]]] = {}
    drawn = Trainer.prompts_of

    def watched(self, step):
        found = drawn(self, step)
        lengths = [len(prompt.ids) for prompt in found]
        seen.setdefault(Path(self.config.run.dir).name, []).append(lengths)
        return found

    monkeypatch.setattr(Trainer, "prompts_of", watched)
    policy = {"type": "curriculum", "start": 0.3, "widen": 0.4}
    train(probed("incompatible", steps=2, folder="cut", policy=policy))
    longer = probed("incompatible", steps=5, folder="cut", policy=policy)
    train(longer, resume=True)
    whole = probed("incompatible", steps=5, folder="whole", policy=policy)
    train(whole)
    assert seen["cut"] == seen["whole"]
    assert [_timeless(r) for r in probes(longer)] == [_timeless(r) for r in probes(whole)]
    windows = [record["alignment/window"] for record in probes(whole)]
    assert windows[0] == 5  # of 16 training prompts, rounded up
    assert windows == sorted(windows)
    assert windows[1] == windows[0] + 7
    # The first step already sees the window that the first probe widened, and nothing harder.
    ordered = sorted(
        len(prompt.ids) for prompt in start_run(probed(folder="x"), lambda r: None).session.prompts
    )
    for window, lengths in zip(windows[1:], seen["whole"], strict=False):
        assert max(lengths) <= ordered[window - 1]


def test_a_curriculum_by_a_column_needs_a_number_in_every_row(probed):
    with pytest.raises(DataError, match=r"by the column 'hard', but prompt .* has None"):
        train(probed(policy={"type": "curriculum", "by": "hard"}))


def _rendered(lengths):
    return [
        RenderedPrompt(prompt=Prompt(id=str(i)), ids=(0,) * length)
        for i, length in enumerate(lengths)
    ]


def test_a_window_widens_from_easy_to_hard_until_it_holds_everything():
    policy = CurriculumPolicy(start=0.25, widen=0.5)
    course = Curriculum.of(policy, _rendered([5, 3, 9, 1, 3, 7, 2, 8]), 2)
    assert [len(p.ids) for p in course.prompts] == [1, 2, 3, 3, 5, 7, 8, 9]
    assert [p.prompt.id for p in course.prompts[2:4]] == ["1", "4"]  # equals in their order
    windows = [course.start]
    while course.wider(windows[-1]) > windows[-1]:
        windows.append(course.wider(windows[-1]))
    assert windows == [2, 6, 8]
    assert [course.fits(p, 2) for p in _rendered([2, 3])] == [True, False]
    probes = [{"step": s, "alignment/next_window": w} for s, w in ((0, 2), (5, 6), (10, 6))]
    assert [course.window(probes[:n]) for n in range(4)] == [(2, 0), (2, 0), (6, 5), (6, 5)]


def accuracy(*values):
    return [
        {"step": step, "alignment/teacher": "t", **({} if v is None else {"alignment/accuracy": v})}
        for step, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "patience", "fires"),
    [
        ((0.3, 0.0), 1, True),
        ((0.3, 0.0), 2, False),
        ((0.3, 0.0, 0.0), 2, True),
        ((0.3, 0.0, 0.1), 1, False),
        ((0.0, 0.0), 1, False),  # never right: nothing was lost
        ((0.3, None), 1, False),
        ((0.3, 1.0), 1, False),
    ],
)
def test_a_student_that_was_right_and_is_never_right_now_has_collapsed(values, patience, fires):
    signal = collapsed(accuracy(*values), patience)
    assert (signal is not None) == fires
    if signal is not None:
        assert "right at step 0" in signal.evidence
        assert "go back to step 0" in signal.advice
    assert (of_probes(accuracy(*values), patience) is not None) == fires  # and is not exhausted


@pytest.mark.parametrize(("policy", "outcome"), [("stop", "student_collapsed"), ("warn", None)])
def test_a_collapsed_student_is_told_and_stops_where_the_policy_stops(
    probed, monkeypatch, policy, outcome
):
    """After the first probe nothing is ever right."""

    def none_right(bench):
        if bench.seed == probed().run.seed:
            return plant(bench)
        return plant(replace(bench, verify=lambda prompt, text: 0.0))

    monkeypatch.setattr("tutelage.alignment.probe.plant", none_right)
    config = probed(steps=3, policy=policy, patience=2)
    result = train(config)
    assert result.outcome == (outcome or "finished")
    assert result.step == (2 if outcome else 3)
    told = [e for e in read_jsonl(Path(config.run.dir) / "events.jsonl") if e["event"] == "signal"]
    assert {e["name"] for e in told} == {"student_collapsed"}
    found = probes(config)
    assert found[0]["alignment/accuracy"] > 0
    assert found[1]["alignment/accuracy"] == 0


def test_a_stop_at_the_step_of_the_last_probe_is_remembered_on_resume(probed):
    config = probed("incompatible", steps=9, policy="stop", patience=2)
    assert train(config).step == 1
    again = train(config, resume=True)
    assert (again.outcome, again.step) == ("teacher_exhausted", 1)


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
    with pytest.raises(UsageError, match=r"align\.probe\.policy\.type was 'warn' and is 'stop'"):
        train(probed("incompatible", steps=2, policy="stop"), resume=True)
