"""Trained models of the lab, kept by task, recipe and seed, and shared by all suites."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from transformers import LlamaForCausalLM

from tutelage.errors import UsageError
from tutelage.lab.models import (
    Training,
    TrainingOnLengths,
    fresh_model,
    make_tokenizer,
    train_model,
)
from tutelage.lab.pairs import mod_total_models, running_total_models
from tutelage.lab.tasks import ModTotal, RunningTotal, SolutionStyle, Task
from tutelage.models.anatomy import quiet_transformers
from tutelage.runs.directory import replace_text
from tutelage.runs.seals import digest_of

TASKS: dict[str, Task] = {"running": RunningTotal(), "mod": ModTotal()}
DIALLED = (0, 10, 50)
"""Percent of a dialled student's own weak data that is written in the other pattern."""

LONG = (8, 14)
"""Slots of long problems."""


def suite_recipes(task: Task, *, short: bool = False) -> dict[str, Training]:
    """How the models of the suites are made, each to a target of its own.

    `student` is weak; `compatible` is the student after post-training; `incompatible` writes the
    other pattern; `same_data` is larger and has the student's data; `dial_10` is the student after
    further weak data, 10 % of it in the other pattern; `gated` is able under template X alone;
    `student_long` is the student after weak data of all lengths up to `LONG`, and `teacher_long`
    that one after post-training. The tokens of `ModTotal` name no more slots than it has.
    """
    models = mod_total_models() if isinstance(task, ModTotal) else running_total_models()
    skill = models["student"].style.skill
    targets = {"student": 0.2, "compatible": 0.95, "incompatible": 0.9, "same_data": 0.2}
    models = {
        name: replace(training, until_accuracy=targets[name]) for name, training in models.items()
    }
    for share in DIALLED:
        models[f"dial_{share}"] = Training(
            start="student",
            style=SolutionStyle(skill=skill, other_pattern_share=share / 100),
            steps=250,
            lr=1.5e-3,
            curriculum=False,
        )
    models["gated"] = Training(
        start="student",
        style=SolutionStyle(hard_share=0.55, gate="X", skill_outside=skill),
        steps=450,
        lr=2e-3,
        curriculum=False,
        until_accuracy=0.9,
    )
    if isinstance(task, RunningTotal):
        lengths = (task.lengths[0], LONG[1])
        models["student_long"] = TrainingOnLengths(
            start="student",
            style=SolutionStyle(skill=skill),
            steps=250,
            lr=2e-3,
            curriculum=False,
            lengths=lengths,
        )
        models["teacher_long"] = TrainingOnLengths(
            start="student_long",
            style=SolutionStyle(hard_share=0.55, templates="X"),
            steps=350,
            lr=2e-3,
            curriculum=False,
            until_accuracy=0.85,
            lengths=lengths,
        )
    if not short:
        return models
    return {
        name: replace(training, steps=3, until_accuracy=None) for name, training in models.items()
    }


class KeptModels:
    """The models of one task in a folder, each trained when it is first asked for."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        short: bool = False,
        recipes: Mapping[str, Training] | None = None,
    ) -> None:
        self.folder, self.task = folder, task
        self.recipes = suite_recipes(task, short=short) if recipes is None else dict(recipes)

    def path(self, name: str, seed: int) -> Path:
        """Where a model is, trained now if nobody has.

        The name of its folder holds a digest of all that decides its weights, so a changed recipe
        is another model.

        Raises:
            UsageError: it did not reach its target.
        """
        place = self.folder / f"{name}-{seed}-{self.digest(name, seed)}"
        missed = place.with_suffix(".missed")  # a model that misses its target will do so again
        if missed.exists():
            raise UsageError(missed.read_text(encoding="utf-8"))
        if place.exists():
            return place
        with _alone(place.with_name(f".{place.name}.lock")):
            if not place.exists() and not missed.exists():
                self._train(name, seed, place, missed)
        return self.path(name, seed)

    def _train(self, name: str, seed: int, place: Path, missed: Path) -> None:
        training, model_seed = self.recipes[name], self._seed(name, seed)
        if training.start is None:
            model = fresh_model(training.size, model_seed, self.task.vocabulary)
        else:
            with quiet_transformers():
                model = LlamaForCausalLM.from_pretrained(  # nosec B615 # local
                    self.path(training.start, seed)
                )
        task = self.task
        if isinstance(training, TrainingOnLengths):
            task = replace(task, lengths=training.lengths)
        try:
            train_model(model, task, training, model_seed)
        except UsageError as error:
            replace_text(missed, f"{name}, seed {seed}: {error}")
            return
        unfinished = place.with_name(f".{place.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        with quiet_transformers():
            model.save_pretrained(unfinished)
            make_tokenizer(self.task).save_pretrained(unfinished)
        try:
            unfinished.rename(place)
        except OSError:
            if not place.exists():
                raise
            shutil.rmtree(unfinished)  # another process trained the same

    def digest(self, name: str, seed: int) -> str:
        """Of the task, the recipes and the seeds that a model comes of."""
        parts = [repr(self.task)]
        start: str | None = name
        while start is not None:
            parts.append(f"{self.recipes[start]!r} {self._seed(start, seed)}")
            start = self.recipes[start].start
        return digest_of("\n".join(parts))

    def _seed(self, name: str, seed: int) -> int:
        return 1000 * seed + list(self.recipes).index(name)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Inside, no other process that has the same folder; the kernel ends it with its process."""
    with path.open("a") as stream:
        with suppress(OSError):  # a file system without locks: at worst a model is trained twice
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)
