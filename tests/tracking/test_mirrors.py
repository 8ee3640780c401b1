"""Trackers hold what metrics.jsonl holds, and nothing they do costs the run."""

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from helpers import read_jsonl
from tutelage import train
from tutelage.config import parse_config
from tutelage.errors import MachineError, Preempted, UsageError
from tutelage.tracking import mirrors
from tutelage.tracking.writers import numbers_of

pytest.importorskip("tensorboard")
from reading import tensorboard_points, trackio_points, wandb_points

CANARY = "canary-7f3a9d"


def expected(run):
    return sorted(
        (key, record["step"], value)
        for record in read_jsonl(run / "metrics.jsonl")
        for key, value in numbers_of(record).items()
    )


def events(run, name):
    return [e for e in read_jsonl(run / "events.jsonl") if e["event"] == name]


def test_three_trackers_hold_the_numbers_once_across_a_resume(
    settings, tmp_path, monkeypatch, capfd
):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MY_SECRET"):
        monkeypatch.setenv(name, CANARY)
    # What would make them send something, if it reached them.
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9")
    trackers = ["tensorboard", {"type": "trackio", "project": "opd"}, "wandb"]
    run = {"dir": str(tmp_path / "first"), "trackers": trackers, "tracker_wait_s": 60, "steps": 2}
    train(settings(run=run))
    train(settings(run={**run, "steps": 4}), resume=True)
    folder = tmp_path / "first"
    wanted = expected(folder)
    assert [w[:2] for w in wanted if w[0] == "train/kl/reverse"] == [
        ("train/kl/reverse", step) for step in (1, 2, 3, 4)
    ]
    assert ("eval/accuracy", 0) in [w[:2] for w in wanted]

    assert events(folder, "tracker_failed") == []
    closed = events(folder, "tracker_closed")
    records = len(read_jsonl(folder / "metrics.jsonl"))
    assert [e["dropped"] for e in closed] == [0] * 6
    assert [e["mirrored"] for e in closed[3:]] == [records] * 3

    board = sorted(tensorboard_points(folder / "trackers" / "tensorboard"))
    assert [p[:2] for p in board] == [w[:2] for w in wanted]
    # Event files hold float32.
    assert [p[2] for p in board] == pytest.approx([w[2] for w in wanted], rel=1e-6)
    assert sorted(trackio_points(folder / "trackers" / "trackio", "opd", "first", monkeypatch)) == (
        wanted
    )
    points, sittings = wandb_points(folder / "trackers")
    assert sorted(points) == wanted
    assert len({sitting["id"] for sitting in sittings}) == 1
    assert sittings[0]["config"]["optimizer"]["lr"] == 1e-3

    assert capfd.readouterr().out == ""
    for path in folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


STUBS = {
    "import hangs": "import time; time.sleep(3600)",
    "import never lets go": "while True: pass",
    "import dies": "import os; os._exit(3)",
    "import raises": "raise ImportError('no such library \\x1b[31m')",
    "init hangs": "import time\ndef init(**k): time.sleep(3600)\nclass Settings:\n"
    " def __init__(self, **k): pass",
    "init raises": "def init(**k): raise OSError('no route')\nclass Settings:\n"
    " def __init__(self, **k): pass",
    "log hangs": "import time\nclass Settings:\n def __init__(self, **k): pass\n"
    "class Run:\n def log(self, n, step): time.sleep(3600)\n"
    "def init(**k): return Run()",
    "log is slow": "import time\nclass Settings:\n def __init__(self, **k): pass\n"
    "class Run:\n def log(self, n, step): time.sleep(.4)\n def finish(self): pass\n"
    "def init(**k): return Run()",
    "finish hangs": "import time\nclass Settings:\n def __init__(self, **k): pass\n"
    "class Run:\n def log(self, n, step): pass\n def finish(self): time.sleep(3600)\n"
    "def init(**k): return Run()",
}


@pytest.mark.parametrize(
    "stubs",
    [
        {"tensorboard": "import hangs", "trackio": "init hangs", "wandb": "log hangs"},
        {"tensorboard": "import dies", "trackio": "init raises", "wandb": "finish hangs"},
        {"tensorboard": "import never lets go", "trackio": "log is slow", "wandb": "import raises"},
    ],
    ids=lambda stubs: ", ".join(stubs.values()),
)
def test_a_tracker_that_fails_costs_no_step_a_second_and_never_the_run(
    settings, tmp_path, monkeypatch, stubs
):
    for name, fault in stubs.items():
        (tmp_path / "stubs" / name).mkdir(parents=True)
        (tmp_path / "stubs" / name / "__init__.py").write_text(STUBS[fault])
    monkeypatch.syspath_prepend(str(tmp_path / "stubs"))
    seen = []

    def observer(record):
        seen.append((time.monotonic(), record))
        time.sleep(0.1)  # as long as trackers take to get into trouble

    config = settings(
        run={"trackers": list(stubs), "tracker_wait_s": 1, "steps": 8, "save_every": 0},
        evaluation={"every": 0},
    )
    result = train(config, observer=observer)
    ended = time.monotonic()
    assert (result.outcome, result.step) == ("finished", 8)
    steps = [(at, r["perf/step_s"]) for at, r in seen if r["kind"] == "train"]
    assert max(b - a - work for (a, _), (b, work) in pairwise(steps)) < 1.0
    assert ended - seen[-1][0] < 5.0

    told = {e["tracker"]: e["text"] for e in events(result.run, "tracker_failed")}
    assert len(events(result.run, "tracker_failed")) == len(told) == 3, "each fault, once"
    words = {
        "import hangs": "import",
        "import never lets go": "import",
        "import dies": "process died in import",
        "import raises": "ImportError: no such library (in import)",
        "init hangs": "init",
        "init raises": "OSError: no route (in init)",
        "log hangs": "log",
        "log is slow": "log",
        "finish hangs": "finish",
    }
    for name, fault in stubs.items():
        assert words[fault] in told[name]
    records = len(read_jsonl(result.run / "metrics.jsonl"))
    for event in events(result.run, "tracker_closed"):
        assert event["mirrored"] + event["dropped"] == records
        if stubs[event["tracker"]] != "finish hangs":
            assert event["dropped"] > 0
    assert not _children()


