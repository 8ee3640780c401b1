"""A run is followed by its files: what it does, when it ends, and how it ended."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from writing import append, eval_record, make_run, step_record

from helpers import read_jsonl, tiny_run
from tutelage import train, watch
from tutelage.cli import main
from tutelage.errors import GuardStop, Preempted, UsageError
from tutelage.runs.directory import Run
from tutelage.runs.following import Tail
from tutelage.runs.lock import is_locked, locked
from tutelage.runs.presence import present
from tutelage.watching.following import Follower
from tutelage.watching.told import duration
from tutelage.watching.view import View

# --- reading -----------------------------------------------------------------------------------


def test_a_line_is_read_once_and_only_when_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    line = json.dumps(step_record(1)).encode() + b"\n"
    for cut in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(line[:cut])
        assert tail.read() == []
    path.write_bytes(line)
    assert [r["step"] for r in tail.read()] == [1]
    assert tail.read() == []
    with path.open("ab") as stream:
        stream.write(b"not json\n[1]\n" + line[:30])
    assert (tail.read(), tail.damaged) == ([], 2)
    with path.open("ab") as stream:
        stream.write(line[30:])
    assert [r["step"] for r in tail.read()] == [1]


def test_a_replaced_or_shorter_file_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, {"n": 1}, {"n": 2})
    tail = Tail(path)
    tail.read()
    other = tmp_path / "other"
    append(other, {"n": 1}, {"n": 3})
    other.replace(path)
    assert [r["n"] for r in tail.read()] == [1, 3]
    path.write_text('{"n": 4}\n')
    assert [r["n"] for r in tail.read()] == [4]


def test_ten_thousand_steps_cost_little_and_a_further_look_next_to_nothing(tmp_path):
    run = make_run(tmp_path / "run", steps=20_000)
    padding = {f"key/{i}": i / 7 for i in range(60)}
    append(run / "metrics.jsonl", *(step_record(i, **padding) for i in range(1, 10_001)))
    follower = Follower(run)
    started = time.process_time()
    assert follower.look().view.step == 10_000
    first = time.process_time() - started
    append(run / "metrics.jsonl", step_record(10_001))
    started = time.process_time()
    assert follower.look().view.step == 10_001
    second = time.process_time() - started
    assert first < 5
    assert second < 0.05


# --- what is said of it ------------------------------------------------------------------------


def test_a_resumed_run_replaces_the_steps_it_takes_again():
    view = View(steps=10)
    view.add(eval_record(0, 0.1))
    for step in range(1, 7):
        view.add(step_record(step))
    view.warn({"step": 6, "name": "drift", "evidence": "e"})
    view.hear({"event": "resume", "step": 4})
    for step in (5, 6):
        view.add(step_record(step, **{"kl/reverse": 9.0}))
    steps, values = zip(*view.series["kl/reverse"], strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    assert values[4:] == (9.0, 9.0)
    assert view.warnings == []
    again = View()
    for _ in range(2):  # the whole file once more
        again.add(eval_record(0, 0.1))
        for step in (1, 2, 3):
            again.add(step_record(step))
    assert [s for s, _ in again.series["kl/reverse"]] == [1, 2, 3]
    assert again.series["accuracy"] == [(0, 0.1)]


def test_remaining_time_counts_steps_and_evaluations_and_is_never_negative():
    view = View(steps=10, evaluate_every=5)
    assert view.remaining_s() is None
    view.add(eval_record(0, 0.1))
    view.add(step_record(1))
    assert view.remaining_s() == pytest.approx(9 * 1.0 + 2 * 3.0)
    assert view.remaining_s(since_s=0.4) == pytest.approx(14.6)
    assert view.remaining_s(since_s=1e6) == pytest.approx(14.0)
    assert view.remaining_s(since_s=-1e6) == pytest.approx(15.0), "a clock that was set back"
    view.add(step_record(10))
    assert view.remaining_s(since_s=5) == 0
    view.add(step_record(11))
    assert view.remaining_s() == 0
    only_last = View(steps=7, evaluate_every=0)
    only_last.add(eval_record(0, 0.1))
    only_last.add(step_record(6))
    assert only_last.remaining_s() == pytest.approx(1.0 + 3.0)


def test_shares_of_the_phases_are_of_the_last_steps():
    view = View()
    view.add(step_record(1))
    view.add(step_record(2, **{"perf/move_s": 1.0, "perf/rollout_tokens_per_s": 99.0}))
    assert list(view.shares()) == ["rollout", "move", "update", "score"]
    assert view.shares()["rollout"] == pytest.approx(1 / 3)
    assert sum(view.shares().values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "train"},
        {"kind": "train", "step": "3"},
        {"kind": "train", "step": 3, "kl/reverse": "x", "perf/rollout_s": None},
        {"kind": "eval", "step": 3, "accuracy": float("nan")},
        {"kind": ["train"], "step": 1},
        {"kind": "train", "step": 1, "kl/reverse": 10**400, "entropy/gap": True},
    ],
)
def test_a_strange_record_is_no_error_and_no_number(record):
    view = View()
    view.add(record)
    assert view.series == {}
    json.dumps(view.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.004, "0.004 s"),
        (0.49, "0.49 s"),
        (3.21, "3.2 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (300_000, "3 d 11 h"),
    ],
)
def test_durations_read_easily(seconds, words):
    assert duration(seconds) == words


# --- how it stands -----------------------------------------------------------------------------


def test_states_of_a_run_are_told_apart(tmp_path):
    run = make_run(tmp_path / "run")
    told = Run(run)
    with locked(run), present(told, steps=10, evaluate_every=5):
        assert watch(run, once=True).state == "not begun"
        append(run / "metrics.jsonl", step_record(1))
        assert watch(run, once=True).state == "running"
        told.log_event("end", outcome="early_stop", step=1)
    found = watch(run, once=True)
    assert (found.state, found.reason, found.remaining_s) == ("finished", "early_stop", None)

    def another_sitting():
        with locked(run), present(told, steps=20, evaluate_every=5):
            assert watch(run, once=True).state == "running"
            assert watch(run, once=True).view.steps == 20
            raise Preempted("stopped by SIGTERM at step 1")

    with pytest.raises(Preempted):
        another_sitting()
    found = watch(run, once=True)
    assert (found.state, found.reason) == ("stopped", "stopped by SIGTERM at step 1")

    with pytest.raises(ZeroDivisionError), locked(run), present(told):
        raise ZeroDivisionError("oh")
    found = watch(run, once=True)
    assert (found.state, found.reason) == ("crashed", "ZeroDivisionError: oh")


def test_a_killed_run_has_crashed_and_a_frozen_one_has_not(tmp_path):
    run = make_run(tmp_path / "run")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tutelage.runs.directory import Run\n"
        "from tutelage.runs.lock import locked\nfrom tutelage.runs.presence import present\n"
        "with locked(sys.argv[1]), present(Run(Path(sys.argv[1]))):\n"
        " print('in', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "in\n"
        append(run / "metrics.jsonl", step_record(1))
        old = time.time() - 10_000
        for name in ("metrics.jsonl", "events.jsonl", "config.yaml"):
            os.utime(run / name, (old, old))
        assert watch(run, once=True).state == "running"
    finally:
        process.kill()
        process.communicate()
    found = watch(run, once=True)
    assert (found.state, is_locked(run)) == ("crashed", False)
    assert "killed" in found.reason


def test_without_a_lock_long_silence_is_told(tmp_path):
    run = make_run(tmp_path / "run")
    append(run / "metrics.jsonl", step_record(1))
    assert watch(run, once=True).state == "running"
    for name in ("metrics.jsonl", "config.yaml"):
        os.utime(run / name, (0, 0))
    assert watch(run, once=True).state == "silent"
    for name in ("metrics.jsonl", "config.yaml"):
        os.utime(run / name, (2**32, 2**32))  # a clock that is ahead
    assert watch(run, once=True).state == "running"


def test_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(UsageError, match="no run directory"):
        watch(tmp_path, once=True)
    assert main(["watch", str(tmp_path / "none\x1b]0;evil\x07")]) == 2
    assert capsys.readouterr().err == (
        f"tutelage: {tmp_path}/none is no run directory: nothing is there; give the "
        "run.dir that `tutelage train` wrote\n"
    )
    run = make_run(tmp_path / "run")
    assert main(["watch", str(run), "--every", "0"]) == 2


# --- with a real run ---------------------------------------------------------------------------


def test_a_watched_run_is_followed_to_its_end_and_nothing_is_written(gpt2_pair, tmp_path, capsys):
    config = tiny_run(tmp_path, *gpt2_pair, lr=1e-3)()
    folder = tmp_path / "run"
    looks = []

    def observer(record):
        if record["kind"] == "train":
            time.sleep(0.1)

    trainer = threading.Thread(target=train, args=(config,), kwargs={"observer": observer})
    trainer.start()
    while not (folder / "config.yaml").is_file():
        time.sleep(0.01)
    found = watch(folder, observer=lambda w: looks.append((w.state, w.view.step)), poll_s=0.02)
    trainer.join()
    assert (found.state, found.view.step, found.view.steps) == ("finished", 4, 4)
    steps = [step for _, step in looks]
    assert steps == sorted(steps)
    assert {state for state, _ in looks} >= {"running", "finished"}
    assert "crashed" not in {state for state, _ in looks}
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert main(["watch", str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    records = read_jsonl(folder / "metrics.jsonl")
    last = [r for r in records if r["kind"] == "train"][-1]
    assert said["signals"]["kl/reverse"]["last"] == last["kl/reverse"]
    assert said["signals"]["accuracy"]["last"] == records[-1]["accuracy"]
    assert said["state"] == "finished"
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_guard_that_stops_a_run_is_its_reason(gpt2_pair, tmp_path):
    config = tiny_run(tmp_path, *gpt2_pair, lr=1e6)(
        guards={"non_finite_limit": 1}, evaluation={"every": 0}, run={"steps": 30}
    )
    with pytest.raises(GuardStop) as stopped:
        train(config)
    found = watch(tmp_path / "run", once=True)
    assert (found.state, found.reason) == ("stopped", str(stopped.value))
