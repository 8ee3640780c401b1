"""Does what `align` measures help training? Token weights and probes on the embedded pair.

    python benchmarks/alignment_uses.py --output results.jsonl     # resumes where it stopped
    python benchmarks/alignment_uses.py --output results.jsonl --table
    python benchmarks/alignment_uses.py --output results.jsonl --policies [--table]

A seed decides training prompts, sampling and the questions of the alignment; the models are the
shipped ones. Differences are paired by seed.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

STEPS = 100
SEEDS = (0, 1, 2, 3, 4)
TEACHERS = ("compatible", "incompatible")
HELD_OUT = 500
ALIGN = {"questions": 32, "samples": 8, "spines": 4, "rollouts": 8, "budget": 200_000}
EVERY = 25
PROBE = {"every": EVERY, "questions": 24, "budget": 30_000, "patience": 2}

# Name of a run -> teacher, objective.weight, changes of the probe.
RUNS: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any] | None]] = {
    f"{teacher}, {name}": (teacher, weight, None)
    for teacher in TEACHERS
    for name, weight in {
        "uniform": None,
        "reliability": {"type": "reliability", "table": "table.json"},
        "gate": {"type": "reliability", "table": "table.json", "gate": True},
    }.items()
}
RUNS |= {
    "compatible, probe warns": ("compatible", None, {"policy": "warn"}),
    "incompatible, probe stops": ("incompatible", None, {"policy": "stop"}),
    "incompatible, probe switches": ("incompatible", None, {"policy": "switch_teacher"}),
    "incompatible, probe switches at once": (
        "incompatible",
        None,
        {"policy": "switch_teacher", "patience": 1},
    ),
}
LOWER = {"policy": {"type": "lower_weight", "factor": 0.5, "floor": 0.01}, "patience": 1}
POLICIES: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any] | None]] = {
    "incompatible, probe lowers": ("incompatible", None, LOWER),
    "incompatible and a reward": ("incompatible", None, None),
    "incompatible and a reward, probe lowers": ("incompatible", None, LOWER),
    "compatible, probe widens": (
        "compatible",
        None,
        {"policy": {"type": "curriculum", "start": 0.25, "widen": 0.25}, "patience": 1},
    ),
}
"""Runs of `--policies`; rewards are those of groups of 4, in as many rollouts a step."""


def settings(folder: Path, teacher: str, seed: int) -> dict[str, Any]:
    """The demo's settings with another teacher, as a user would write them."""
    from tutelage.demonstration import demo_config
    from tutelage.lab.embedded import EMBEDDED_SPEC, model_path
    from tutelage.lab.tasks import write_prompts

    task = EMBEDDED_SPEC.task
    write_prompts(folder / "prompts.jsonl", task.train_prompts(STEPS * 64, seed))
    write_prompts(folder / "held_out.jsonl", task.eval_prompts(HELD_OUT))
    tree = demo_config(folder, seed).model_dump(mode="json")
    tree["teacher"]["path"] = str(model_path(teacher))
    tree["evaluation"]["every"] = EVERY
    tree["run"] |= {"steps": STEPS, "save_every": 0, "record_rollouts": 0}
    return tree


