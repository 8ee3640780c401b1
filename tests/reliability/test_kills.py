"""A kill at any instant loses at most one save interval, and never the newest good checkpoint."""

import os
import random
import shutil
import signal
import time

import pytest
from test_resume import kept

from helpers import read_jsonl, tiny_run
from tutelage.config import dump_config
from tutelage.runs.checkpoints import valid_checkpoints
from tutelage.runs.directory import read_lines
from tutelage.training import train

CHECKPOINTS = "tutelage.runs.checkpoints"
# Every place in a save after which the disk looks different.
IN_SAVE = [
    *({"where": f"{CHECKPOINTS}:save_file", "after": after} for after in (False, True)),
    *({"where": f"{CHECKPOINTS}:_sync", "call": call} for call in (1, 5, 9)),
    {"where": f"{CHECKPOINTS}:replace_text"},
    {"where": f"{CHECKPOINTS}:replace_text", "after": True},
    *({"where": f"{CHECKPOINTS}:Path.rename", "call": c, "after": a} for c, a in ((1, 0), (1, 1))),
    {"where": "tutelage.keeping:prune"},
    {"where": "tutelage.keeping:Keeper.point_to_best"},
]
STEPS, SAVE_EVERY, KILLS = 60, 2, 20


def killed(place):
    return {"call": 1, **place, "do": "SIGKILL"}


def newest(folder):
    found = next(valid_checkpoints(folder / "checkpoints"), None)
    return 0 if found is None else found.step


def recorded(folder):
    """The last step that the run told of."""
    metrics = folder / "metrics.jsonl"
    return max((r["step"] for r in read_lines(metrics)), default=0) if metrics.exists() else 0


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, gpt2_pair):
    """A run that saved at step 2 and goes on to step 4."""
    folder = tmp_path_factory.mktemp("two")
    make = tiny_run(folder, *gpt2_pair, lr=3e-3)
    train(make(run={"steps": 2}, evaluation={"every": 0}))
    (folder / "run.yaml").write_text(dump_config(make(evaluation={"every": 0})))
    return folder


@pytest.mark.parametrize("place", IN_SAVE, ids=lambda p: "-".join(map(str, p.values())))
def test_a_kill_in_a_save_leaves_the_checkpoint_before_it(zygote, two_steps, tmp_path, place):
    run = shutil.copytree(two_steps / "run", tmp_path / "run")
    words = ("train", "-c", two_steps / "run.yaml", "--run.dir", run, "--resume")
    status, told = zygote.run(*words, faults=[killed(place)])
    assert status == -signal.SIGKILL, told
    assert newest(run) in (2, 4)
    status, told = zygote.run(*words)
    assert status == 0, told
    steps = {path.name for path in (run / "checkpoints").iterdir()} - {"best.json"}
    assert steps == {"step-2", "step-4"}


def test_a_run_that_is_killed_twenty_times_is_the_straight_one_to_the_bit(
    zygote, written, tmp_path, request
):
    """Half of the kills come at a random instant, half at a random place of a random save."""
    seed = request.config.getoption("--chaos-seed")
    chance = random.Random(seed)
    long = {"steps": STEPS, "save_every": SAVE_EVERY}
    evaluation = {"every": 15}
    schedule = {"schedule": "cosine", "warmup_steps": 5}

    def config(name):
        run = {**long, "dir": str(tmp_path / name)}
        return written(f"{name}.yaml", run=run, evaluation=evaluation, optimizer=schedule)

    began = time.monotonic()
    assert zygote.run("train", "-c", config("straight"))[0] == 0
    step = (time.monotonic() - began) / STEPS
    path, run = config("chaos"), tmp_path / "chaos"
    lost = []
    for kill in range(KILLS):
        at, faults = newest(run), []
        if in_save := kill % 2 == 1:
            place = dict(chance.choice(IN_SAVE))
            faults = [killed({**place, "call": place.get("call", 1) + chance.randrange(2)})]
        pid = zygote.start("train", "-c", path, "--resume", faults=faults)
        if not in_save:
            further = chance.randrange(4)  # steps; 0: in the middle of loading, or of step 1
            while further and recorded(run) < at + further:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, step if further else 20 * step))
            os.kill(pid, signal.SIGKILL)
        status, told = zygote.wait()
        assert status == -signal.SIGKILL, told
        assert newest(run) >= at
        lost.append(recorded(run) - newest(run))
    assert max(lost) <= SAVE_EVERY, (seed, lost)
    status, told = zygote.run("train", "-c", path, "--resume")
    assert status == 0, told
    found, expected = kept(run), kept(tmp_path / "straight")
    for file, content in expected.items():
        assert found[file] == content, (seed, file)
    resumes = [e for e in read_jsonl(run / "events.jsonl") if e["event"] == "resume"]
    print(f"seed {seed}: steps lost at each kill {lost}, resumed at {[e['step'] for e in resumes]}")
