"""Training workers that Ray places: they die, begin again, and the run is what it would be."""

import os
import signal

import psutil
import pytest
from test_together import LATE, STEPS, records, weights

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
