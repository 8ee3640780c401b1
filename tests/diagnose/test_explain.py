"""`explain` on real runs of the embedded pair, and on what other libraries wrote."""

import json
import shutil
from pathlib import Path

import pytest
from planted import FLAT, evaluations, healthy

from helpers import read_jsonl, write_jsonl
from tutelage.cli import main
from tutelage.diagnose.explaining import Explanation, explain, story
from tutelage.errors import DataError, UsageError
from tutelage.lab.embedded import model_path

FAULTS = ("learning_rate", "same_model", "thinking_pattern", "template")


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_first_with_numbers_of_the_run(fault_runs, name):
    found = explain(fault_runs[name])
    assert (found.causes[0].name, found.causes[0].confidence) == (name, "high")
    assert any(character.isdigit() for character in " ".join(found.causes[0].evidence))
    assert found.causes[0].advice in found.story
    assert found.notes == ()


def test_in_a_healthy_run_nothing_is_asserted(fault_runs):
    found = explain(fault_runs["healthy"])
    assert [cause.name for cause in found.causes if cause.confidence != "low"] == []
    assert "No cause that is known here fits" in found.story  # 16 steps, and no better yet
    assert "The reverse KL fell" in found.story


def test_where_nothing_fits_the_story_says_what_to_try_by_where_the_student_went():
    def told(teacher=0.98, reverse_kl=0.5, **fields):
        measured = evaluations(**fields, teacher=teacher)
        measured[-1]["kl/reverse"] = reverse_kl
        run = healthy(evaluations=measured)
        return story(Explanation(run=Path(), history=run, causes=(), notes=()))

    assert told(after=0.9).endswith("Nothing wrong was found.")
    assert "a lower optimizer.lr" in told(**FLAT, reverse_kl=0.9)
    assert "more steps or a higher optimizer.lr" in told(**FLAT)
    assert "ask tutelage check" in told(**FLAT, teacher=0.33)


def test_the_difference_of_two_prompts_is_shown(fault_runs):
    cause = explain(fault_runs["template"]).causes[0]
    assert any("='" in line and "the teacher '" in line for line in cause.evidence)


def test_guards_of_training_record_what_the_causes_read(fault_runs):
    records = read_jsonl(fault_runs["healthy"] / "metrics.jsonl")
    start = records[0]
    assert start["teacher/accuracy"] > 0.9
    assert start["teacher/accuracy/questions"] == 64
    assert "teacher/accuracy" not in records[-1]
    for key in ("stop/reward", "stop/student", "stop/teacher"):
        assert key in start
    assert start["stop/student"] == pytest.approx(1, abs=0.05)
    assert all(record["update/kl"] >= 0 for record in records if record["kind"] == "train")


def test_training_warns_once_of_what_explain_is_sure_of(fault_runs):
    for name in ("learning_rate", "same_model", "healthy"):
        events = read_jsonl(fault_runs[name] / "events.jsonl")
        told = [event["name"] for event in events if event["event"] == "signal"]
        assert told.count(name) == (name != "healthy")
        if name == "healthy":
            assert told == []


def test_a_guard_that_may_stop_a_run_saves_it_and_exits_with_7(fault_runs, tmp_path, capsys):
    flags = [
        *("--run.dir", str(tmp_path / "run"), "--run.save_every", "0"),
        *("--guards.stop", "[learning_rate, template]"),
    ]
    config = fault_runs["learning_rate"] / "config.yaml"
    assert main(["train", "-c", str(config), *flags]) == 7
    assert "learning_rate: each step moves the student too far" in capsys.readouterr().err
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert saved.name == "step-5"
    assert main(["train", "-c", str(config), "--guards.stop", "no_such_rule"]) == 2


@pytest.fixture
def copied(fault_runs, tmp_path):
    """A run to damage."""
    return shutil.copytree(fault_runs["learning_rate"], tmp_path / "run")


def test_a_run_cut_off_in_the_middle_of_a_line_is_read_up_to_the_last_whole_record(copied):
    whole = explain(copied)
    path = copied / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]) + lines[10][:40])
    found = explain(copied)
    assert len(found.history.steps) == 9
    assert any("metrics.jsonl ends in the middle of a line" in note for note in found.notes)
    assert found.causes[0].name == whole.causes[0].name


def test_a_damaged_record_in_the_middle_is_an_error_with_its_line(copied):
    path = copied / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{broken\n", *lines[1:]]))
    with pytest.raises(DataError, match="line 2"):
        explain(copied)


def test_models_that_are_gone_are_not_needed(copied):
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace(str(model_path("compatible")), "/nowhere/a"))
    assert explain(copied).causes[0].name == "learning_rate"


