"""The loop of on-policy distillation.

One step, top to bottom: choose prompts, sample them from the student, judge the
answers, score every sampled token with the teacher, step towards it, record.
"""

from dataclasses import dataclass
from pathlib import Path

from tutelage.config import Config
from tutelage.errors import ServerError, UsageError
from tutelage.metrics import Record
from tutelage.runs.directory import full_disk_told
from tutelage.runs.interrupts import Interrupts
from tutelage.runs.presence import present
from tutelage.tracking.mirrors import Mirrors, require_trackers
from tutelage.trainer import Observer, Trainer


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: Path
    """Its directory."""
    outcome: str
    """finished, early_stop, time_limit, or the signal at which `align.probe` stopped:
    teacher_exhausted or student_collapsed."""
    step: int
    """Optimizer steps taken."""
    checkpoint: Path
    """The last checkpoint, to go on from."""
    student: Path
    """The finished student: the best step's weights where they are kept, else the last."""
    best_step: int | None
    """Step of the best held-out evaluation; None where its weights are those of the start."""
    first: Record
    """The evaluation before training."""
    last: Record
    """The last evaluation; a run that `max_hours` ends makes none of its own."""


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer = lambda record: None,
) -> TrainResult:
    """Distil the teacher into the student, on the student's own samples.

    Raises:
        TutelageError: whatever the user can mend; see `tutelage.errors`.
    """
    if resume and overwrite:
        raise UsageError(
            "--resume continues the run in run.dir and --overwrite deletes it; give one of them"
        )
    if not resume:
        require_trackers(config)
    with full_disk_told(config.run.dir):
        trainer = (
            Trainer.resume(config, observer)
            if resume
            else Trainer.start(config, observer, overwrite)
        )
        every = config.evaluation.every
        with (
            present(trainer.run, steps=config.run.steps, evaluate_every=every),
            full_disk_told(config.run.dir),
            Mirrors(config, trainer.run, observer) as trainer.observer,
        ):
            with Interrupts() as interrupts:
                try:
                    outcome = run_steps(trainer, interrupts)
                except ServerError as error:
                    trainer.note_server_failure(error)
                    raise
            student = trainer.write_student()
            trainer.run.log_event("end", outcome=outcome, step=trainer.step)
    evaluations = list(trainer.evaluations.values())
    return TrainResult(
        run=trainer.run.path,
        outcome=outcome,
        step=trainer.step,
        checkpoint=trainer.checkpoint,
        student=student,
        best_step=trainer.best_step if trainer.has_best() else None,
        first=trainer.evaluations.get(0, {}),
        last=evaluations[-1] if evaluations else {},
    )


def run_steps(trainer: Trainer, interrupts: Interrupts) -> str:
    """Train until the run is over; how it ended."""
    config = trainer.config
    if trainer.step == 0:
        trainer.evaluate()
        trainer.heed(interrupts)
    if outcome := trainer.probe_teacher():  # also one that a stop came before
        trainer.save()
        return outcome
    outcome = "finished"
    while trainer.step < config.run.steps:
        rollouts = trainer.next_rollouts()
        if interrupts.requested:
            trainer.pending.insert(0, rollouts)  # sampled, but not trained on
            trainer.heed(interrupts)
        trainer.update(rollouts)
        trainer.watch()
        # An evaluation goes before the checkpoint of its step, which keeps what it found.
        if trainer.due(config.evaluation.every) or trainer.step == config.run.steps:
            trainer.evaluate()
        probed = trainer.probe_teacher()
        if trainer.due(config.run.save_every) and trainer.applied:
            trainer.save()
        trainer.heed(interrupts)
        if probed:
            outcome = probed
            break
        if trainer.stalled():
            outcome = "early_stop"
            break
        if trainer.out_of_time():
            outcome = "time_limit"
            break
    if outcome == "finished":
        trainer.evaluate()
    trainer.save()
    return outcome
