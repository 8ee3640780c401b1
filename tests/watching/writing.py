"""Run directories written by hand, as a trainer would write them."""

import json
from pathlib import Path
from typing import Any


def step_record(step: int, **more: Any) -> dict[str, Any]:
    phases = {"perf/rollout_s": 0.5, "perf/score_s": 0.1, "perf/update_s": 0.4, "perf/step_s": 1.0}
    return {
        "kind": "train",
        "step": step,
        "kl/reverse": 1 / step,
        "overlap/mass_student": 1 - 0.1 / step,
        "entropy/gap": 0.2 / step,
        "rollout/length": 17.0 + step,
        "rollout/truncated": 0.25,
        **phases,
        **more,
    }


def eval_record(step: int, accuracy: float, **more: Any) -> dict[str, Any]:
    interval = {"accuracy/low": accuracy - 0.05, "accuracy/high": accuracy + 0.05}
    return {
        "kind": "eval",
        "step": step,
        "accuracy": accuracy,
        **interval,
        "kl/reverse": 0.5,
        "rollout/length": 17.0,
        "perf/eval_s": 3.0,
        **more,
    }


def append(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def make_run(path: Path, steps: int = 10, every: int = 5) -> Path:
    path.mkdir(parents=True)
    config = f"run: {{steps: {steps}}}\nevaluation: {{every: {every}}}\n"
    (path / "config.yaml").write_text(config)
    return path
