"""How a run begins: anew, or where its newest valid checkpoint left it."""

from collections.abc import Sequence

from tutelage.config import Config, changes_on_resume, dump_config, load_config
from tutelage.errors import Stop
from tutelage.keeping import go_on
from tutelage.models.checkpoints import keep_pinned
from tutelage.ranks import ALONE, Ranks
from tutelage.ranks.beginning import newest_of_all, pin_together, require_same_parts, seen_run
from tutelage.ranks.stopping import abandoning
from tutelage.runs.directory import create_run, environment, open_run, other_versions, reserve_run
from tutelage.runs.interrupts import Interrupts
from tutelage.session import prepare
from tutelage.trainer import Observer, Trainer


def start_run(
    config: Config,
    observer: Observer,
    overwrite: bool = False,
    interrupts: Interrupts | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """A new run; its directory is filled only once everything fits together.

    Raises:
        Preempted: a signal came first; the settings are kept, for --resume to begin with.
    """
    interrupts = interrupts or Interrupts()
    run = reserve_run(config.run.dir, overwrite=overwrite) if ranks.first else seen_run(config)

    def create() -> None:
        if ranks.first:
            create_run(run.path, overwrite=overwrite)

    try:
        with abandoning(ranks, interrupts):
            config = pin_together(config, ranks)
            session = prepare(config)
            require_same_parts(ranks, session.digests(), session.models.student)
            trainer = Trainer(config, run, session, observer, interrupts, ranks)
    except Stop:
        create()
        run.write_text("config.yaml", dump_config(config))
        interrupts.heed(f" before the first step; {go_on(run)}")
    create()
    trainer.begin()
    return trainer


def resume_run(
    config: Config,
    observer: Observer,
    allowed: Sequence[str] = (),
    interrupts: Interrupts | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """The run in `run.dir`, as its newest valid checkpoint left it, or from its first step.

    `allowed` names the settings that may differ from those that the run began with.

    Raises:
        Preempted: a signal came first.
    """
    interrupts = interrupts or Interrupts()
    run = open_run(config.run.dir) if ranks.first else seen_run(config)
    saved = load_config(run.path / "config.yaml")
    config = keep_pinned(config, saved)
    changes = changes_on_resume(saved, config, allowed)
    checkpoint, skipped = newest_of_all(ranks, run.checkpoints)
    try:
        with abandoning(ranks, interrupts):
            if checkpoint is None:
                config = pin_together(config, ranks)
            session = prepare(config, None if checkpoint is None else str(checkpoint.path))
            if checkpoint is not None:
                session.require_same_prompts(run.path / "data.json", config)
                if not any(change.startswith("teacher.") for change in changes):
                    session.require_same_teacher(run.path / "servers.json")
            require_same_parts(ranks, session.digests(), session.models.student)
            trainer = Trainer(config, run, session, observer, interrupts, ranks)
    except Stop:
        interrupts.heed(f" while models were loaded; {go_on(run)}")
    faults = [f"{name}: {fault}" for name, fault in skipped.items()]
    for text in [*changes, *faults, *other_versions(run.path / "environment.json")]:
        observer({"kind": "note", "text": f"resumed although {text}"})
    if checkpoint is None:
        trainer.begin()
    else:
        trainer.restore(checkpoint, skipped)
        trainer.write_settings()
        trainer.tell_notes()
    if trainer.step >= config.run.steps:
        text = f"all {config.run.steps} steps were taken before; a larger run.steps goes on"
        observer({"kind": "note", "text": text})
    run.log_event(
        "resume",
        step=trainer.step,
        changed=changes,
        skipped=faults,
        set_aside=[f"damaged.{name}" for name in skipped],
        versions=environment()["versions"],
    )
    return trainer
