"""Seconds of training until a student is good, with tutelage and with TRL.

    pip install trl==1.16.0 datasets accelerate   # in an environment with tutelage[verify]
    python benchmarks/time_to_target.py --task embedded --output out
    python recipes/smollm2/prepare.py models
    python benchmarks/time_to_target.py --task smollm2 --models models --output out

Settled before the first run:

- embedded: until the student's held-out accuracy (500 questions, one sample each) is .8 of the
  teacher's; every 4 steps, at most 160; 64 prompts a step; 5 seeds.
- smollm2: until its held-out reverse KL to the teacher (16 questions) is half of what it was;
  every 2 steps, at most 40; 8 prompts a step; 2 seeds.
- The same budget of tuning: each side runs as it comes (ours with the preset `recommended`, TRL's
  with its defaults) and with the same three learning rates. TRL computes in float32, since its
  bfloat16 is fifty times slower here; otherwise "as it comes" is untouched.
- Seconds are processor seconds of the training loop on one thread; loading and the evaluations,
  which are the same code for both sides, are not counted. Runs of the sides take turns. A run
  that does not reach its target counts as taking longer than all of its steps took.

With `--arms` it tells what changes of our settings would do, at our best learning rate or at
`--rate`; all of them, or those named. Where fewer prompts are a step, there are as many more steps,
and the student is looked at after as many prompts.

What is done is kept in OUTPUT/TASK.jsonl, and the same command goes on. Prints the table.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml

from tutelage.config import ModelConfig, PromptFormat, parse_config
from tutelage.data.prompts import load_prompts
from tutelage.data.render import render
from tutelage.data.verify import make_verifier
from tutelage.evaluation import evaluate
from tutelage.gradient import Models, measure
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
from tutelage.types import SamplingParams


@dataclass(frozen=True)
class Task:
    """A pair and when its student is good."""

    prompts_per_step: int
    new_tokens: int
    every: int
    steps: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    held_out: int


TASKS = {
    "embedded": Task(64, 28, 4, 160, (0, 1, 2, 3, 4), (3e-4, 1e-3, 3e-3), 500),
    "smollm2": Task(8, 32, 2, 40, (0, 1), (1e-5, 3e-5, 1e-4), 16),
}
GROWING = {"start": 8, "steps": 20}
TOGETHER = {"prompts_per_step": 1 / 4, "steps_per_generation": 8}
MIX = {"type": "top_k", "support": "union", "k": 16, "divergence": {"type": "mix"}}
# Of our settings; prompts as a share of the task's.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "no warm-up": {"optimizer": {"warmup_steps": 0}},
    "betas .9, .95": {"optimizer": {"betas": [0.9, 0.95]}},
    "full vocabulary": {"objective": {"type": "full"}},
    "sampled token": {"objective": {"type": "sampled"}},
    "forward KL on the support": {"objective": {"divergence": {"type": "forward_kl"}}},
    "half as many prompts": {"rollout": {"prompts_per_step": 1 / 2}},
    "a quarter of the prompts": {"rollout": {"prompts_per_step": 1 / 4}},
    "a quarter, 4 rollouts each": {"rollout": {"prompts_per_step": 1 / 4, "group_size": 4}},
    "growing horizon": {"rollout": {"horizon": GROWING}},
    "growing horizon, no warm-up": {
        "rollout": {"horizon": GROWING},
        "optimizer": {"warmup_steps": 0},
    },
    "4 quarters together": {"rollout": {"prompts_per_step": 1 / 4, "steps_per_generation": 4}},
    "8 quarters together": {"rollout": TOGETHER},
    "4 quarters together, growing horizon": {
        "rollout": {"prompts_per_step": 1 / 4, "steps_per_generation": 4, "horizon": GROWING}
    },
    "8 quarters together, full vocabulary": {
        "rollout": TOGETHER,
        "objective": {"type": "full"},
    },
    "half of each KL": {"objective": MIX},
    "8 quarters together, half of each KL": {
        "rollout": TOGETHER,
        "objective": MIX,
    },
    "8 quarters together, half of each KL, full vocabulary": {
        "rollout": TOGETHER,
        "objective": {"type": "full", "divergence": {"type": "mix"}},
    },
}
SIDES = ("tutelage", "trl")
AS_IT_COMES = "as it comes"


class Target:
    """Stops the clock, looks at the student, and starts it again."""

    def __init__(self, name: str, task: Task, seed: int, models: Path | None) -> None:
        self.name, self.task, self.seed, self.every = name, task, seed, task.every
        if name == "embedded":
            spec = EMBEDDED_SPEC.task
            self.student, self.teacher = model_path("student"), model_path("compatible")
            self.training = spec.train_prompts(task.prompts_per_step * task.steps, seed)
            self.held_out = spec.eval_prompts(task.held_out)
        else:
            assert models is not None, "--task smollm2 needs --models; see the top of this file"
            self.student, self.teacher = models / "smollm2", models / "smollm2-arithmetic"
            size = task.prompts_per_step * task.steps
            rows = "reasoning_gym:chain_sum?size={}&seed={}&max_terms=3&max_digits=2"
            self.training = load_prompts(rows.format(size, seed))
            self.held_out = load_prompts(rows.format(task.held_out, 999))
        self.judge = load_model(ModelConfig(path=str(self.teacher)), "teacher")
        self.held, _ = render(self.held_out, self.judge.tokenizer, PromptFormat(), 1024)
        if name == "embedded":
            self.goal = 0.8 * self.value(self.judge)
        self.points: list[tuple[int, float, float]] = []
        self.seconds, self.began = 0.0, time.process_time()

    def value(self, model: LocalModel) -> float:
        """Accuracy, or reverse KL in nats a token."""
        params = SamplingParams(max_new_tokens=self.task.new_tokens, temperature=1.0)
        if self.name == "embedded":
            verify = make_verifier(VERIFIER)
            return fmean(evaluate(model, self.held, verify, params, seed=7, step=0).accuracies)
        rollouts = model.sample(self.held, params, seed=7, step=0)
        models = Models(student=model, teacher=self.judge, references={})
        table, _ = measure(models, rollouts, micro_batch_size=16, overlap_k=16)
        return float(table["kl/reverse"].double().mean())

    def start(self, model: LocalModel) -> None:
        """Before the first step."""
        first = self.value(model)
        if self.name != "embedded":
            self.goal = first / 2
        self.points.append((0, 0.0, first))
        self.began = time.process_time()

    def reached(self, step: int, model: LocalModel) -> bool:
        """After a step; whether the target is reached, where it is looked for."""
        self.seconds += time.process_time() - self.began
        value = None
        if step % self.every == 0:
            value = self.value(model)
            self.points.append((step, self.seconds, value))
        self.began = time.process_time()
        if value is None:
            return False
        return value >= self.goal if self.name == "embedded" else value <= self.goal

    def rows(self) -> list[dict[str, Any]]:
        """Training prompts as rows of a file."""
        return [
            {
                "id": p.id,
                "messages": [{"role": "user", "content": p.question}],
                "answer": p.answer,
            }
            for p in self.training
        ]


class Reached(Exception):
    """The student is good."""


def run_tutelage(target: Target, rate: float | None, work: Path, arm: str | None = None) -> None:
    """`tutelage.train` with the preset `recommended`."""
    import tutelage.trainer as trainer
    from tutelage import train

    task = target.task
    file = work / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in target.rows()))
    preset = resources.files("tutelage") / "presets" / "recommended.yaml"
    settings = yaml.safe_load(preset.read_text())
    settings |= {
        "student": {"path": str(target.student)},
        "teacher": {"path": str(target.teacher)},
        "data": {"prompts": str(file), "held_out": 0},
        "rollout": {"prompts_per_step": task.prompts_per_step, "max_new_tokens": task.new_tokens},
        "evaluation": {"every": 0, "teacher": 0},
        "run": {
            "dir": str(work / "run"),
            "steps": task.steps,
            "save_every": 0,
            "seed": target.seed,
        },
    }
    if rate is not None:
        settings["optimizer"] |= {"lr": rate}
    for section, changes in ARMS[arm].items() if arm else ():
        if "type" in changes:  # another objective, with its own defaults
            settings[section] = changes
        else:
            settings[section] = settings.get(section, {}) | changes
    rollout = settings["rollout"]
    if (share := rollout["prompts_per_step"]) < 1:
        rollout["prompts_per_step"] = int(share * task.prompts_per_step)
        settings["run"]["steps"] = int(task.steps / share)
        target.every = int(task.every / share)
        if "horizon" in rollout:
            rollout["horizon"] = GROWING | {"steps": int(GROWING["steps"] / share)}
    students: list[LocalModel] = []
    next_rollouts = trainer.Trainer.next_rollouts

    def first_turn(self: Any) -> Any:
        if not students:
            students.append(self.models.student)
            target.start(students[0])
        return next_rollouts(self)

    trainer.Trainer.next_rollouts = first_turn  # type: ignore[method-assign]

    def observer(record: dict[str, Any]) -> None:
        if record["kind"] == "train" and target.reached(record["step"], students[0]):
            raise Reached

    train(parse_config(settings), overwrite=True, observer=observer)


def run_trl(target: Target, rate: float | None, work: Path) -> None:
    """TRL's stable trainer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    task = target.task
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32)
        for m in (target.student, target.teacher)
    )
    tokenizer = AutoTokenizer.from_pretrained(target.student, padding_side="left")
    local = LocalModel(model=student, tokenizer=tokenizer)

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            target.start(local)

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            student.eval()
            reached = target.reached(state.global_step, local)
            student.train()
            if reached:
                raise Reached

    swept = {} if rate is None else {"learning_rate": rate}
    DistillationTrainer(
        model=student,
        teacher_model=teacher,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": row["messages"]} for row in target.rows()]),
        callbacks=[Clock()],
        args=DistillationConfig(
            output_dir=str(work / "trl"),
            per_device_train_batch_size=task.prompts_per_step,
            max_steps=task.steps,
            max_completion_length=task.new_tokens,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=target.seed,
            **swept,
        ),
    ).train()


