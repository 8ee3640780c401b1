"""Runs that are continued from damaged directories."""

import shutil

import pytest
from fuzzing import damaged, json_file, lines_file
from hypothesis import strategies as st

from helpers import read_jsonl
from tutelage.config import load_config
from tutelage.runs.directory import read_json
from tutelage.training import train

NAMES = ("data.json", "metrics.jsonl", "positions.jsonl", "events.jsonl", "config.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_from_any_file_or_our_error(fuzz, finished_run, tmp_path, name):
    config = load_config(finished_run / "config.yaml")
    run = tmp_path / "run"
    sections = {"dir": str(run), "steps": 5}
    config = config.model_copy(update={"run": config.run.model_copy(update=sections)})
    good = (finished_run / name).read_bytes()
    contents: st.SearchStrategy[bytes] = damaged(good)
    if name.endswith(".json"):
        contents = json_file(read_json(finished_run / name))
    elif name.endswith(".jsonl"):
        contents = lines_file(read_jsonl(finished_run / name), ("step", "kind", "bins"))

    def read(content):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(finished_run, run)
        shutil.rmtree(run / "checkpoints" / "step-4")  # so that records of later steps are there
        (run / name).write_bytes(content)
        result = train(config, resume=True)
        assert result.step == 5
        steps = [record["step"] for record in read_jsonl(run / "metrics.jsonl")]
        assert steps == sorted(steps)

    fuzz(read, contents, examples=12)
    assert fuzz.refused < fuzz.examples  # else nothing above was looked at
