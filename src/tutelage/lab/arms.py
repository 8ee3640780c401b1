"""What one arm of a suite does with one seed, and the numbers that come of it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tutelage.config import Config, ModelConfig, PromptFormat, parse_config
from tutelage.data.render import render
from tutelage.data.verify import judge, make_verifier
from tutelage.diagnose.continuation import right_shares
from tutelage.evaluation import evaluate
from tutelage.lab.kept import KeptModels
from tutelage.lab.tasks import Task, write_prompts
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
from tutelage.rescue.cold_start import cold_start
from tutelage.runs.directory import read_lines
from tutelage.runs.seals import digest_of
from tutelage.training import train
from tutelage.types import Prompt, RenderedPrompt, SamplingParams

Numbers = dict[str, Any]
KEYS = (
    "accuracy",
    "teacher/accuracy",
    "kl/reverse",
    "overlap/ratio",
    "overlap/mass_student",
    "overlap/mass_teacher",
    "overlap/advantage",
    "entropy/gap",
    "entropy/student",
    "rollout/length",
    "rollout/truncated",
    "sequence_reward/auroc",
)
"""What is kept of each evaluation."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work an arm is."""

    steps: int
    """Of distillation."""
    prompts: int = 64
    """Rollouts a step."""
    held_out: int = 500
    """Problems of an evaluation, one sample each at temperature 1."""
    every: int = 40
    """Steps between evaluations."""


SHORT = Size(steps=2, prompts=4, held_out=20, every=1)
"""Proves that everything runs; says nothing of any claim."""


FULL = Size(steps=160)
"""What the verdicts are made of. Seeds differ twofold in speed and leave their plateau suddenly, so
that fewer steps judge how fast a student learns, not whether it does."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an arm is done."""

    models: KeptModels
    """The trained models."""
    seed: int
    """Of the models, the prompts and the samples."""
    size: Size
    """How much work."""
    folder: Path
    """For the prompts and runs of this seed."""
    other_task: Task | None = None
    """Problems of another kind than those of the models."""

    @property
    def task(self) -> Task:
        """What is asked: by default the task of the models."""
        return self.other_task or self.models.task

    def model(self, name: str) -> LocalModel:
        """A trained model, to sample or score with."""
        return load_model(ModelConfig(path=str(self.models.path(name, self.seed))), name)

    def held_out(self, model: LocalModel) -> list[RenderedPrompt]:
        """The held-out problems as a model reads them."""
        prompts = self.task.eval_prompts(self.size.held_out)
        rendered, _ = render(prompts, model.tokenizer, PromptFormat(), 1024)
        return rendered

    @property
    def params(self) -> SamplingParams:
        """How completions are drawn; the limit leaves some room after the longest solution."""
        return SamplingParams(max_new_tokens=self.task.longest_solution + 5)


class Arm(Protocol):
    """One kind of work; its `repr`, the size and the models decide whether it is done already."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models it needs."""
        ...

    def run(self, place: Place) -> Numbers:
        """The numbers of one seed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Distil:
    """On-policy distillation of a teacher into a student, with its evaluations."""

    student: str
    teacher: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Sections of the configuration that differ from those of the other arms."""

    @property
    def models(self) -> tuple[str, ...]:
        """Student and teacher."""
        return self.student, self.teacher

    def run(self, place: Place) -> Numbers:
        """Every evaluation's numbers, by step; the weights of the end are not kept."""
        config = self.config(place)
        run = train(config, overwrite=True).run
        records = [r for r in read_lines(run / "metrics.jsonl") if r["kind"] == "eval"]
        for name in ("checkpoints", "student"):
            shutil.rmtree(run / name, ignore_errors=True)
        curves = {key: [record.get(key) for record in records] for key in KEYS}
        return {
            "steps": [record["step"] for record in records],
            "curves": {key: c for key, c in curves.items() if any(v is not None for v in c)},
        }

    def start(self, place: Place) -> Path:
        """Where the student's weights are."""
        return place.models.path(self.student, place.seed)

    def prompts(self, place: Place, count: int) -> list[Prompt]:
        """What it is trained on."""
        return place.task.train_prompts(count, place.seed)

    @property
    def _content(self) -> str:
        """What sets its prompts apart from those of other arms, for the name of their file."""
        return ""

    @property
    def _name(self) -> str:
        plain = Distil(student=self.student, teacher=self.teacher)
        told = "" if self == plain else f"-{digest_of(repr(self))}"
        return f"{self.student}-from-{self.teacher}{told}"

    def config(self, place: Place) -> Config:
        """The settings of the run."""
        size, seed = place.size, place.seed
        count = size.steps * size.prompts
        train_file = place.folder / f"train-{count}{self._content}.jsonl"
        held_file = place.folder / f"held-{size.held_out}.jsonl"
        # Written anew for every arm, since a stop may have left half a file.
        write_prompts(train_file, self.prompts(place, count))
        write_prompts(held_file, place.task.eval_prompts(size.held_out))
        tree: dict[str, Any] = {
            "student": {"path": str(self.start(place))},
            "teacher": {"path": str(place.models.path(self.teacher, seed))},
            "data": {
                "prompts": str(train_file),
                "eval_prompts": str(held_file),
                "verifier": place.task.verifier.model_dump(),
            },
            "rollout": {
                "prompts_per_step": size.prompts,
                "max_new_tokens": place.params.max_new_tokens,
            },
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
            "evaluation": {"every": size.every, "teacher": size.held_out},
            "guards": {"causes": False},
            "run": {
                "dir": str(place.folder / "runs" / self._name),
                "steps": size.steps,
                "seed": seed,
                "save_every": 0,
                "record_rollouts": 0,
            },
        }
        for section, changes in self.settings.items():
            tree[section] = {**tree.get(section, {}), **changes}
        return parse_config(tree)


