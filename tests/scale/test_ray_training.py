"""Training workers that Ray places: they die, begin again, and the run is what it would be."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from test_together import LATE, STEPS, records, weights

from helpers import read_jsonl
from tutelage.config import load_config
from tutelage.training import train


def training_workers():
    """Processes of Ray that train, by the names it gives them."""
    return [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::Rank")]


@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_is_killed_begins_again_and_the_run_is_the_undisturbed_one_to_the_bit(
    pair, written
):
    settings = {"rollout": LATE, "run": STEPS}
    straight, killed = written(**settings), written(**settings, engine={"type": "ray"})
    pair.good("train", "-c", straight)
    told, victims = [], []

    def watch(record):
        told.append(record)
        if record["kind"] == "train" and record["step"] == 2 and not victims:
            here = {p.pid for p in psutil.Process().children(recursive=True)}
            victims.extend(p for p in training_workers() if p.pid in here)
            os.kill(victims[-1].pid, signal.SIGKILL)

    result = train(load_config(killed), observer=watch)
    assert len(victims) == 2
    assert (result.outcome, result.step) == ("finished", 4)
    deaths = [r["text"] for r in told if r["kind"] == "note" and "a worker died" in r["text"]]
    assert len(deaths) == 1
    assert "1 of engine.restarts 3" in deaths[0]
    assert records(killed) == records(straight)
    here, there = weights(killed, 4), weights(straight, 4)
    assert here.keys() == there.keys()
    assert all((here[n] == there[n]).all() for n in there)


@pytest.mark.slow
def test_sigterm_at_the_driver_saves_on_ray_and_the_run_goes_on_here_to_the_bit(pair, written):
    settings = {"rollout": LATE, "run": {**STEPS, "steps": 12}}
    straight, stopped = (written(**settings, distributed={"type": "none"}) for _ in range(2))
    assert pair.zygotes[0].run("train", "-c", straight)[0] == 0
    words = [sys.executable, "-m", "tutelage", "train", "-c", str(stopped), "--json"]
    job = subprocess.Popen(
        [*words, "--engine", "ray", "--engine.workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = stopped.parent / "run" / "metrics.jsonl"
    while not (metrics.exists() and len(read_jsonl(metrics)) > 3):
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    printed, told = job.communicate(timeout=120)
    assert job.returncode == 75, told
    assert "stopped by SIGTERM at step" in told
    assert "step    0  accuracy" in told  # as the worker went on
    assert printed == ""
    assert pair.zygotes[0].run("train", "-c", stopped, "--resume")[0] == 0
    assert records(stopped) == records(straight)


@pytest.mark.slow
def test_settings_that_ranks_refuse_end_with_2_and_are_not_tried_again(written):
    path = written(rollout={"prompts_per_step": 5})
    words = [sys.executable, "-m", "tutelage", "train", "-c", str(path), "--engine", "ray"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "a step of rollout.prompts_per_step 5 cannot be dealt to 2 ranks" in done.stderr
    assert "begin again" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (path.parent / "run").exists()
