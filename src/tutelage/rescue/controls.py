"""Did it distil? The same run with something else in the teacher's place, seed by seed.

Every arm takes as many optimizer steps of as many rollouts at the same learning rate, and is
evaluated on the same held-out questions with the same draws. Seeds are the independent units.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tutelage.config import Config, dump_config, parse_config
from tutelage.errors import Interrupted, Preempted, UsageError
from tutelage.evaluation import evaluate
from tutelage.examination import EVALUATION_STEP
from tutelage.gradient import measure
from tutelage.metrics import overlap_k
from tutelage.models.checkpoints import pin_models
from tutelage.ops.intervals import mean_interval
from tutelage.rescue.cold_start import cold_start
from tutelage.runs.checkpoints import saved_steps
from tutelage.runs.directory import (
    create_run,
    environment,
    full_disk_told,
    replace_text,
    reserve_run,
    to_json,
)
from tutelage.runs.ledger import Ledger
from tutelage.runs.lock import locked
from tutelage.runs.resuming import reopen
from tutelage.session import prepare
from tutelage.trainer import Observer
from tutelage.training import train
from tutelage.types import SamplingParams

ARMS: dict[str, str] = {
    "distil": "the run itself",
    "sft": "imitation of the teacher's answers",
    "shuffled_teacher": "the teacher reads another question",
    "wrong_context": "the teacher is shown another question's context",
    "fixed_advantage": "every sampled token is made less likely, and no teacher is asked",
}
"""Every arm with what it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The seeds of one arm."""

    arm: str
    """Its name; `start` is the student before."""
    values: Mapping[int, float]
    """Accuracy, or reverse KL where nobody judges, by seed."""
    mean: float
    """Over seeds."""
    interval: tuple[float, float] | None
    """95 % over seeds; None for a single one."""
    difference: float | None
    """Of the run itself minus this arm, paired by seed; None for the run itself."""
    difference_interval: tuple[float, float] | None
    """95 % over seeds."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what is undefined."""
        told = {
            "arm": self.arm,
            "values": {str(seed): value for seed, value in self.values.items()},
            "mean": self.mean,
            "interval": self.interval and list(self.interval),
            "difference": self.difference,
            "difference_interval": self.difference_interval and list(self.difference_interval),
        }
        return {key: value for key, value in told.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Controls:
    """What a run gained beside its controls."""

    metric: str
    """accuracy, or kl/reverse where answers are not judged (then less is better)."""
    arms: Sequence[Compared]
    """The student before, the run, and its controls."""
    left_out: Mapping[str, str]
    """Controls that do not apply, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "metric": self.metric,
            "arms": [arm.to_dict() for arm in self.arms],
            "left_out": dict(self.left_out),
        }


def controls(
    config: Config,
    output: str | Path,
    *,
    seeds: int = 5,
    arms: Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer = lambda record: None,
) -> Controls:
    """Run the controls that apply, several seeds each, and compare them with the run itself.

    The directory `output` keeps a line for each finished arm and seed (results.jsonl), what its
    run recorded (runs/), and the comparison (controls.json). Their weights are not kept.

    Raises:
        TutelageError: whatever the user can mend; see `tutelage.errors`.
    """
    if resume and overwrite:
        raise UsageError("--resume continues and --overwrite deletes; give one of them")
    if seeds < 2:
        raise UsageError(f"seeds are the units of every interval, so at least 2, not {seeds}")
    chosen, left_out = _applying(config, arms)
    with full_disk_told(output), locked(output):
        folder, config = _begin(config, output, resume, overwrite)
        ledger = Ledger(folder / "results.jsonl")
        for seed in range(config.run.seed, config.run.seed + seeds):
            for arm in chosen:
                unit = f"{arm}/{seed}"
                if unit not in ledger:
                    observer({"kind": "note", "text": f"{arm}, seed {seed}"})
                    record = _run(config, arm, seed, folder)
                    ledger.record(unit, {"arm": arm, "seed": seed, **record})
                    _drop_weights(_place(folder, arm, seed))
        found = compare(ledger.records, left_out)
        replace_text(folder / "controls.json", to_json(found.to_dict()))
    return found


def compare(records: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> Controls:
    """Arms beside the run itself, from the records of finished arms and seeds.

    Raises:
        UsageError: answers are not judged and no divergence was measured.
    """
    metric = "accuracy" if all("accuracy" in record for record in records) else "kl/reverse"
    if any(metric not in record for record in records):
        raise UsageError("nothing can be compared without held-out questions; set data.held_out")
    by_arm: dict[str, dict[int, float]] = {"start": {}}
    for record in records:
        by_arm.setdefault(record["arm"], {})[record["seed"]] = record[metric]
        if f"start/{metric}" in record:
            by_arm["start"][record["seed"]] = record[f"start/{metric}"]
    own = by_arm["distil"]
    return Controls(
        metric=metric,
        arms=[
            Compared(
                arm=arm,
                values=values,
                mean=fmean(values.values()),
                interval=mean_interval(list(values.values())),
                **_against(own, values if arm != "distil" else {}),
            )
            for arm, values in by_arm.items()
        ],
        left_out=left_out,
    )


def _against(own: Mapping[int, float], values: Mapping[int, float]) -> dict[str, Any]:
    differences = [own[seed] - value for seed, value in values.items() if seed in own]
    return {
        "difference": fmean(differences) if differences else None,
        "difference_interval": mean_interval(differences) if differences else None,
    }


def _applying(config: Config, arms: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The arms to run, the run itself first, and why others are left out.

    Raises:
        UsageError: an arm that does not exist or does not apply was asked for.
    """
    reasons: dict[str, str] = {}
    if not config.teacher_model.columns:
        reasons["wrong_context"] = "the teacher is shown nothing but the question"
    if config.rollout.student_share < 1:
        reasons["fixed_advantage"] = (
            "a policy gradient needs the student's own rollouts, and rollout.student_share is "
            f"{config.rollout.student_share:g}"
        )
    if config.control.type != "none":
        raise UsageError(
            f"control {config.control.type} is set already; leave it out, `rescue controls` sets it"
        )
    for arm in arms or ():
        if arm not in ARMS:
            raise UsageError(f"there is no control {arm!r}; known: {', '.join(ARMS)}")
        if arm in reasons:
            raise UsageError(f"control {arm} does not apply: {reasons[arm]}")
    wanted = set(arms or ARMS) | {"distil"}
    left_out = {arm: why for arm, why in reasons.items() if arm in wanted}
    return [arm for arm in ARMS if arm in wanted and arm not in reasons], left_out


def _begin(
    config: Config, output: str | Path, resume: bool, overwrite: bool
) -> tuple[Path, Config]:
    if resume:
        run, config = reopen(output, config)
        return run.path, config
    reserve_run(output, overwrite=overwrite)
    config = pin_models(config)
    folder = create_run(output, overwrite=overwrite).path
    replace_text(folder / "environment.json", to_json(environment()))
    replace_text(folder / "config.yaml", dump_config(config))
    return folder, config


def _place(folder: Path, arm: str, seed: int) -> Path:
    return folder / "runs" / f"{arm}-{seed}"


def _run(config: Config, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One arm of one seed, from where a stop left it."""
    place = _place(folder, arm, seed)
    place.parent.mkdir(exist_ok=True)
    try:
        if arm == "sft":
            return _imitate(imitating(config, seed), place)
        tree = config.model_dump()
        tree["control"] = {"type": "none" if arm == "distil" else arm}
        tree["evaluation"] |= {"every": 0, "patience": 0}
        tree["run"] |= {"dir": str(place), "seed": seed}
        return _distil(parse_config(tree))
    except Preempted as error:
        kind = Interrupted if isinstance(error, Interrupted) else Preempted
        raise kind(
            f"stopped at {arm}, seed {seed}; what is finished is kept in {folder}; continue with "
            "the same command and --resume"
        ) from None


def _distil(config: Config) -> dict[str, Any]:
    result = train(config, resume=True)  # from where a stop left it, or from the start
    keys = ("accuracy", "kl/reverse", "rollout/length")
    last = {key: result.last[key] for key in keys if key in result.last}
    first = {f"start/{key}": result.first[key] for key in keys if key in result.first}
    return last | first


def imitating(config: Config, seed: int) -> Config:
    """Imitation with the run's steps, rollouts a step and learning rate."""
    rollout, optimizer, steps = config.rollout, config.optimizer, config.run.steps
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"seed": seed}),
            "cold_start": config.cold_start.model_copy(
                update={
                    "questions": steps * rollout.prompts_per_step,
                    "rollouts": rollout.group_size,
                    "steps": steps,
                    "batch_size": rollout.prompts_per_step * rollout.group_size,
                    "lr": optimizer.lr,
                    "schedule": optimizer.schedule,
                    "warmup": min(optimizer.warmup_steps / steps, math.nextafter(1, 0)),
                    "validation": 0.0,
                    "every": config.run.save_every or steps,
                    "patience": 0,
                    "check": False,
                }
            ),
        }
    )


