"""Pairs that Ray's workers make, one of them killed, are those that this process makes."""

import os
import signal

import psutil
import pytest

from helpers import read_jsonl
from tutelage.config import RayEngine
from tutelage.lab.pairing import lab_population


def without_seconds(record):
    return {key: value for key, value in record.items() if key not in ("cpu_s", "seal")}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_pairs_made_by_workers_of_which_one_is_killed_are_those_made_here(tmp_path):
    told, killed = [], []

    def watch(record):
        told.append(record)
        if record["kind"] == "unit" and not killed:
            here = psutil.Process().children(recursive=True)
            busy = [p for p in here if p.name().startswith("ray::Worker.do")]
            if busy:
                killed.append(busy[0].pid)
                os.kill(busy[0].pid, signal.SIGKILL)

    wanted = {"tasks": ["running"], "short": True}
    here = lab_population((0, 3, 6), **wanted, output=tmp_path / "here")
    there = lab_population(
        (0, 3, 6), **wanted, output=tmp_path / "there", engine=RayEngine(workers=2), observer=watch
    )
    assert there.rows == here.rows
    assert len(killed) == 1
    assert any(r["kind"] == "note" and "another one takes its place" in r["text"] for r in told)
    ledgers = [
        sorted(
            map(without_seconds, read_jsonl(tmp_path / side / "running-short" / "pairs.jsonl")),
            key=lambda record: record["unit"],
        )
        for side in ("here", "there")
    ]
    assert ledgers[0] == ledgers[1]
    assert len(ledgers[1]) == 3
