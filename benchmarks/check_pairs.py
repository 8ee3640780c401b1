"""Does the verdict of `check` come true? Lab pairs that no threshold has seen.

    python benchmarks/check_pairs.py --output results.jsonl --models models   # resumes
    python benchmarks/check_pairs.py --output third.jsonl --models models --round third
    python benchmarks/check_pairs.py --output results.jsonl --table

Every pair is made anew from a seed, checked, and then trained as it is. A verdict of go says that
training will gain, cold-start and different-teacher that it will not; unknown says nothing. A pair
gained if held-out accuracy rose by .05 or more with an interval above 0, and was harmed if its
interval lies below 0.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from results import read_rows

STEPS = 160
HELD_OUT = 500
GAIN = 0.05
RUNNING, MOD = "running total", "mod total"
# Round -> task -> seeds. Each came after the one before had shown what the rule lacked.
ROUNDS = {
    "first": {RUNNING: (11, 12, 13), MOD: (21,)},
    "second": {RUNNING: (31,)},
    "third": {RUNNING: (51, 52)},
}
# Kind -> student, teacher.
BOTH = {
    "post-trained teacher": ("student", "compatible"),
    "other pattern": ("student", "incompatible"),
    "larger, same data": ("student", "same_data"),
    "reverse": ("compatible", "student"),
}
DIALLED = {
    f"dialled to the other pattern, {share}": (f"dialled_{share}", "incompatible")
    for share in ("0.03", "0.1", "0.3")
}
PAIRS = {
    "first": BOTH
    | {
        "reverse, larger": ("compatible", "same_data"),
        "dialled to the other pattern": ("dialled", "incompatible"),
    },
    "second": BOTH | DIALLED,
    "third": BOTH | DIALLED,
}
PREDICTS = {"go": "gained", "cold-start": "no gain", "different-teacher": "no gain"}


def make_models(task: str, seed: int, folder: Path, round_: str) -> Path:
    """The models of one seed, trained once and kept."""
    from tutelage.lab.embedded import build
    from tutelage.lab.pairs import PairSpec, Training, mod_total_models, running_total_models
    from tutelage.lab.tasks import ModTotal, RunningTotal, SolutionStyle

    made = folder / f"{task.replace(' ', '-')}-{seed}"
    if made.exists():
        return made
    is_mod = task == MOD
    models = mod_total_models() if is_mod else running_total_models()
    skill = models["student"].style.skill
    # Some of its own weak solutions in the other pattern: a way over to it.
    shares = (
        {"dialled": 0.1} if round_ == "first" else {f"dialled_{x}": x for x in (0.03, 0.1, 0.3)}
    )
    for name, share in shares.items():
        models[name] = Training(
            start="student",
            style=SolutionStyle(skill=skill, other_pattern_share=share),
            steps=250,
            lr=1.5e-3,
            curriculum=False,
        )
    spec = PairSpec(task=ModTotal() if is_mod else RunningTotal(), models=models)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        build(Path(temporary) / "models", spec=spec, seed=seed)
        (Path(temporary) / "models").rename(made)
    return made


def run_pair(
    task: str, seed: int, kind: str, pair: tuple[str, str], models: Path
) -> dict[str, Any]:
    """Check, then train, one pair."""
    import tutelage
    from tutelage.lab.tasks import ModTotal, RunningTotal, write_prompts
    from tutelage.ops.intervals import difference_interval

    of = ModTotal() if task == MOD else RunningTotal()
    student, teacher = (models / name for name in pair)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_prompts(folder / "prompts.jsonl", of.train_prompts(STEPS * 64, seed))
        write_prompts(folder / "held_out.jsonl", of.eval_prompts(HELD_OUT))
        config = tutelage.parse_config(
            {
                "student": {"path": str(student)},
                "teacher": {"path": str(teacher)},
                "data": {
                    "prompts": str(folder / "prompts.jsonl"),
                    "eval_prompts": str(folder / "held_out.jsonl"),
                    "verifier": of.verifier.model_dump(),
                },
                "rollout": {"max_new_tokens": of.longest_solution + 4},
                "optimizer": {"lr": 1e-3, "betas": (0.9, 0.95)},
                "evaluation": {"every": 40},
                "run": {"dir": str(folder / "run"), "steps": STEPS, "seed": seed, "save_every": 0},
            }
        )
        found = tutelage.check(config)
        result = tutelage.train(config)
        rows = [
            [json.loads(line)["accuracy"] for line in path.read_text().splitlines()]
            for step in (0, STEPS)
            for path in [result.run / "eval" / f"step-{step}.jsonl"]
        ]
        curve = [
            json.loads(line)["accuracy"]
            for line in (result.run / "metrics.jsonl").read_text().splitlines()
            if json.loads(line)["kind"] == "eval"
        ]
    before, after = (sum(values) / len(values) for values in rows)
    low, high = difference_interval(rows[1], rows[0])
    gained = low > 0 and after - before >= GAIN
    happened = "gained" if gained else "harmed" if high < 0 else "flat"
    look = found.looks[0].to_dict()
    return {
        "task": task,
        "seed": seed,
        "kind": kind,
        "verdict": found.verdict.word,
        "because": found.verdict.reasons[0].text,
        "happened": happened,
        "before": before,
        "after": after,
        "gain": [after - before, low, high],
        "curve": curve,
        "look": {k: look[k] for k in ("capability", "alignment", "rescue", "familiar") if k in look}
        | {"shared_mass": look["agreement"]["overlap/mass_student"]},
        "check_seconds": found.seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a pair, and how often the verdict came true."""
    lines = [
        "| task, seed | pair | advantage | gap | mass | verdict | predicted | happened | true |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        advantage = row["look"].get("alignment", {}).get("advantage")
        gap = row["look"]["capability"]["accuracy"]
        low, high = advantage["interval"] if advantage else (0, 0)
        told = f"{advantage['value']:.4f} [{low:.4f}, {high:.4f}]" if advantage else "-"
        gain, gain_low, gain_high = row["gain"]
        lines.append(
            f"| {row['task']}, {row['seed']} | {row['kind']} | {told} | "
            f"{gap['gap']:+.2f} [{gap['gap_low']:+.2f}, {gap['gap_high']:+.2f}] | "
            f"{row['look']['shared_mass']:.2f} | {row['verdict']} | "
            f"{PREDICTS.get(row['verdict'], '-')} | {row['happened']}: {row['before']:.2f} -> "
            f"{row['after']:.2f}, {gain:+.2f} [{gain_low:+.2f}, {gain_high:+.2f}] | "
            f"{came_true(row)} |"
        )
    return "\n".join(lines)


def came_true(row: dict[str, Any]) -> str:
    """Whether what the verdict predicts is what happened."""
    predicted = PREDICTS.get(row["verdict"])
    if predicted is None:
        return "-"
    return "yes" if (predicted == "gained") == (row["happened"] == "gained") else "no"


def main() -> None:
    """Run what is not in the output yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=Path("lab-models"))
    parser.add_argument("--round", choices=tuple(ROUNDS), default="first")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    done = read_rows(given.output)
    if given.table:
        print(table(done))
        return
    given.models.mkdir(parents=True, exist_ok=True)
    known = {(row["task"], row["seed"], row["kind"]) for row in done}
    for task, seeds in ROUNDS[given.round].items():
        for seed in seeds:
            started = time.monotonic()
            models = make_models(task, seed, given.models, given.round)
            print(f"{task} {seed}: models after {time.monotonic() - started:.0f} s", flush=True)
            for kind, pair in PAIRS[given.round].items():
                if (task, seed, kind) in known:
                    continue
                row = run_pair(task, seed, kind, pair, models)
                with given.output.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(task, seed, kind, row["verdict"], row["happened"], flush=True)


if __name__ == "__main__":
    main()
