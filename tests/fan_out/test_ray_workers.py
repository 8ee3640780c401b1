"""Workers that die, hang, never start or are others: every unit once, or an error with a name."""

import os
import random
import re
import signal
import socket
from functools import partial

import pytest
import ray_units

from tutelage.config import RayEngine, Resources
from tutelage.errors import DataError, MachineError, ServerError, UsageError
from tutelage.scale import cluster, worker
from tutelage.scale.engines import needs_of
from tutelage.scale.ray import RayWorkers, WorkerLost
from tutelage.scale.units import Job, in_process

pytestmark = pytest.mark.usefixtures("ray_here")


def job(work):
    return Job(prepare=ray_units.load, work=work)


def workers(tell=lambda text: None, cpus=1.0, **settings):
    return RayWorkers(RayEngine(**{"workers": 2, **settings}), Resources(cpus=cpus), tell)


def test_workers_killed_at_random_leave_every_unit_done_once():
    units = {f"unit {i}": i for i in range(400)}
    dice, told, found, kills = random.Random(7), [], [], []
    with workers(told.append) as map_units:
        for name, (value, pid) in map_units(job(ray_units.power), units):
            found.append((name, value))
            if len(kills) < 3 and pid not in kills and dice.random() < 0.02:
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)
    assert len(kills) == 3
    assert len(told) >= 2  # where the last unit was finished before its worker's end was noticed
    assert sorted(found) == sorted(
        (name, value) for name, (value, _) in in_process(job(ray_units.power), units)
    )


def test_a_unit_that_ends_two_workers_ends_the_job_and_what_is_finished_is_kept():
    found, told = [], []
    units = {f"unit {i}": i for i in range(40)}
    with workers(told.append) as map_units:
        finding = map_units(job(ray_units.deadly), units)
        with pytest.raises(WorkerLost, match="unit 3 was given to two workers") as caught:
            found.extend(name for name, _ in finding)
    assert caught.value.exit_code == 5
    assert 1 <= len(told) <= 2  # once more where it was with others at first
    assert "another one takes its place" in told[0]
    assert len(found) == len(set(found)) >= 3
    assert "unit 3" not in found


def test_a_job_that_comes_again_is_not_loaded_again(tmp_path):
    marks = Job(prepare=partial(ray_units.load_and_mark, str(tmp_path)), work=ray_units.power)
    with workers(workers=1) as map_units:
        for _ in range(3):
            assert len(list(map_units(marks, {"one": 1, "two": 2}))) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_worker_is_given_two_messages_at_most_before_it_answers():
    """A unit takes as long as a message may, so a message is a unit."""
    given, most, done = [], [], 0

    class Units(dict):
        def __getitem__(self, name):
            given.append(name)
            return super().__getitem__(name)

    with workers() as map_units:
        for _ in map_units(
            job(ray_units.takes_a_while), Units({f"unit {i}": i for i in range(24)})
        ):
            most.append(len(given) - done)
            done += 1
    assert len(given) == done == 24
    assert max(most) <= 2 * 2


def test_an_error_of_a_unit_is_the_same_error_here():
    with workers() as map_units, pytest.raises(DataError, match="unit 1 cannot be read") as caught:
        list(map_units(job(ray_units.refuses), {"one": 1}))
    assert caught.value.exit_code == 4


def test_a_worker_of_other_versions_is_refused(monkeypatch):
    mine = worker.versions()
    monkeypatch.setattr(worker, "versions", lambda: {**mine, "torch": "1.0", "tutelage": "other"})
    told = re.escape(f"not other, torch {mine['torch']}, not 1.0")
    with workers() as map_units, pytest.raises(MachineError, match=told):
        list(map_units(job(ray_units.power), {"one": 1}))


def test_workers_that_never_start_are_an_error_at_their_deadline():
    with (
        workers(workers=1, cpus=5, start_s=2) as map_units,
        pytest.raises(WorkerLost, match=r"start_s 2 s: it needs 5 CPU.* 4 CPU, 0 GPU \(4 CPU"),
    ):
        list(map_units(job(ray_units.power), {"one": 1}))


def test_one_worker_that_never_starts_is_told_and_the_other_goes_on():
    told = []
    units = {f"unit {i}": i for i in range(3)}
    with workers(told.append, cpus=3) as map_units:
        map_units._settings = RayEngine(workers=2, start_s=60)
        assert len(list(map_units(job(ray_units.power), units))) == 3
        map_units._settings = RayEngine(workers=2, start_s=0.01)
        assert len(list(map_units(job(ray_units.power), units))) == 3
    assert len(told) == 1
    assert "the others go on" in told[0]


@pytest.mark.slow
def test_a_unit_that_hangs_is_given_to_another_worker_once(tmp_path):
    told = []
    with workers(told.append, unit_s=20) as map_units:
        (answer,) = map_units(job(ray_units.hangs_once), {"one": str(tmp_path / "asked")})
    assert answer == ("one", "done")
    assert "engine.unit_s 20 s" in told[0]


def test_an_address_where_nobody_or_somebody_else_listens_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ServerError, match=r"had not answered as Ray does after .* 3 s"):
            cluster._require_answer(f"127.0.0.1:{port}", 3)
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ServerError, match="cannot be reached") as caught:
            cluster._require_answer(address, 3)
    assert caught.value.exit_code == 6


def test_a_cluster_that_cannot_be_used_may_want_a_token(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    lost = ConnectionError("Failed to connect to Ray cluster")
    assert "RAY_AUTH_MODE=token" in str(cluster._refused("head:6379", lost))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "RAY_AUTH_MODE" not in str(cluster._refused("head:6379", lost))


def test_what_a_machine_does_not_have_is_refused_before_anything_starts(ray_here):
    for needs, kind in ((Resources(cpus=3), "CPU"), (Resources(gpus=1), "GPU")):
        with pytest.raises(MachineError, match=f"2 workers with . {kind} each need"):
            cluster._require_room(ray_here, RayEngine(), needs)


def test_a_worker_with_both_models_computes_with_the_larger_part_and_holds_both():
    settings = RayEngine(student=Resources(cpus=2, gpus=0.5), teacher=Resources(cpus=8, gpus=2))
    assert needs_of(settings, ("student", "teacher")) == Resources(cpus=8, gpus=2.5)
    assert needs_of(settings, ("student",)) == Resources(cpus=2, gpus=0.5)


@pytest.mark.parametrize("address", ["head", "ray://head", "http://head:1/x", "head:99999"])
def test_an_address_that_cannot_be_one_is_refused(address):
    from tutelage.config import section

    with pytest.raises(UsageError, match="no address of Ray"):
        section(RayEngine, {"address": address})
