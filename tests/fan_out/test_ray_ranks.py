"""Ranks that Ray places: which ends are final, which begin again, and which never begin."""

import re
from functools import partial
from pathlib import Path

import pytest
import ray_units

from tutelage.config import RayEngine, Resources
from tutelage.errors import Interrupted, MachineError, Preempted, RankLost
from tutelage.runs.interrupts import Interrupts
from tutelage.scale import placing
from tutelage.scale.placing import TrainingWorkers

pytestmark = pytest.mark.usefixtures("ray_here")


@pytest.fixture
def ranks(tmp_path):
    """Does work on ranks; remembers which of them were started, and what was told."""

    class Ranks:
        told = []
        interrupts = Interrupts()
        hears = staticmethod(lambda record: None)

        def run(self, work, **settings):
            def observer(record):
                self.told.append(record)
                self.hears(record)

            engine = RayEngine(**{"workers": 1, **settings})
            with TrainingWorkers(engine, self.interrupts, observer) as workers:
                return workers.run(partial(work, str(tmp_path)))

        @property
        def started(self):
            return sorted(path.name[0] for path in Path(tmp_path).iterdir())

    found = Ranks()
    found.told, found.interrupts = [], Interrupts()
    return found


def test_a_failure_that_is_no_death_is_that_error_here_and_is_not_tried_again(ranks):
    with pytest.raises(MachineError, match=r"^the disk is full; free some space$"):
        ranks.run(ray_units.second_fails, workers=2)
    assert ranks.started == ["0", "1"]
    assert ranks.told == []


def test_a_bug_in_a_worker_keeps_its_traceback_and_is_not_tried_again(ranks):
    with pytest.raises(RuntimeError, match=r"(?s)in has_a_bug.*one by nothing"):
        ranks.run(ray_units.has_a_bug)
    assert ranks.started == ["0"]


def test_workers_that_always_die_begin_again_as_often_as_is_allowed(ranks):
    with pytest.raises(RankLost, match="workers died 2 times") as caught:
        ranks.run(ray_units.dies, restarts=1)
    assert caught.value.exit_code == 5
    assert ranks.started == ["0", "0"]
    assert [r["kind"] for r in ranks.told] == ["note"]
    assert "1 of engine.restarts 1" in ranks.told[0]["text"]


def test_the_end_of_a_rank_by_another_one_s_is_a_death_unless_that_one_told_a_failure(ranks):
    with pytest.raises(RankLost, match=r"workers died 1 time, .*rank 2 ended without a word"):
        ranks.run(ray_units.hears_of_another, restarts=0)
    assert ranks.started == ["0"]


def test_a_request_to_stop_reaches_the_workers_who_save(ranks):
    def ask(record):
        ranks.interrupts.requested = "SIGINT"

    ranks.hears = ask
    with pytest.raises(Interrupted, match="stopped by SIGINT at step 1, state saved") as caught:
        ranks.run(ray_units.works_until_asked)
    assert caught.value.exit_code == 130
    assert ranks.started == ["0"]


def test_a_worker_of_other_versions_is_refused(ranks, monkeypatch):
    mine = placing.versions()
    monkeypatch.setattr(placing, "versions", lambda: {**mine, "torch": "1.0"})
    with pytest.raises(MachineError, match=re.escape(f"has torch {mine['torch']}, not 1.0")):
        ranks.run(ray_units.dies)
    assert ranks.started == []


def test_workers_that_find_no_place_are_an_error_at_their_deadline_or_at_a_request(ranks):
    with pytest.raises(MachineError, match=r"5 training workers had not started after .* 2 s"):
        ranks.run(ray_units.dies, workers=5, start_s=2)
    ranks.interrupts.requested = "SIGTERM"
    with pytest.raises(Preempted, match="before the workers had begun"):
        ranks.run(ray_units.dies, workers=2, student=Resources(cpus=3))
    assert ranks.started == []
