"""Imitation: the student learns to write the answers that it is given."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage import signals
from tutelage.config import Config, OptimizerConfig
from tutelage.errors import GuardStop
from tutelage.gradient import accumulate_likelihood
from tutelage.models.compatibility import require_context
from tutelage.models.loading import load_student
from tutelage.models.local import LocalModel
from tutelage.optimizing import learning_rate, make_optimizer, take_step
from tutelage.runs.checkpoints import (
    newest_checkpoint,
    prune,
    restore_optimizer,
    save_checkpoint,
    set_aside,
)
from tutelage.runs.directory import Run, finite, read_lines
from tutelage.runs.interrupts import Interrupts
from tutelage.trainer import Observer
from tutelage.types import Rollout

_VALIDATIONS = 10


@dataclass(frozen=True, kw_only=True)
class Imitated:
    """What imitation came to."""

    checkpoint: Path
    """The student with the lowest validation loss, or the last one where nothing was validated."""
    step: int
    """Its step."""
    steps: int
    """Steps taken."""
    planned: int
    """Steps that there were to be."""
    answers: int
    """Answers imitated."""
    validation: Sequence[tuple[int, float]]
    """Step and validation loss in nats a token, the student before it first."""
    seconds: float
    """Of this sitting."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "step": self.step,
            "steps": self.steps,
            "planned": self.planned,
            "answers": self.answers,
            "validation": [list(pair) for pair in self.validation],
            "seconds": round(self.seconds, 1),
        }


