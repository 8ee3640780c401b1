"""Does a served teacher, or a served student, train as well as in-process models do?

    python benchmarks/served.py --vllm .venv-vllm/bin/python --output served.jsonl
    python benchmarks/served.py --output served.jsonl --table

The embedded pair with the demo's settings, 3 seeds; held-out questions are paired
across the modes. One interval of the difference resamples questions, the other
is Student's over the seeds.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from results import read_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))

STEPS = 80
SEEDS = (0, 1, 2)
HELD_OUT = 500
MODES = ("in process", "served teacher", "served student")


def run(mode: str, seed: int, teacher: str, student: str, weights: Path) -> dict[str, Any]:
    """One training run, with every held-out question's reward at its end."""
    import torch

    from tutelage.config import parse_config
    from tutelage.demonstration import demo_config, question_rewards
    from tutelage.lab.embedded import EMBEDDED_SPEC
    from tutelage.lab.tasks import write_prompts
    from tutelage.runs.directory import read_lines
    from tutelage.training import train

    torch.set_num_threads(1)
    task = EMBEDDED_SPEC.task
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "prompts.jsonl", task.train_prompts(STEPS * 64, seed))
        write_prompts(folder / "held_out.jsonl", task.eval_prompts(HELD_OUT))
        tree = demo_config(folder, seed).model_dump(mode="json")
        tree["evaluation"]["every"] = 0
        tree["run"] |= {"steps": STEPS, "save_every": 0}
        if mode == "served teacher":
            tree["teacher"]["server"] = {"url": teacher}
        if mode == "served student":
            tree["student"]["server"] = {"url": student, "weights": str(weights)}
        started = time.monotonic()
        result = train(parse_config(tree))
        seconds = time.monotonic() - started
        rewards = question_rewards(result.run, result.step)
        steps = [r for r in read_lines(result.run / "metrics.jsonl") if r["kind"] == "train"]
    return {
        "mode": mode,
        "seed": seed,
        "before": result.first["accuracy"],
        "after": fmean(rewards),
        "rewards": rewards,
        "drift_k3": max(r["rollout/drift_k3"] for r in steps),
        "kl_reverse": result.last["kl/reverse"],
        "retries": sum(r.get(f"server/{mode.split()[-1]}_retries", 0) for r in steps),
        "stale": sum(r.get("server/stale_rollouts", 0) for r in steps),
        "syncs": sum(r.get("server/syncs", 0) for r in steps),
        **{
            f"{phase}_s": fmean(r[f"perf/{phase}_s"] for r in steps)
            for phase in ("rollout", "score", "update")
        },
        "seconds": seconds,
    }


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm/bin/python"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    rows = read_rows(arguments.output)
    if not arguments.table:
        _run_missing(arguments.vllm, arguments.output, {(r["mode"], r["seed"]) for r in rows})
        rows = read_rows(arguments.output)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy of each mode and seed, and each served mode's difference with its interval."""
    import numpy as np

    from tutelage.ops.intervals import bootstrap_interval, student_quantile

    by_mode = {mode: {r["seed"]: r for r in rows if r["mode"] == mode} for mode in MODES}
    lines = [
        "| mode | before | after, by seed | mean | difference | 95 %, problems | 95 %, seeds "
        "| s / step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mode, runs in by_mode.items():
        seeds = sorted(runs)
        cells = ["", "", ""]
        if mode != "in process" and seeds:
            pairs = [
                np.array(runs[s]["rewards"]) - np.array(by_mode["in process"][s]["rewards"])
                for s in seeds
            ]
            low, high = bootstrap_interval(pairs, lambda *c: fmean(float(x.mean()) for x in c))
            means = [float(p.mean()) for p in pairs]
            half = student_quantile(len(means) - 1) * stdev(means) / len(means) ** 0.5
            cells = [
                f"{fmean(means):+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                f"{fmean(means) - half:+.3f} to {fmean(means) + half:+.3f}",
            ]
        after = [runs[s]["after"] for s in seeds]
        step = fmean(r["rollout_s"] + r["score_s"] + r["update_s"] for r in runs.values())
        lines.append(
            f"| {mode} | {fmean(r['before'] for r in runs.values()):.3f} | "
            f"{', '.join(f'{a:.3f}' for a in after)} | {fmean(after):.3f} | "
            f"{' | '.join(cells)} | {step:.2f} |"
        )
    return "\n".join(lines)


def _run_missing(python: Path, output: Path, done: set[tuple[str, int]]) -> None:
    from launch import vllm_server

    from tutelage.lab.embedded import model_path

    with ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(model_path("student"), folder / "student")
        served = [
            stack.enter_context(
                vllm_server(python, path, role, port, folder / f"{role}.log", *flags)
            )
            for path, role, port, flags in (
                (model_path("compatible"), "teacher", 8141, ("--max-logprobs", "-1")),
                (folder / "student", "student", 8142, ()),
            )
        ]
        for seed in SEEDS:
            for mode in MODES:
                if (mode, seed) in done:
                    continue
                row = run(mode, seed, served[0], served[1], folder / "student")
                with output.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                shown = {key: value for key, value in row.items() if key != "rewards"}
                print(json.dumps(shown), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