def _imitate(config: Config, place: Path) -> dict[str, Any]:
    begun = (place / "config.yaml").exists()
    found = cold_start(config, place, resume=begun, overwrite=not begun)
    steps = saved_steps(place / "checkpoints")
    student = config.student
    session = prepare(config, str(steps[max(steps)] if student.lora else found.student))
    settings = config.evaluation
    result = evaluate(
        session.sampler,
        session.held_out,
        session.verify,
        SamplingParams(
            max_new_tokens=settings.max_new_tokens or config.rollout.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        ),
        samples=settings.samples,
        seed=config.run.seed,
        step=EVALUATION_STEP,
    )
    table, _ = measure(
        session.models,
        session.show_siblings(result.rollouts),
        micro_batch_size=config.optimizer.micro_batch_size,
        overlap_k=overlap_k(config.run.metrics_k, session.models.student.vocabulary),
    )
    accuracy = {"accuracy": fmean(result.accuracies)} if result.accuracies else {}
    return {
        **accuracy,
        "kl/reverse": table["kl/reverse"].double().mean().item(),
        "rollout/length": fmean(len(r.completion_ids) for r in result.rollouts),
        "answers": found.answers["kept"],
    }


def _drop_weights(place: Path) -> None:
    for name in ("checkpoints", "student"):
        shutil.rmtree(place / name, ignore_errors=True)