def imitate(
    config: Config,
    run: Run,
    answers: Sequence[Rollout],
    *,
    interrupts: Interrupts,
    observer: Observer,
) -> Imitated:
    """Learn the answers, from the newest checkpoint in `run` where there is one.

    Raises:
        GuardStop: a loss that is not finite.
        Preempted: a signal asked for a stop; the state is saved.
    """
    started = time.monotonic()
    learner = Learner(config, run, answers, observer)
    learner.validate()
    while learner.step < learner.steps and not learner.stalled:
        learner.update()
        if learner.step % learner.every == 0 or learner.step == learner.steps:
            learner.validate()
            learner.save()
        if interrupts.requested:
            learner.save()
            interrupts.heed(
                f" at step {learner.step} of the imitation, state saved; continue with the same "
                "command and --resume"
            )
    learner.save()
    best = learner.best_step if learner.lessons.validation else learner.step
    return Imitated(
        checkpoint=run.checkpoints / f"step-{best}",
        step=best,
        steps=learner.step,
        planned=learner.steps,
        answers=len(learner.lessons.training),
        validation=[(r["step"], r["loss"]) for r in learner.validations],
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Lessons:
    """Answers to imitate, and those of other questions that measure how well that goes."""

    training: Sequence[Rollout]
    validation: Sequence[Rollout]

    @classmethod
    def split(cls, answers: Sequence[Rollout], share: float, seed: int) -> "Lessons":
        """All answers of a question on one side; at least one question on each where there are two.

        Raises:
            GuardStop: no answer.
        """
        questions = list(dict.fromkeys(answer.prompt.id for answer in answers))
        count = min(max(1, round(share * len(questions))), len(questions) - 1) if share else 0
        order = np.random.default_rng([seed, len(questions)]).permutation(len(questions))
        held = {questions[i] for i in order[:count]}
        return cls(
            [a for a in answers if a.prompt.id not in held],
            [a for a in answers if a.prompt.id in held],
        )


class Learner:
    """The state of an imitation, and the stages of its step."""

    def __init__(
        self, config: Config, run: Run, answers: Sequence[Rollout], observer: Observer
    ) -> None:
        self.config, self.run, self.observer = config, run, observer
        settings = config.cold_start
        self.lessons = Lessons.split(answers, settings.validation, config.run.seed)
        size = min(settings.batch_size, len(self.lessons.training))
        self.batch_size, self.per_epoch = size, len(self.lessons.training) // size
        needed = math.ceil(settings.epochs * len(self.lessons.training) / size)
        self.steps = settings.steps or needed
        self.every = settings.every or max(1, self.steps // _VALIDATIONS)
        self.optimizing: OptimizerConfig = config.optimizer.model_copy(
            update={
                "lr": settings.lr,
                "schedule": settings.schedule,
                "warmup_steps": math.ceil(settings.warmup * self.steps),
            }
        )
        self.step, self.saved = 0, -1
        self.records: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        self.student, self.optimizer = self._load()

    def _load(self) -> tuple[LocalModel, torch.optim.Optimizer]:
        checkpoint, skipped = newest_checkpoint(self.run.checkpoints)
        set_aside(self.run.checkpoints, skipped)
        student = load_student(
            self.config.student,
            precision=self.config.optimizer.precision,
            seed=self.config.run.seed,
            checkpoint=None if checkpoint is None else str(checkpoint.path),
        )
        everything = [*self.lessons.training, *self.lessons.validation]
        longest = max(everything, key=lambda r: len(r.prompt_ids) + len(r.completion_ids))
        require_context(
            student,
            "student",
            len(longest.prompt_ids),
            len(longest.completion_ids),
            "cold_start.max_new_tokens",
        )
        optimizer = make_optimizer(student, self.optimizing)
        self.run.cut_torn_lines()
        if checkpoint is not None:
            restore_optimizer(checkpoint, optimizer)
            self.step = self.saved = checkpoint.step
        if self.run.metrics.exists():
            self.run.truncate_after(self.step if checkpoint is not None else -1)
            records = list(read_lines(self.run.metrics))
            self.records = [r for r in records if r["kind"] == "train"]
            self.validations = [r for r in records if r["kind"] == "validation"]
        return student, optimizer

    def batch(self) -> list[Rollout]:
        """The answers of this step: every epoch walks them all in an order of its own."""
        epoch, place = divmod(self.step, self.per_epoch)
        rng = np.random.default_rng([self.config.run.seed, epoch])
        order = rng.permutation(len(self.lessons.training))
        start = place * self.batch_size
        return [self.lessons.training[i] for i in order[start : start + self.batch_size]]

    def update(self) -> None:
        """One optimizer step, and its record.

        Raises:
            GuardStop: the loss was not finite several times in a row.
        """
        started = time.monotonic()
        answers = self.batch()
        loss = self._loss(answers)
        lr = learning_rate(self.optimizing, self.step, self.steps)
        norm, applied = take_step(
            self.optimizer, self.student, loss, lr=lr, grad_clip=self.optimizing.grad_clip
        )
        self.step += 1
        self.student.policy_step = self.step
        self._log(
            {
                "kind": "train",
                "step": self.step,
                "applied": applied,
                "lr": lr,
                **finite({"loss": loss, "grad_norm": norm}),
                "tokens": sum(len(answer.completion_ids) for answer in answers),
                "perf/step_s": time.monotonic() - started,
            },
            self.records,
        )
        signal = signals.non_finite(self.records, self.config.guards.non_finite_limit)
        if signal is not None:
            raise GuardStop(f"{signal.name}: {signal.evidence}. To mend it: lower cold_start.lr")

    @torch.no_grad()
    def validate(self) -> None:
        """The mean loss of answers that are not imitated, once a step."""
        if self.lessons.validation and self.step not in {r["step"] for r in self.validations}:
            loss = self._loss(self.lessons.validation)
            record = {"kind": "validation", "step": self.step, **finite({"loss": loss})}
            if "loss" in record:
                self._log(record, self.validations)

    @property
    def best_step(self) -> int:
        """Step of the lowest validation loss among those kept; 0 is the student as it was."""
        later = [r for r in self.validations if r["step"]]
        return int(min(later, key=lambda r: r["loss"])["step"]) if later else self.step

    @property
    def stalled(self) -> bool:
        """Whether validation stopped improving."""
        patience = self.config.cold_start.patience
        losses = [r["loss"] for r in self.validations]
        return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])

    def save(self) -> None:
        """A checkpoint of the whole state at this step, unless it has one."""
        if self.saved == self.step:
            return
        save_checkpoint(self.run.checkpoints, self.step, self.student, self.optimizer, {})
        self.saved = self.step
        prune(self.run.checkpoints, self.config.run.keep, protected=[self.best_step])

    def _loss(self, answers: Sequence[Rollout]) -> float:
        return accumulate_likelihood(
            self.student,
            answers,
            micro_batch_size=self.optimizing.micro_batch_size,
            layout=self.config.cold_start.layout,
        )

    def _log(self, record: dict[str, Any], kept: list[dict[str, Any]]) -> None:
        self.run.log_metrics(record)
        kept.append(record)
        self.observer({**record, "of": self.steps})