def run_one(options: argparse.Namespace) -> None:
    """One run in this process; prints what it found."""
    import tempfile

    target = Target(options.task, TASKS[options.task], options.seed, options.models)
    run: Callable[[Target, float | None, Path], None] = run_trl
    if options.side == "tutelage":
        run = partial(run_tutelage, arm=options.arm)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    reached = False
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(target, options.rate, Path(folder))
        except Reached:
            reached = True
    found = {"reached": reached, "seconds": target.seconds, "points": target.points}
    print(json.dumps(found), file=out, flush=True)


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=list(TASKS), default="embedded")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--arms", nargs="*", choices=list(ARMS))
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.side:
        run_one(options)
        return
    task, file = TASKS[options.task], options.output / f"{options.task}.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    done = read(file)
    for seed in task.seeds:
        for rate in (None, *task.rates):
            for side in SIDES:
                run_missing(done, file, options, side, seed, rate)
    print("\n".join(table(task, done)))
    if options.arms is not None:
        arms = options.arms or list(ARMS)
        rate = options.rate or best_rate(task, done, "tutelage")
        for seed in task.seeds:
            for arm in arms:
                run_missing(done, file, options, "tutelage", seed, rate, arm)
        print("\n".join(table_of_arms(task, done, rate, arms)))


def read(file: Path) -> list[dict[str, Any]]:
    """What is done."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_missing(
    done: list[dict[str, Any]],
    file: Path,
    options: argparse.Namespace,
    side: str,
    seed: int,
    rate: float | None,
    arm: str | None = None,
) -> None:
    """A run in a process of its own, unless it is done."""
    named = {"seed": seed, "rate": rate, "side": side, "arm": arm}
    if any({key: d.get(key) for key in named} == named for d in done):
        return
    command = [sys.executable, __file__, "--task", options.task, "--side", side]
    given = {"--seed": seed, "--rate": rate, "--arm": arm, "--models": options.models}
    command += [word for k, v in given.items() if v is not None for word in (k, str(v))]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        raise SystemExit(said.stderr[-3000:])
    found = {**named, **json.loads(said.stdout)}
    done.append(found)
    with file.open("a") as out:
        out.write(json.dumps(found) + "\n")
    print(side, seed, rate, arm or "", found["reached"], round(found["seconds"], 1), flush=True)


def seconds_of(
    done: list[dict[str, Any]], side: str, rate: float | None, arm: str | None = None
) -> list[float]:
    """Of the runs by seed; infinite where the target was not reached."""
    runs = [d for d in done if (d["side"], d["rate"], d.get("arm")) == (side, rate, arm)]
    return [d["seconds"] if d["reached"] else float("inf") for d in sorted(runs, key=_seed)]


def best_rate(task: Task, done: list[dict[str, Any]], side: str) -> float:
    """The learning rate of the smallest median."""
    return min(task.rates, key=lambda rate: median(seconds_of(done, side, rate)))


def table_of_arms(
    task: Task, done: list[dict[str, Any]], rate: float, arms: Sequence[str]
) -> list[str]:
    """Markdown: seconds with a change; how many times as fast as without, and as TRL's best."""
    plain = seconds_of(done, "tutelage", rate)
    theirs = seconds_of(done, "trl", best_rate(task, done, "trl"))
    lines = [f"| change, at {rate} | s | plain / this | TRL's best / this |", "|---|---|---|---|"]
    for arm in arms:
        times = seconds_of(done, "tutelage", rate, arm)
        middle = median(times)
        cell = "not reached" if middle == float("inf") else f"{middle:.1f}"
        told = (ratio(times, plain), ratio(times, theirs))
        lines.append(f"| {arm} | {cell} | {told[0]} | {told[1]} |")
    return lines


