"""Does a run at two ranks learn what one process learns? The embedded pair, seed by seed.

    python benchmarks/ranks_learn.py [--seeds 3] [--steps 80] [--output runs/ranks-learn]

Every seed trains in one process, at two ranks with ddp and at two with fsdp2 (gloo, one thread
each). Sums are rounded otherwise, so samples part after some steps; what is left is the noise of
sampling. Runs that are there are not made again. Prints a table in Markdown.
"""

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

from tutelage.config import dump_config, parse_config
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.lab.tasks import write_prompts
from tutelage.runs.directory import read_lines

KINDS = ("none", "ddp", "fsdp2")
QUESTIONS = 300
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's quantile for a mean of so many differences."""


def accuracies(folder: Path, kind: str, seed: int, steps: int) -> tuple[float, float]:
    """Before and after a run, made now where it is not there."""
    run = folder / f"{kind}-{seed}-{steps}"
    file = folder / f"{kind}-{seed}-{steps}.yaml"
    task = EMBEDDED_SPEC.task
    train_file, held_file = folder / f"train-{seed}.jsonl", folder / "held_out.jsonl"
    write_prompts(train_file, task.train_prompts(1000, seed))
    write_prompts(held_file, task.eval_prompts(QUESTIONS))
    config = parse_config(
        {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {
                "prompts": str(train_file),
                "eval_prompts": str(held_file),
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"prompts_per_step": 64, "max_new_tokens": 24},
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
            "evaluation": {"every": 0, "teacher": 0},
            "distributed": {"type": kind},
            "run": {"dir": str(run), "steps": steps, "save_every": 0, "seed": seed},
        }
    )
    file.write_text(dump_config(config))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2"]
    launch = [sys.executable] if kind == "none" else torchrun
    done = subprocess.run(
        [*launch, "-m", "tutelage", "train", "-c", str(file), "--resume"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found = [r["accuracy"] for r in read_lines(run / "metrics.jsonl") if r["kind"] == "eval"]
    return found[0], found[-1]


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--output", type=Path, default=Path("runs/ranks-learn"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    folder = given.output.absolute()
    reached: dict[str, list[float]] = {kind: [] for kind in KINDS}
    print(f"| seed | before | {' | '.join(KINDS)} |\n|---|---|---|---|---|")
    for seed in range(1, given.seeds + 1):
        row = [accuracies(folder, kind, seed, given.steps) for kind in KINDS]
        assert len({before for before, _ in row}) == 1, "the start is another one"
        for kind, (_, after) in zip(KINDS, row, strict=True):
            reached[kind].append(after)
        cells = " | ".join(f"{after:.3f}" for _, after in row)
        print(f"| {seed} | {row[0][0]:.3f} | {cells} |", flush=True)
    for kind in KINDS[1:]:
        apart = [a - b for a, b in zip(reached[kind], reached["none"], strict=True)]
        if len(apart) > 1:
            half = T_95.get(len(apart), 2.262) * stdev(apart) / math.sqrt(len(apart))
            interval = f" [{fmean(apart) - half:+.3f}, {fmean(apart) + half:+.3f}]"
        else:
            interval = ", no interval"
        print(f"\n{kind} minus one process: {fmean(apart):+.3f}{interval}, {len(apart)} seeds.")


if __name__ == "__main__":
    main()
