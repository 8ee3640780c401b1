"""Every preset and support on the embedded pair, at an equal token budget.

    python benchmarks/objectives.py --output results.jsonl     # resumes where it stopped
    python benchmarks/objectives.py --output results.jsonl --table

Each setting gets three learning rates and three seeds; the table shows the rate
with the best mean accuracy and, beside it, what the others gave.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from results import read_rows

STEPS = 100
SEEDS = (0, 1, 2)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
HELD_OUT = 500

# The vocabulary has 32 tokens, so the presets' k = 16 is half of it; k = 4 shows what a support
# leaves out.
SETTINGS: dict[str, dict[str, Any]] = {
    "paper_sampled_token": {"type": "sampled"},
    "paper_top_k": {"k": 16, "tail": "reference_code"},
    "paper_top_k, k 4": {"k": 4, "tail": "reference_code"},
    "paper_equation_5": {"k": 16, "tail": "renormalise"},
    "paper_equation_5, k 4": {"k": 4, "tail": "renormalise"},
    "paper_full_vocab": {"type": "full"},
    "recommended": {"k": 16, "support": "union"},
    "recommended, k 4": {"k": 4, "support": "union"},
    "student 16, bucket": {"k": 16},
    "student 4, bucket": {"k": 4},
    "student 1, bucket": {"k": 1},
    "teacher 4, bucket": {"k": 4, "support": "teacher"},
    "intersection 4, bucket": {"k": 4, "support": "intersection"},
    "symmetric difference 4, bucket": {"k": 4, "support": "symmetric_difference"},
    "student 4, drop": {"k": 4, "tail": "drop"},
    "sampled, kl baseline": {"type": "sampled", "baseline": "kl"},
    "sampled, batch mean": {"type": "sampled", "baseline": "batch_mean"},
    "sampled, bound 1": {"type": "sampled", "bound": 1.0},
    "sampled, brake 0.1": {"type": "sampled", "brake": {"coefficient": 0.1}},
    "full, forward KL": {"type": "full", "divergence": "forward_kl"},
    "full, jsd 0.5": {"type": "full", "divergence": "jsd"},
}


def run(setting: str, lr: float, seed: int) -> dict[str, Any]:
    """One training run and its last evaluation."""
    import torch

    from tutelage.config import parse_config
    from tutelage.demonstration import demo_config
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
        tree["objective"] = SETTINGS[setting]
        tree["optimizer"]["lr"] = lr
        tree["evaluation"]["every"] = 0
        tree["run"] |= {"steps": STEPS, "save_every": 0}
        started = time.monotonic()
        result = train(parse_config(tree))
        seconds = time.monotonic() - started
        events = list(read_lines(result.run / "events.jsonl"))
    signals = sorted({e["name"] for e in events if e["event"] == "signal"})
    return {
        "setting": setting,
        "lr": lr,
        "seed": seed,
        "accuracy": result.last["accuracy"],
        "reverse_kl": result.last["kl/reverse"],
        "length": result.last["rollout/length"],
        "seconds": seconds,
        "signals": signals,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a setting, at its best learning rate."""
    by_rate: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_rate[row["setting"]][row["lr"]].append(row)
    lines = [
        "| objective | lr | accuracy (lowest to highest seed) | reverse KL | length | s | "
        "accuracy at the other rates | signals |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        rates = by_rate[setting]
        means = {lr: fmean(r["accuracy"] for r in found) for lr, found in rates.items()}
        best = max(means, key=lambda lr: means[lr])
        found = rates[best]
        values = sorted(r["accuracy"] for r in found)
        others = ", ".join(f"{lr:g}: {means[lr]:.2f}" for lr in sorted(means) if lr != best)
        signals = sorted({s for r in found for s in r["signals"]})
        lines.append(
            f"| {setting} | {best:g} | {means[best]:.3f} ({values[0]:.3f} to {values[-1]:.3f}) | "
            f"{fmean(r['reverse_kl'] for r in found):.3f} | "
            f"{fmean(r['length'] for r in found):.1f} | "
            f"{fmean(r['seconds'] for r in found):.0f} | {others} | {', '.join(signals)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    rows = read_rows(arguments.output)
    if arguments.table:
        print(table(rows))
        return
    done = {(row["setting"], row["lr"], row["seed"]) for row in rows}
    jobs = [
        (setting, lr, seed)
        for lr in LEARNING_RATES
        for setting in SETTINGS
        for seed in SEEDS
        if (setting, lr, seed) not in done
    ]
    with ProcessPoolExecutor(arguments.processes) as pool, arguments.output.open("a") as stream:
        for row in pool.map(run, *zip(*jobs, strict=True)):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