def measure(teacher: str, seed: int) -> dict[str, Any]:
    """The reliability table of a teacher, on questions of neither training nor evaluation."""
    from tutelage.alignment.job import align
    from tutelage.config import parse_config
    from tutelage.lab.embedded import EMBEDDED_SPEC
    from tutelage.lab.tasks import write_prompts

    task = EMBEDDED_SPEC.task
    evaluated = {prompt.question for prompt in task.eval_prompts(HELD_OUT)}
    questions = task.eval_prompts(2 * ALIGN["questions"], seed=100 + seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = settings(folder, teacher, seed)
        fresh = [prompt for prompt in questions if prompt.question not in evaluated]
        write_prompts(folder / "held_out.jsonl", fresh)
        tree["align"] = {**tree["align"], **ALIGN, "objectives": {}}
        found = align(parse_config(tree), folder / "align")
        table = json.loads((folder / "align" / "reliability.json").read_text())
    pooled = found.pooled["teacher", "objective"]
    return {
        "table": table,
        "alignment": pooled.alignment and pooled.alignment.value,
        "advantage": [pooled.advantage.value, *(pooled.advantage.interval or ())],
        "dot": [pooled.dot.value, *(pooled.dot.interval or ())],
    }


def distil(run: str, seed: int, table: dict[str, Any] | None) -> dict[str, Any]:
    """One training run: accuracy by step, probes, how it ended."""
    from tutelage.config import parse_config
    from tutelage.lab.embedded import model_path
    from tutelage.runs.directory import read_lines
    from tutelage.training import train

    teacher, weight, probe = (RUNS | POLICIES)[run]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = settings(folder, teacher, seed)
        if "reward" in run:
            tree["objective"]["reward"] = {"coefficient": 1.0}
            tree["rollout"] |= {"prompts_per_step": 16, "group_size": 4}
        if weight is not None:
            (folder / "table.json").write_text(json.dumps(table))
            tree["objective"]["weight"] = weight | {"table": str(folder / "table.json")}
        if probe is not None:
            align = {"samples": 8, "spines": 2, "rollouts": 8}
            other = {"other": {"path": str(model_path("compatible"))}}
            tree["rollout"]["batch_size"] = 1024
            tree["align"] = {
                **align,
                "teachers": other if probe["policy"] == "switch_teacher" else {},
                "probe": PROBE | probe,
            }
        result = train(parse_config(tree))
        records = list(read_lines(result.run / "metrics.jsonl"))
    evaluations = {r["step"]: r["accuracy"] for r in records if r["kind"] == "eval"}
    return {
        "accuracy": evaluations,
        "last": result.last["accuracy"],
        "step": result.step,
        "outcome": result.outcome,
        "probes": [
            {key.removeprefix("alignment/"): value for key, value in r.items() if "perf" not in key}
            for r in records
            if r["kind"] == "probe"
        ],
        "probe_seconds": sum(r.get("perf/probe_s", 0) for r in records),
    }


def stopping_step(probes: Sequence[dict[str, Any]], patience: int) -> int:
    """Where policy `stop` would have ended a run that was only warned."""
    from tutelage.signals import exhausted

    records = [{f"alignment/{key}": value for key, value in probe.items()} for probe in probes]
    for place, probe in enumerate(probes, 1):
        if exhausted(records[:place], patience) is not None:
            return int(probe["step"])
    return STEPS


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % t interval."""
    from tutelage.ops.intervals import student_quantile

    error = stdev(values) / len(values) ** 0.5
    return fmean(values), student_quantile(len(values) - 1) * error


def tables(rows: list[dict[str, Any]]) -> str:
    """Everything that docs/alignment.md states."""
    found = {(row["run"], row["seed"]): row for row in rows}
    seeds = sorted({seed for run, seed in found if all((name, seed) in found for name in RUNS)})

    def told(value: Callable[[int], float]) -> str:
        mean, half = mean_interval([value(seed) for seed in seeds])
        return f"{mean:.3f} ± {half:.3f}"

    def accuracy(run: str, step: int | None = None) -> Callable[[int], float]:
        if step is None:
            return lambda seed: found[run, seed]["last"]
        return lambda seed: found[run, seed]["accuracy"][str(step)]

    def gap(run: str, base: str, step: int | None = None) -> Callable[[int], float]:
        one, other = accuracy(run, step), accuracy(base, step)
        return lambda seed: one(seed) - other(seed)

    steps = (EVERY, 2 * EVERY, STEPS)
    lines = [f"seeds {seeds}", "", "| teacher, weights | " + " | ".join(map(str, steps)) + " |"]
    lines.append("|---" * (len(steps) + 1) + "|")
    for teacher in TEACHERS:
        base = f"{teacher}, uniform"
        for name in ("uniform", "reliability", "gate"):
            run = f"{teacher}, {name}"
            cells = [told(accuracy(run, step)) for step in steps]
            if run != base:
                gaps = [told(gap(run, base, step)) for step in steps]
                cells = [f"{cell} ({other})" for cell, other in zip(cells, gaps, strict=True)]
            lines.append(f"| {run} | " + " | ".join(cells) + " |")
    for teacher in TEACHERS:
        measured = [found[f"{teacher}, table", seed] for seed in seeds]
        for key in ("advantage", "dot"):
            lines.append(f"{teacher} {key}: {[row[key] for row in measured]}")
        lines += [f"A {[row['alignment'] for row in measured]}"]
        lines += [str(row["table"]["weights"]) for row in measured]
    lines += [
        "",
        "| run | ended at step | last accuracy | minus the run without a probe |",
        "|---" * 4 + "|",
    ]
    for run, (teacher, _, probe) in RUNS.items():
        if probe is None:
            continue
        ends = [found[run, seed]["step"] for seed in seeds]
        difference = told(gap(run, f"{teacher}, uniform"))
        lines.append(f"| {run} | {ends} | {told(accuracy(run))} | {difference} |")
        lines.append(f"  probe seconds {[round(found[run, s]['probe_seconds']) for s in seeds]}")
        lines.append(
            f"  teachers {[[p['next_teacher'] for p in found[run, s]['probes']] for s in seeds]}"
        )
    for run in ("incompatible, probe switches", "incompatible, probe switches at once"):
        lines.append(f"{run} - compatible uniform: {told(gap(run, 'compatible, uniform'))}")
    # Probes change no step, so stopping would have left the weights of the step it stops at.
    for patience in (1, 2):
        warned = [found["compatible, probe warns", seed]["probes"] for seed in seeds]
        ends = [stopping_step(probes, patience) for probes in warned]
        lines.append(f"compatible with policy stop, patience {patience}, would end at {ends}")
    lines += ["", "| step | advantage (low, high), a seed each |", "|---|---|"]
    for index in range(STEPS // EVERY + 1):
        probes = [found["compatible, probe warns", seed]["probes"][index] for seed in seeds]
        cells = [
            f"{p['advantage']:.4f} ({p.get('advantage/low', float('nan')):.4f}, "
            f"{p.get('advantage/high', float('nan')):.4f})"
            if "advantage" in p
            else p.get("note", "-")
            for p in probes
        ]
        lines.append(f"| {probes[0]['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def policy_table(rows: list[dict[str, Any]]) -> str:
    """What docs/alignment.md states of `lower_weight` and `curriculum`."""
    found = {(row["run"], row["seed"]): row for row in rows}
    bases = {
        "incompatible, probe lowers": "incompatible, uniform",
        "incompatible and a reward, probe lowers": "incompatible and a reward",
        "compatible, probe widens": "compatible, uniform",
    }
    lines = []
    for run, base in bases.items():
        seeds = sorted(seed for name, seed in found if name == run and (base, seed) in found)
        for name in (base, run):
            cells = []
            for step in (EVERY, 2 * EVERY, STEPS):
                values = [found[name, seed]["accuracy"][str(step)] for seed in seeds]
                mean, half = mean_interval(values)
                cell = f"{mean:.3f} ± {half:.3f}"
                if name == run:
                    others = [found[base, seed]["accuracy"][str(step)] for seed in seeds]
                    gaps = [a - b for a, b in zip(values, others, strict=True)]
                    cell += " ({:+.3f} ± {:.3f})".format(*mean_interval(gaps))
                cells.append(cell)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for key in ("next_weight", "next_window", "advantage/low", "accuracy"):
            told = [[p.get(key) for p in found[run, seed]["probes"]] for seed in seeds]
            if any(value is not None for of_seed in told for value in of_seed):
                lines.append(f"  {key} {told}")
        lines.append(f"  probe seconds {[round(found[run, s]['probe_seconds']) for s in seeds]}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--policies", action="store_true", help="the runs of POLICIES alone")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    rows = [
        json.loads(line)
        for path in arguments.output
        if path.exists()
        for line in path.read_text().splitlines()
    ]
    if arguments.table:
        print(policy_table(rows) if arguments.policies else tables(rows))
        return
    chosen = [f"{teacher}, table" for teacher in TEACHERS]
    bases = [f"{teacher}, uniform" for teacher in TEACHERS]
    chosen = [*bases, *POLICIES] if arguments.policies else [*chosen, *RUNS]
    import torch

    torch.set_num_threads(1)
    done = {(row["run"], row["seed"]): row for row in rows}
    with arguments.output[0].open("a") as stream:
        for seed in arguments.seeds:
            for run in chosen:
                if (run, seed) in done:
                    continue
                started = time.monotonic()
                if run.endswith(", table"):
                    row = measure(run.removesuffix(", table"), seed)
                elif (RUNS | POLICIES)[run][1] is None:
                    row = distil(run, seed, None)
                else:
                    table = done[f"{RUNS[run][0]}, table", seed]["table"]
                    open_gate = run.endswith(", gate") and min(map(min, table["weights"])) > 0
                    # A gate that drops no cell gives uniform weights.
                    row = (
                        done[run.replace("gate", "uniform"), seed]
                        if open_gate
                        else distil(run, seed, table)
                    )
                row = {**row, "run": run, "seed": seed, "seconds": time.monotonic() - started}
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                done[run, seed] = row
                print(run, seed, round(row["seconds"]), row.get("last", row.get("advantage")))


if __name__ == "__main__":
    main()
