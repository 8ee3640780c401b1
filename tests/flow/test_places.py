"""Where a run writes: in its directory and nowhere else, for its owner alone."""

import os
import stat

import pytest

from helpers import write_jsonl
from tutelage.cli import main
from tutelage.config import dump_config
from tutelage.errors import UsageError
from tutelage.runs.directory import create_run, reserve_run
from tutelage.training import train

NAMES = ("../../x", "/abs/x", "CON", "..", "x" * 300, "a/b", "step-0", "\u202e", "a\nb", "~", "*")


def test_names_that_data_brings_become_no_paths(settings, tmp_path):
    rows = [
        {"id": name, "question": f"What is {i} + 1?", "answer": str(i + 1), "source": name}
        for i, name in enumerate(NAMES)
    ]
    place = tmp_path / "deep" / "er"
    prompts = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = settings(
        data={"prompts": str(prompts), "held_out": 4},
        rollout={"prompts_per_step": 4},
        run={"dir": str(place / "run"), "steps": 1},
    )
    before = set(tmp_path.rglob("*")) | {place.parent, place}
    run = train(made).run
    new = set(tmp_path.rglob("*")) - before
    assert all(path == run or path.is_relative_to(run) for path in new)
    allowed = {"config.yaml", "environment.json", "data.json", "metrics.jsonl", "positions.jsonl"}
    allowed |= {"events.jsonl", "rollouts", "eval", "checkpoints", "student", ".lock"}
    assert {path.name for path in run.iterdir()} <= allowed
    assert {path.name for path in (run / "rollouts").iterdir()} == {"step-0.jsonl", "step-1.jsonl"}


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_run_is_readable_by_its_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        run = create_run(tmp_path / "a" / "run")
        (tmp_path / "open").mkdir(mode=0o777)
        emptied = create_run(tmp_path / "open")
    finally:
        os.umask(before)
    for path in (run.path, emptied.path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nobody-of-this-name/x", "\udcff\ud800"])
def test_a_name_that_no_file_system_takes_is_refused_before_anything_loads(
    settings, tmp_path, name
):
    with pytest.raises(UsageError, match="cannot be used"):
        reserve_run(f"{tmp_path}/{name}" if not name.startswith("~") else name)
    with pytest.raises(UsageError):
        train(settings(run={"dir": f"{tmp_path}/{name}" if name[0] != "~" else name}))


def test_a_run_never_replaces_what_a_link_points_to(settings, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.yaml").write_text("precious")
    (tmp_path / "link").symlink_to(outside)
    made = settings(run={"dir": str(tmp_path / "link"), "steps": 1})
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="symbolic link"):
            train(made, overwrite=overwrite)
    assert (outside / "config.yaml").read_text() == "precious"


def test_overwrite_deletes_runs_alone(settings, tmp_path, capsys):
    precious = tmp_path / "home"
    (precious / "photos").mkdir(parents=True)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(settings()))
    folder = "no run directory"
    for place, told in (
        (str(precious), folder),
        (f"{tmp_path}/home/photos/..", folder),
        (str(path), "is a file, so no run may replace it"),
    ):
        assert main(["train", "-c", str(path), "--overwrite", "--run.dir", place]) == 2
        assert told in capsys.readouterr().err
    assert list(precious.iterdir()) == [precious / "photos"]
