"""A request to stop in any phase ends the run within seconds, resumable to the bit."""

import pytest
from test_resume import kept

from helpers import read_jsonl, tiny_run
from tutelage.runs.checkpoints import valid_checkpoints
from tutelage.training import train

WITHIN_S = 10

LOADING = {
    "importing": {"where": "tutelage.config:load_config"},
    "loading the student": {"where": "tutelage.session:load_student"},
    "loading the teacher": {"where": "tutelage.session:load_model"},
}
TRAINING = {
    "first evaluation": {"where": "tutelage.examination:evaluate", "after": True},
    "rollout": {"where": "tutelage.models.local:decode", "call": 5},
    "scoring": {"where": "tutelage.gradient:_States.distributions", "call": 5},
    "backward": {"where": "torch:Tensor.backward", "call": 5, "after": True},
    "optimizer": {"where": "torch.optim:AdamW.step", "call": 2},
    "evaluation": {"where": "tutelage.examination:evaluate", "call": 3, "after": True},
    "measuring": {"where": "tutelage.trainer:measure", "call": 2},
    "save": {"where": "tutelage.runs.checkpoints:_sync", "call": 2},
    "last save": {"where": "tutelage.runs.checkpoints:prune", "call": 2},
    "the finished student": {"where": "tutelage.keeping:write_student"},
}


def fault(place, do="SIGTERM"):
    return {"call": 1, "do": do, **place}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, gpt2_pair):
    """What the same run keeps that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight")
    return kept(train(tiny_run(folder, *gpt2_pair, lr=3e-3)()).run)


@pytest.mark.parametrize("phase", [*LOADING, *TRAINING])
def test_a_signal_ends_any_phase_with_75_and_the_run_goes_on_to_the_bit(
    zygote, written, straight, tmp_path, phase
):
    path = written()
    place = fault((LOADING | TRAINING)[phase])
    status, told = zygote.run("train", "-c", path, faults=[place])
    assert status == 75, told
    assert zygote.seconds_from_signal_to_end < WITHIN_S
    assert "stopped by SIGTERM" in told
    assert "Traceback" not in told
    found = list(valid_checkpoints(tmp_path / "run" / "checkpoints"))
    assert bool(found) == (phase in TRAINING)
    status, told = zygote.run("train", "-c", path, "--resume")
    assert status == 0, told
    if phase in LOADING:
        assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]["step"] == 0
    resumed = kept(tmp_path / "run")
    for file, content in straight.items():
        assert resumed[file] == content, file


@pytest.mark.parametrize("phase", ["loading the teacher", "rollout", "scoring", "measuring"])
def test_long_work_is_abandoned_and_not_waited_for(zygote, written, phase):
    """The signal comes as a phase of half a minute begins."""
    place = (LOADING | TRAINING)[phase]
    long = fault(place, do="wait 30")
    status, told = zygote.run("train", "-c", written(), faults=[long, fault(place)])
    assert status == 75, told
    assert zygote.seconds_from_signal_to_end < WITHIN_S


def test_sigusr1_asks_for_the_same(zygote, written):
    place = fault(TRAINING["rollout"], do="SIGUSR1")
    status, told = zygote.run("train", "-c", written(), faults=[place])
    assert status == 75
    assert "stopped by SIGUSR1" in told
    assert "state saved" in told


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_second_request_does_not_wait_and_leaves_the_old_checkpoint(
    zygote, written, tmp_path, number
):
    path = written(run={"steps": 50})
    first = fault({"where": "tutelage.runs.checkpoints:save_checkpoint", "call": 2}, do=number)
    slow = {"where": "tutelage.runs.checkpoints:begin_checkpoint", "call": 2, "do": "wait 1.5"}
    again = {"where": "tutelage.runs.checkpoints:save_file", "call": 2, "do": number}
    status, told = zygote.run("train", "-c", path, faults=[first, slow, again])
    assert status == 130, told
    (newest, *_) = valid_checkpoints(tmp_path / "run" / "checkpoints")
    assert newest.step == 2
    assert zygote.run("train", "-c", path, "--resume", "--run.steps", "5")[0] == 0


def test_a_signal_that_a_launcher_repeats_is_one_request(zygote, written):
    twice = [fault(TRAINING["save"]), fault({**TRAINING["save"], "call": 3})]
    assert zygote.run("train", "-c", written(), faults=twice)[0] == 75


def test_a_report_that_is_stopped_says_so(zygote, written, tmp_path):
    assert zygote.run("train", "-c", written())[0] == 0
    place = fault({"where": "tutelage.config:load_config"})
    status, told = zygote.run("report", tmp_path / "run", faults=[place])
    assert (status, "stopped by SIGTERM" in told) == (75, True)