@dataclass(frozen=True, kw_only=True)
class Imitate(Distil):
    """The student imitates right answers of the teacher, and is not distilled."""

    imitation: int
    """Steps of 32 answers each; a short run takes two."""

    def run(self, place: Place) -> Numbers:
        """`accuracy` on the held-out problems at temperature 1."""
        model = load_model(ModelConfig(path=str(self._imitated(place))), "student")
        verify = make_verifier(place.task.verifier)
        found = evaluate(model, place.held_out(model), verify, place.params, seed=place.seed)
        return {"accuracy": float(np.mean(found.accuracies))}

    def _imitated(self, place: Place) -> Path:
        """The student after imitation, which several arms share."""
        steps = self.imitation if place.size is not SHORT else 2
        output = place.folder / "runs" / f"imitation-{self.student}-{self.teacher}-{steps}"
        config = Distil(student=self.student, teacher=self.teacher).config(place)
        settings = {
            "questions": min(800, place.size.steps * place.size.prompts),
            "steps": steps,
            "batch_size": 32,
            "lr": 1e-3,
            "right_only": place.size is not SHORT,  # after three steps nothing is right
            "check": False,
            "patience": 0,
            "every": steps,
        }
        tree = {**config.model_dump(), "cold_start": settings}
        done = output / "checkpoints" / f"step-{steps}"
        if not (output / "summary.json").exists():
            cold_start(parse_config(tree), output, overwrite=output.exists())
        return done


@dataclass(frozen=True, kw_only=True)
class ColdStarted(Imitate):
    """Distillation after imitation of the same teacher."""

    def run(self, place: Place) -> Numbers:
        """Every evaluation's numbers, by step of the distillation."""
        return Distil.run(self, place)

    def start(self, place: Place) -> Path:
        """The student after imitation."""
        return self._imitated(place)


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """How often a model's likeliest answer is right."""

    model: str

    @property
    def models(self) -> tuple[str, ...]:
        """The one that is asked."""
        return (self.model,)

    def run(self, place: Place) -> Numbers:
        """`accuracy` on the held-out problems."""
        model = place.model(self.model)
        params = SamplingParams(max_new_tokens=place.params.max_new_tokens, temperature=0.0)
        verify = make_verifier(place.task.verifier)
        found = evaluate(model, place.held_out(model), verify, params, seed=place.seed)
        return {"accuracy": float(np.mean(found.accuracies))}


@dataclass(frozen=True, kw_only=True)
class Continue:
    """The teacher, and the student, go on from where the student's own answers have got to."""

    student: str
    teacher: str
    depths: Sequence[float]
    """Shares of the student's answer that are kept."""

    @property
    def models(self) -> tuple[str, ...]:
        """Student and teacher."""
        return self.student, self.teacher

    def run(self, place: Place) -> Numbers:
        """`student` and `teacher`: share of right continuations at each depth, all answers alike.

        Each continues the same answers, one a held-out problem, whatever their verdict.
        """
        verify = make_verifier(place.task.verifier)
        shares: Numbers = {"depths": list(self.depths)}
        student = place.model(self.student)
        questions = place.held_out(student)
        drawn = student.sample(questions, place.params, group_size=1, seed=place.seed, step=0)
        answers = judge(drawn, verify)
        for side, model in (("student", student), ("teacher", place.model(self.teacher))):
            found = right_shares(
                model,
                answers,
                self.depths,
                verify,
                place.params,
                samples=1,
                seed=place.seed,
                as_teacher=side == "teacher",
            )
            shares[side] = [float(value) for value in np.nanmean(found, axis=0)]
        return shares
