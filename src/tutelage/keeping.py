"""What a run keeps: its newest and its best checkpoints, and the finished student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from tutelage.config import Config
from tutelage.errors import GuardStop
from tutelage.metrics import Record
from tutelage.models.average import FILE as AVERAGE
from tutelage.models.sharded import is_sharded, own_parts
from tutelage.publishing import STUDENT, Finished, model_card, write_student
from tutelage.ranks import ALONE, Ranks
from tutelage.ranks.saving import save_sharded
from tutelage.runs.checkpoints import (
    Checkpoint,
    making_room,
    prune,
    restore_optimizer,
    save_checkpoint,
    saved_steps,
    set_aside,
    size_of_checkpoint,
)
from tutelage.runs.directory import Run, replace_text, to_json
from tutelage.session import Session
from tutelage.signals.standing import Standing


class Keeper:
    """Writes the checkpoints of a run, and knows which of them is the best."""

    def __init__(
        self,
        config: Config,
        run: Run,
        session: Session,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.run, self.ranks = config, run, ranks
        self.student, self.average = session.models.student, session.average
        self.optimizer = optimizer
        judged: Literal["accuracy", "reverse_kl"] = (
            "accuracy" if session.verify is not None else "reverse_kl"
        )
        self.standing = Standing(config.evaluation.metric or judged)
        self.saved: int | None = None

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step is kept."""
        return self.run.checkpoints / f"step-{step}"

    # --- the best ----------------------------------------------------------------------------

    @property
    def best_step(self) -> int | None:
        """Step of the best evaluation, where its weights are kept; those of the start never are."""
        best = self.standing.best_step
        return best if best > 0 and best in saved_steps(self.run.checkpoints) else None

    def best_steps(self) -> list[int]:
        """Steps of the `run.keep_best` best evaluations after the start, the best first."""
        best = self.standing.best(self.config.run.keep_best)
        return [step for step in best if step]

    def hear(self, step: int, record: Record, applied: bool) -> bool:
        """Take in an evaluation; whether the weights of its step are worth a checkpoint."""
        self.saved = None  # what a checkpoint of this step should hold has changed
        self.standing.hear(step, record, applied)
        return applied and step in self.best_steps()

    def point_to_best(self) -> None:
        """best.json, which only names a checkpoint that exists."""
        path = self.run.checkpoints / "best.json"
        if self.best_step is not None:
            replace_text(path, to_json({"step": self.best_step}))
        else:
            path.unlink(missing_ok=True)

    # --- checkpoints -------------------------------------------------------------------------

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """A checkpoint of student, optimizer and `state` of the loop, unless the step has one.

        Raises:
            GuardStop: the weights are not finite; older checkpoints are worth more.
            MachineError: the disk has no room for it, also with all but the newest and the best
                checkpoints removed.
        """
        if self.saved == step:
            return
        self.require_finite(step)
        root, sharded = self.run.checkpoints, is_sharded(self.student)
        further = {} if self.average is None else {AVERAGE: self.average.tensors()}

        def write() -> None:
            self.run.write_waiting()  # a checkpoint without the records before it is none
            if sharded:
                save_sharded(self.ranks, root, step, self.student, self.optimizer, state)
            else:
                save_checkpoint(root, step, self.student, self.optimizer, state, further)

        if self.ranks.first or sharded:
            making_room(
                write,
                root,
                keep=self.best_steps(),
                needed=size_of_checkpoint(self.student, self.optimizer),
                otherwise=go_on(self.run),
                prunes=self.ranks.first,
            )
        if self.ranks.first:
            prune(root, self.config.run.keep, protected=self.best_steps())
            self.point_to_best()
        self.ranks.exchange()
        self.saved = step

    def require_finite(self, step: int) -> None:
        """Refuse to keep weights that are not finite on some rank.

        Raises:
            GuardStop: they are not.
        """
        finite_here = all(bool(p.isfinite().all()) for p in own_parts(self.student))
        if self.ranks.any(not finite_here):
            raise GuardStop(
                f"the student's weights are not finite at step {step}, so they are not "
                f"saved. To mend it: lower optimizer.lr. {anew(self.run)}"
            )

    def restore(self, checkpoint: Checkpoint, skipped: Mapping[str, str]) -> None:
        """The optimizer and the moving average as a checkpoint left them.

        The `skipped` damaged ones, by name, are set aside.
        """
        if self.run.writes:
            set_aside(self.run.checkpoints, skipped)
        self.saved = checkpoint.step
        restore_optimizer(checkpoint, self.optimizer)
        if self.average is not None:
            self.average.restore(checkpoint.path)

    def recall(self, evaluations: Mapping[int, Record], applied: Mapping[int, bool]) -> None:
        """Take in the evaluations of a run that goes on, and which of its steps were applied."""
        for step, record in evaluations.items():
            self.standing.hear(step, record, applied.get(step, True))
        if self.run.writes:
            self.point_to_best()

    # --- the finished student ----------------------------------------------------------------

    def write_student(self, steps: int, evaluations: Mapping[int, Record]) -> Path:
        """The best weights that are kept, else the last, in a folder with a model card.

        `steps` were taken in all.
        """
        best = self.best_step
        step = steps if best is None else best
        finished = Finished(
            config=self.config,
            step=step,
            steps=steps,
            evaluations=evaluations,
            metric=self.standing.metric,
            improved=best is not None,
        )
        folder = self.run.path / STUDENT
        if self.ranks.first:
            card = model_card(finished)
            write_student(folder, self.checkpoint(step), self.config.student, card)
        return folder


def go_on(run: Run) -> str:
    """How a run is continued, in words."""
    return f"continue with tutelage train -c {run.path / 'config.yaml'} --resume"


def anew(run: Run) -> str:
    """How a run goes on with other settings, which --resume would refuse, in words."""
    steps = saved_steps(run.checkpoints)
    start = f" and --student.path {steps[max(steps)]} to start from there" if steps else ""
    return (
        "It can go on with changed settings by --resume and --allow-change SETTING, or anew: "
        f"another --run.dir{start}"
    )
