"""A rank that fails, or never comes, ends all ranks with one cause, told once."""

import os
import signal
import time

import pytest

from tutelage.config import SingleProcess
from tutelage.errors import MachineError, UsageError
from tutelage.ranks.group import Ranks
from tutelage.ranks.joining import joined, require_alike
from tutelage.runs.interrupts import Interrupts

WITHIN_S = 60


def ends(pair):
    """How the second rank ended, how the first did, and the seconds between."""
    second = pair.zygotes[1].wait()
    began = time.monotonic()
    return second, pair.zygotes[0].wait(), time.monotonic() - began


def test_a_failure_of_one_rank_is_the_exit_code_of_both_and_told_once(pair, written):
    fault = {"where": "tutelage.models.local:decode", "call": 3, "do": "disk full"}
    pair.start("train", "-c", written(), faults=((), [fault]))
    (second, also), (first, told), seconds = ends(pair)
    assert (first, second) == (5, 5), told + also
    assert (told + also).count("is full; free some space") == 1
    assert "Traceback" not in told + also
    assert seconds < WITHIN_S


@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_a_rank_that_is_killed_ends_the_other_with_its_number(pair, written, kind):
    path = written(distributed={"type": kind, "silence_s": 20})
    fault = {"where": "tutelage.gradient:_States.distributions", "call": 3, "do": "SIGKILL"}
    pair.start("train", "-c", path, faults=((), [fault]))
    (second, _), (first, told), seconds = ends(pair)
    assert (first, second) == (5, -9), told
    assert "rank 1 ended without a word" in told
    assert "--resume" in told
    assert seconds < WITHIN_S
    assert '"exit": 5' in (path.parent / "run" / "events.jsonl").read_text()


def test_a_rank_that_hangs_is_named_at_the_deadline(pair, written):
    path = written(distributed={"type": "ddp", "silence_s": 10})
    fault = {"where": "tutelage.models.local:decode", "call": 3, "do": "SIGSTOP"}
    pids = pair.start("train", "-c", path, faults=((), [fault]))
    status, told = pair.zygotes[0].wait()
    os.kill(pids[1], signal.SIGKILL)
    pair.zygotes[1].wait()
    assert status == 5, told
    assert "rank 1 has not been heard of for 10 s" in told


def test_ranks_that_never_come_are_an_error_with_a_deadline(pair, written):
    path = written(distributed={"type": "ddp", "join_timeout_s": 2})
    ((status, told),) = pair.run("train", "-c", path, only=(0,))
    assert status == 5, told
    assert "not all of the 2 ranks joined at 127.0.0.1" in told
    ((status, told),) = pair.run("train", "-c", path, only=(1,))
    assert status == 5, told
    assert "rank 1 does not reach the first one at 127.0.0.1" in told


def test_ranks_with_other_settings_are_refused_and_the_setting_is_named(pair, written):
    path = written()
    (first, told), (second, also) = pair.run(
        "train", "-c", path, more=((), ("--optimizer.lr", "0.5"))
    )
    assert (first, second) == (2, 2), told + also
    assert (told + also).count("optimizer.lr is 0.5 on rank 1") == 1
    assert not (path.parent / "run").exists()


def test_ranks_of_other_versions_are_refused():
    class Other(Ranks):
        def gather_json(self, content):
            return [content, {**content, "torch": "2.9"}]

    with pytest.raises(MachineError, match=r"torch is '2.9' on rank 1 \(b\) and '2.13' on rank 0"):
        require_alike(Other(size=2, hosts=("a", "b")), {"torch": "2.13"}, "versions")


def test_a_step_that_cannot_be_dealt_is_refused(pair, written):
    path = written(rollout={"prompts_per_step": 5})
    for status, told in pair.run("train", "-c", path):
        assert status == 2, told
    assert not (path.parent / "run").exists()


def test_ranks_and_the_setting_need_each_other(monkeypatch, written):
    from tutelage.config import load_config
    from tutelage.training import train

    config = load_config(written())
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="no launcher started this process"):
        train(config)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UsageError, match="2 processes were started for one run"),
        joined(SingleProcess(), Interrupts()),
    ):
        pass
    monkeypatch.setenv("RANK", "2")
    with (
        pytest.raises(UsageError, match="RANK=2 and WORLD_SIZE=2"),
        joined(SingleProcess(), Interrupts()),
    ):
        pass