def test_what_check_and_the_server_said_is_told(copied):
    verdict = {"verdict": "cold-start", "reasons": [{"text": "its advice lowers the chance"}]}
    (copied / "check.json").write_text(json.dumps(verdict))
    (copied / "servers.json").write_text(json.dumps({"teacher": {"root": "models/other"}}))
    found = explain(copied)
    assert "before training, check said cold-start: its advice lowers the chance" in found.notes
    (broken,) = (cause for cause in found.causes if cause.name == "broken_teacher")
    assert broken.confidence == "low"
    assert "models/other" in broken.evidence[-1]


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["explain", str(tmp_path)]) == 2
    assert "neither config.yaml" in capsys.readouterr().err
    assert main(["explain", str(tmp_path / "missing")]) == 2
    (tmp_path / "config.yaml").write_text("student: {path: a}\nteacher: {path: b}\n")
    assert main(["explain", str(tmp_path)]) == 2  # no prompts, so no settings of ours
    (tmp_path / "config.yaml").write_text(
        "student: {path: a}\nteacher: {path: b}\ndata: {prompts: c.jsonl}\n"
    )
    assert main(["explain", str(tmp_path)]) == 2
    assert "no record yet" in capsys.readouterr().err
    foreign = tmp_path / "other.jsonl"
    foreign.write_text('{"loss": 1}\n')
    assert main(["explain", str(foreign)]) == 2
    assert "verl" in capsys.readouterr().err


def test_the_command_prints_the_story_first_or_everything_as_json(fault_runs, capsys):
    run = str(fault_runs["learning_rate"])
    assert main(["explain", run, "--top", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("In 12 steps the student became worse")
    assert "\n1. learning_rate (high confidence)" in text
    assert "\n2. " not in text
    assert "optimizer.lr: " in text
    assert main(["explain", run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["causes"][0]["name"] == "learning_rate"
    assert told["causes"][0]["change"]["optimizer.lr"] < 6e-2
    assert told["outcome"] == "worse"
    assert main(["explain", run, "--top", "0"]) == 2
    assert main(["explain", run, "--cause", "learning_rate"]) == 2


# --- other libraries ----------------------------------------------------------------------------


def trl_state(folder, entries):
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": entries}))
    return folder


def test_a_log_of_trl_is_judged_by_what_it_carries(tmp_path):
    entries = [
        {
            "step": i,
            "loss": 0.5,
            "grad_norm": 1.0,
            "learning_rate": 1e-5,
            "completions/mean_length": 400.0 / (1 + i / 3),
            "completions/truncated_fraction": 0.6,
        }
        for i in range(20)
    ]
    output = trl_state(tmp_path / "out" / "checkpoint-10", entries[:5]).parent
    trl_state(tmp_path / "out" / "checkpoint-20", [*entries, {"step": 20, "train_runtime": 3.0}])
    found = explain(output)
    assert len(found.history.steps) == 20
    names = [cause.name for cause in found.causes]
    assert names[0] == "response_limit"
    assert "length_collapse" in names
    assert any("read of TRL: completions/mean_length" in note for note in found.notes)
    assert any("not judged" in note and "learning_rate" in note for note in found.notes)


def test_a_file_of_verls_logger_is_judged_by_what_it_carries(tmp_path):
    rows = [
        {
            "step": i,
            "data": {
                "actor/grad_norm": 1.0,
                "response_length/mean": 300.0,
                "response_length/clip_ratio": min(1.0, max(0.0, (i - 8) / 6)),
                "rollout_corr/k3_kl": 0.05,
                "timing_s/step": 3.0,
            },
        }
        for i in range(20)
    ]
    path = write_jsonl(tmp_path / "run.jsonl", rows)
    with path.open("a") as stream:
        stream.write('{"step": 20, "da')
    found = explain(path)
    assert [cause.name for cause in found.causes] == ["engine_mismatch", "length_inflation"]
    assert any("middle of a line" in note for note in found.notes)


def test_a_log_with_nothing_to_read_is_said_to_be_one(tmp_path):
    with pytest.raises(DataError, match="none of the metrics"):
        explain(trl_state(tmp_path / "out", [{"step": 1, "loss": "nan"}]))
    (tmp_path / "out" / "trainer_state.json").write_text("{}")
    with pytest.raises(UsageError, match="log_history"):
        explain(tmp_path / "out")
