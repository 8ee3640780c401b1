"""The loop of on-policy distillation.

One step, top to bottom: choose prompts, sample them from the student, judge the
answers, score every sampled token with the teacher, step towards it, record.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tutelage.beginning import resume_run, start_run
from tutelage.config import DDP, Config, RayEngine, SingleProcess, parse_config
from tutelage.config.changes import leaves_of
from tutelage.errors import ServerError, Stop, UsageError
from tutelage.metrics import Record
from tutelage.ranks.beginning import require_same_start
from tutelage.ranks.joining import collectives_told, joined, place_in_launch
from tutelage.ranks.stopping import hear
from tutelage.runs.directory import full_disk_told, is_empty
from tutelage.runs.interrupts import Interrupts
from tutelage.runs.lock import locked
from tutelage.runs.presence import last_words, present
from tutelage.scale.placing import TrainingWorkers
from tutelage.scale.rank import Post
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
    allow_change: Sequence[str] = (),
    observer: Observer = lambda record: None,
) -> TrainResult:
    """Distil the teacher into the student, on the student's own samples.

    Here, as a rank that a launcher has started, or where `engine` is ray by workers that Ray
    places.

    Args:
        config: all settings.
        resume: go on in `run.dir` from its newest valid checkpoint; begin there where nothing is.
        overwrite: replace the run in `run.dir`.
        allow_change: settings, such as `optimizer.lr`, that a resumed run may change.
        observer: hears every record.

    Raises:
        TutelageError: whatever the user can mend; see `tutelage.errors`.
    """
    if resume and overwrite:
        raise UsageError(
            "--resume continues the run in run.dir and --overwrite deletes it; give one of them"
        )
    if allow_change and not resume:
        raise UsageError("--allow-change is for a run that --resume continues; leave it out")
    engine = config.engine
    if isinstance(engine, RayEngine) and place_in_launch() is None:
        config = _on_ranks(config, engine)
        work = partial(_train_there, config, resume, overwrite, tuple(allow_change))
        with (
            Interrupts() as interrupts,
            TrainingWorkers(engine, interrupts, observer) as workers,
        ):
            trained: TrainResult = workers.run(work)
        return trained
    with Interrupts() as interrupts:
        return _train_here(config, resume, overwrite, allow_change, observer, interrupts)


def _on_ranks(config: Config, engine: RayEngine) -> Config:
    """The settings with what several workers need, where they do not say how they train."""
    if engine.workers == 1 or not isinstance(config.distributed, SingleProcess):
        return config
    return parse_config(config.model_dump() | {"distributed": DDP().model_dump()})


def _train_there(
    config: Config, resume: bool, overwrite: bool, allow_change: Sequence[str], post: Post
) -> TrainResult:
    """What every worker does that Ray has placed, again or for the first time.

    A run that was to replace another has done so once it has recorded something.
    """
    if post.again and (post.begun or not overwrite):
        resume, overwrite = True, False
    return _train_here(
        config, resume, overwrite, allow_change, post.record, post.interrupts, post.fails
    )


def _train_here(
    config: Config,
    resume: bool,
    overwrite: bool,
    allow_change: Sequence[str],
    observer: Observer,
    interrupts: Interrupts,
    fails: Callable[[BaseException], None] = lambda error: None,
) -> TrainResult:
    """Train as the only process, or as a rank that somebody has started.

    `fails` hears of an error before the other ranks do.
    """
    with (
        joined(config.distributed, interrupts) as (ranks, watch),
        _told_first(fails),
        full_disk_told(config.run.dir),
        locked(config.run.dir) if ranks.first else nullcontext(),
    ):
        require_same_start(ranks, config, leaves_of(config.model_dump(mode="json")))
        observer = observer if ranks.first else _unheard
        if resume and ranks.decide(lambda: is_empty(config.run.dir)):
            observer({"kind": "note", "text": f"nothing to resume in {config.run.dir}: it begins"})
            resume = False
        if not resume:
            require_trackers(config)
        trainer = (
            resume_run(config, observer, allow_change, interrupts, ranks)
            if resume
            else start_run(config, observer, overwrite, interrupts, ranks)
        )
        every = config.evaluation.every
        watch.last_words = last_words(trainer.run)
        with (
            present(trainer.run, steps=config.run.steps, evaluate_every=every),
            collectives_told(),
            full_disk_told(config.run.dir),
            Mirrors(config, trainer.run, observer)
            if ranks.first
            else nullcontext(observer) as trainer.observer,
        ):
            try:
                outcome = run_steps(trainer)
            except ServerError as error:
                trainer.note_server_failure(error)
                raise
            student = trainer.keeper.write_student(trainer.step, trainer.evaluations)
            trainer.run.log_event("end", outcome=outcome, step=trainer.step)
        if hear(ranks, interrupts):
            interrupts.heed(f" when all was done; {student} is the finished student")
    evaluations = list(trainer.evaluations.values())
    return TrainResult(
        run=trainer.run.path,
        outcome=outcome,
        step=trainer.step,
        checkpoint=trainer.keeper.checkpoint(trainer.step),
        student=student,
        best_step=trainer.keeper.best_step,
        first=trainer.evaluations.get(0, {}),
        last=evaluations[-1] if evaluations else {},
    )


@contextmanager
def _told_first(fails: Callable[[BaseException], None]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        fails(error)
        raise


def _unheard(record: Record) -> None:
    """The first rank shows what happens."""


def run_steps(trainer: Trainer) -> str:
    """Train until the run is over; how it ended.

    Raises:
        Preempted: a signal asked for a stop; the state is saved.
    """
    try:
        while True:
            # What this step owes, also where a stop or a kill came before it was paid.
            if trainer.evaluation_is_due():
                trainer.evaluate()
            probed = trainer.probe_teacher()
            # After the evaluation of its step, so that the checkpoint keeps what it found.
            if trainer.due(trainer.config.run.save_every) and trainer.applied:
                trainer.save()
            trainer.heed()
            if outcome := probed or trainer.over():
                trainer.save()
                trainer.heed()
                return outcome
            trainer.update(trainer.next_rollouts())
            trainer.watch()
    except Stop:
        trainer.heed()
        raise
