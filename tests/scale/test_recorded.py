"""Recorded rollouts give one process's losses and weights on any number of ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import save_tiny_llama, sums, write_jsonl

HERE = Path(__file__).parent
TORCHRUN = Path(sys.executable).with_name("torchrun")


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks(request):
    return request.param


@pytest.fixture(scope="module")
def compared(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    save_tiny_llama(folder / "tied", tied=True)
    save_tiny_llama(folder / "untied", rows=320)
    save_tiny_llama(folder / "teacher", seed=1)
    write_jsonl(folder / "prompts.jsonl", sums(100))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    words = [TORCHRUN, "--standalone", "--nproc-per-node", str(ranks), HERE / "recorded.py", folder]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_ranks_give_the_losses_and_weights_of_one_process(compared, kind, head):
    """Twenty steps in float64, with weights and returns that need the whole step."""
    found = compared[f"{kind} {head}"]
    assert found["steps"] == 20
    assert found["losses"] < 1e-9
    assert found["weights"] < 1e-9
    assert found["moved"] > 1e-3


def test_a_rank_holds_its_part_of_a_sharded_student_and_all_of_another(compared, ranks):
    for head in ("tied", "untied"):
        # The first one's, where a dimension is no multiple of the ranks: the larger part.
        assert compared[f"fsdp2 {head}"]["held"] == pytest.approx(1 / ranks, abs=0.03)
        assert compared[f"ddp {head}"]["held"] == 1