def table(task: Task, done: list[dict[str, Any]]) -> list[str]:
    """Markdown: seconds by learning rate, and the best rate of each side against the other's."""
    seconds = partial(seconds_of, done)

    def cell(times: list[float], side: str, rate: float | None) -> str:
        reached = sum(t < float("inf") for t in times)
        middle = median(times)
        if middle == float("inf"):
            spent = median(d["seconds"] for d in done if (d["side"], d["rate"]) == (side, rate))
            return f"> {spent:.1f} ({reached} of {len(times)})"
        return f"{middle:.1f} ({reached} of {len(times)})"

    lines = [
        "| learning rate | tutelage, s (runs that reached it) | TRL, s | ratio |",
        "|---|---|---|---|",
    ]
    best = {side: best_rate(task, done, side) for side in SIDES}
    for rate in (None, *task.rates):
        ours, theirs = seconds("tutelage", rate), seconds("trl", rate)
        cells = [cell(ours, "tutelage", rate), cell(theirs, "trl", rate)]
        lines.append(f"| {rate or AS_IT_COMES} | {cells[0]} | {cells[1]} | {ratio(ours, theirs)} |")
    ours, theirs = seconds("tutelage", best["tutelage"]), seconds("trl", best["trl"])
    name = f"best of each: {best['tutelage']}, {best['trl']}"
    cells = [cell(ours, "tutelage", best["tutelage"]), cell(theirs, "trl", best["trl"])]
    lines.append(f"| {name} | {cells[0]} | {cells[1]} | {ratio(ours, theirs)} |")
    return lines


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Median over seeds of their seconds by ours, with the least and the most."""
    both = [b / a for a, b in zip(ours, theirs, strict=True) if a < float("inf")]
    if not both or median(both) == float("inf"):
        return ""
    return f"{median(both):.2f} [{min(both):.2f}, {max(both):.2f}]"


def _seed(found: dict[str, Any]) -> int:
    return int(found["seed"])


if __name__ == "__main__":
    main()