def test_a_tracker_without_a_word_is_given_up_while_the_run_goes_on(
    settings, tmp_path, monkeypatch
):
    (tmp_path / "stubs" / "wandb").mkdir(parents=True)
    (tmp_path / "stubs" / "wandb" / "__init__.py").write_text(STUBS["init hangs"])
    monkeypatch.syspath_prepend(str(tmp_path / "stubs"))
    monkeypatch.setattr(mirrors, "STALLED_S", 0.5)
    told = []

    def observer(record):
        told.append(record)
        time.sleep(0.3)

    result = train(settings(run={"trackers": "wandb", "tracker_wait_s": 0}), observer=observer)
    kinds = [record["kind"] for record in told]
    assert "tracker_failed" in kinds[:-1]
    assert "it hung in" in told[kinds.index("tracker_failed")]["text"]
    assert result.outcome == "finished"


def test_a_missing_tracker_is_said_at_the_start_and_never_stops_a_resume(settings, monkeypatch):
    monkeypatch.setattr(mirrors, "_is_installed", lambda package: False)
    with pytest.raises(MachineError, match="pip install 'tutelage\\[track\\]'"):
        train(settings(run={"trackers": "wandb"}))
    train(settings(run={"steps": 2}))
    result = train(settings(run={"trackers": "wandb"}), resume=True)
    assert result.step == 4


def test_an_online_key_reaches_its_tracker_alone(settings, tmp_path, monkeypatch):
    (tmp_path / "stubs" / "wandb").mkdir(parents=True)
    (tmp_path / "stubs" / "wandb" / "__init__.py").write_text(
        "import os\nclass Settings:\n def __init__(self, **k): pass\n"
        "def init(**k):\n"
        " key = os.environ.get('WANDB_API_KEY')\n"
        " assert k['mode'] == 'online' and len(key) == 13 and 'OTHER_KEY' not in os.environ\n"
        " raise PermissionError('401 for ' + key)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "stubs"))
    monkeypatch.setenv("TEAM_KEY", CANARY)
    monkeypatch.setenv("OTHER_KEY", "x")
    online = {"type": "wandb", "mode": "online", "key_env": "TEAM_KEY"}
    result = train(settings(run={"trackers": online}))
    (event,) = events(result.run, "tracker_failed")
    assert event["text"] == "PermissionError: 401 for *** (in init)"
    for path in result.run.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    monkeypatch.delenv("TEAM_KEY")
    with pytest.raises(MachineError, match="TEAM_KEY"):
        train(settings(run={"trackers": online}), overwrite=True)


@pytest.mark.parametrize(
    ("trackers", "told"),
    [
        ("tensorbord", "Known|Did you mean 'tensorboard'"),
        (["wandb", {"type": "wandb", "project": "other"}], "wandb stands twice"),
        ({"type": "wandb", "key_env": "KEY"}, "offline sends nothing"),
        ({"type": "wandb", "mode": "online", "key_env": "not a name"}, "NAME of an env"),
        ({"type": "trackio", "projekt": "x"}, "Did you mean 'project'"),
        ({"type": "trackio", "project": "../../etc"}, "project"),
    ],
)
def test_wrong_trackers_cannot_be_written(trackers, told):
    tree = {"student": {"path": "s"}, "teacher": {"path": "t"}, "data": {"prompts": "p"}}
    with pytest.raises(UsageError, match=told):
        parse_config({**tree, "run": {"trackers": trackers}})


def _children():
    """Mirrors of this process that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            line = (stat.parent / "cmdline").read_bytes()
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if b"tutelage.tracking.child" in line and parent == os.getpid():
            found.append(stat.parent.name)
    return found


def test_a_stopped_run_does_not_wait_long_for_a_tracker_that_hangs(settings, tmp_path, monkeypatch):
    (tmp_path / "stubs" / "wandb").mkdir(parents=True)
    (tmp_path / "stubs" / "wandb" / "__init__.py").write_text(STUBS["init hangs"])
    monkeypatch.syspath_prepend(str(tmp_path / "stubs"))
    asked = []

    def stop(record):
        if record["kind"] == "train" and not asked:
            asked.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        train(settings(run={"trackers": "wandb", "tracker_wait_s": 60}), observer=stop)
    assert time.monotonic() - asked[0] < 10
    assert not _children()
