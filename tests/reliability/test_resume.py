"""N steps are k steps, a stop and N - k steps: to the bit, in everything that is kept."""

import os
import signal

import pytest

from helpers import read_jsonl
from tutelage.errors import Preempted
from tutelage.training import train

STEPS = 6
# What names a time, a process or the run's own place.
NOT_COMPARED = ("events.jsonl", "config.yaml", "MANIFEST.json", "README.md", ".lock")
RUNS = {
    # The tiny GPT-2 has dropout in its config; five rollouts go through it at once, of twelve.
    "accumulated": {},
    "scheduled": {"optimizer": {"schedule": "cosine", "warmup_steps": 2}},
    "lora": {"student": {"lora": {"rank": 2, "target_modules": ["c_attn"]}}},
    "stale": {"rollout": {"delay_steps": 1, "steps_per_generation": 2}},
    "growing": {"rollout": {"horizon": {"start": 2, "steps": 4}}},
    "average": {"teacher": {"type": "ema", "decay": 0.9, "user_prompt": "{answer}! {question}"}},
    "sampled": {"objective": {"type": "sampled"}, "evaluation": {"every": 1}},
}


def kept(run):
    """Everything in a run directory that a stop must not change."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not path.is_file() or path.name in NOT_COMPARED:
            continue
        if name == "metrics.jsonl":
            found[name] = [
                {k: v for k, v in record.items() if not k.startswith("perf/")}
                for record in read_jsonl(path)
            ]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_is_the_straight_one_to_the_bit(settings, tmp_path, name):
    sections = RUNS[name]

    def config(folder, steps=STEPS):
        run = {"dir": str(tmp_path / folder), "steps": steps, "save_every": 4, "keep": 9}
        return settings(**{**sections, "run": run})

    straight = kept(train(config("straight")).run)
    assert any("optimizer.safetensors" in file for file in straight)
    for k in (1, 3, 5):

        def stop(record, k=k):
            if record["kind"] == "train" and record["step"] == k:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Preempted):
            train(config(f"stopped-{k}"), observer=stop)
        resumed = kept(train(config(f"stopped-{k}"), resume=True).run)
        assert all(f"step-{k}/" in file for file in resumed.keys() - straight.keys())
        for file, content in straight.items():
            assert resumed[file] == content, (k, file)
