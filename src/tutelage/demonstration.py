"""The main job on the embedded pair: check, train, evaluate, report."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from tutelage.config import (
    AlignConfig,
    CheckConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PromptFormat,
    RolloutConfig,
    RunConfig,
    StudentConfig,
    TopK,
    dump_config,
)
from tutelage.data.render import render
from tutelage.data.verify import make_verifier
from tutelage.diagnose.checking import Check, check
from tutelage.errors import UsageError
from tutelage.evaluation import evaluate
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.lab.tasks import write_prompts
from tutelage.models.loading import load_model
from tutelage.ops.intervals import bootstrap_interval, gap_recovery
from tutelage.reports.page import write_report
from tutelage.runs.directory import read_lines, replace_text, to_json
from tutelage.trainer import Observer
from tutelage.training import train
from tutelage.types import Prompt, SamplingParams

STEPS = 120
EVALUATE_EVERY = 20
PROMPTS_PER_STEP = 64
HELD_OUT = 1000
MAX_NEW_TOKENS = 28  # a solution of seven slots has 23


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; accuracies are of one sample a problem at temperature 1."""

    summary: dict[str, Any]
    """The object that `--json` prints."""
    check: Check
    """What was found before training."""


def demo(
    *,
    seed: int = 0,
    output: str | Path | None = None,
    observer: Observer = lambda record: None,
) -> DemoResult:
    """Check two teachers, distil the compatible one, evaluate and write a report.

    Raises:
        UsageError: `output` exists.
    """
    started = time.monotonic()
    folder = _new_folder(output, seed)
    config = demo_config(folder, seed)
    held_out = EMBEDDED_SPEC.task.eval_prompts(HELD_OUT)
    write_prompts(
        folder / "prompts.jsonl", EMBEDDED_SPEC.task.train_prompts(STEPS * PROMPTS_PER_STEP, seed)
    )
    write_prompts(folder / "held_out.jsonl", held_out)
    (folder / "run.yaml").write_text(dump_config(config))
    found = check(config, observer=observer)
    result = train(config, observer=observer)
    replace_text(result.run / "check.json", to_json(found.to_dict()))
    before, after = result.first, result.last
    teacher_rewards = judge_teacher(held_out, seed)
    teacher = fmean(teacher_rewards)
    rewards = [question_rewards(result.run, record["step"]) for record in (before, after)]
    report = write_report([result.run])
    summary: dict[str, Any] = {
        "accuracy_before": before["accuracy"],
        "accuracy_before_interval": [before["accuracy/low"], before["accuracy/high"]],
        "accuracy_after": after["accuracy"],
        "accuracy_after_interval": [after["accuracy/low"], after["accuracy/high"]],
        "teacher_accuracy": teacher,
        "gap_recovery": gap_recovery(before["accuracy"], after["accuracy"], teacher),
        "gap_recovery_interval": bootstrap_interval(
            [np.array(column) for column in (*rewards, teacher_rewards)],
            lambda *columns: gap_recovery(*(float(column.mean()) for column in columns)),
        ),
        "overlap_mass_student_before": before["overlap/mass_student"],
        "overlap_mass_student_after": after["overlap/mass_student"],
        "reverse_kl_before": before["kl/reverse"],
        "reverse_kl_after": after["kl/reverse"],
        "verdicts": {look.teacher: look.verdict.word for look in found.looks},
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "run_dir": str(result.run),
        "report": str(report),
    }
    return DemoResult(summary, found)


def demo_config(folder: Path, seed: int) -> Config:
    """The settings of the demo's run, as a user would write them."""
    return Config(
        student=StudentConfig(path=str(model_path("student"))),
        teacher=ModelConfig(path=str(model_path("compatible"))),
        data=DataConfig(
            prompts=str(folder / "prompts.jsonl"),
            eval_prompts=str(folder / "held_out.jsonl"),
            verifier=VERIFIER,
        ),
        rollout=RolloutConfig(prompts_per_step=PROMPTS_PER_STEP, max_new_tokens=MAX_NEW_TOKENS),
        objective=TopK(),
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.95)),
        evaluation=EvaluationConfig(every=EVALUATE_EVERY),
        align=AlignConfig(
            teachers={"incompatible": ModelConfig(path=str(model_path("incompatible")))}
        ),
        check=CheckConfig(budget=40_000),
        run=RunConfig(dir=str(folder / "run"), steps=STEPS, seed=seed),
    )


def question_rewards(run: Path, step: int) -> list[float]:
    """Accuracy of each held-out question at an evaluation."""
    return [row["accuracy"] for row in read_lines(run / "eval" / f"step-{step}.jsonl")]


def judge_teacher(prompts: Sequence[Prompt], seed: int) -> list[float]:
    """Accuracy of the compatible teacher on each of the evaluation's problems, with its draws."""
    teacher = load_model(ModelConfig(path=str(model_path("compatible"))), "teacher")
    rendered, _ = render(prompts, teacher.tokenizer, PromptFormat(), 1024)
    params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    evaluation = evaluate(teacher, rendered, make_verifier(VERIFIER), params, seed=seed, step=-1)
    return evaluation.accuracies


def _new_folder(output: str | Path | None, seed: int) -> Path:
    if output is not None:
        folder = Path(output)
        if folder.exists():
            raise UsageError(f"{folder} exists; choose another --output")
    else:
        names = (f"runs/demo-seed{seed}" + (f"-{n}" if n else "") for n in count())
        folder = next(f for f in map(Path, names) if not f.exists())
    folder.mkdir(parents=True, mode=0o700)
    return folder
