"""The settings of gradient alignment."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveInt, model_validator

from tutelage.config.base import Section, tagged
from tutelage.config.models import ModelConfig
from tutelage.config.objective import ForwardKL, Full, Objective, ReverseKL
from tutelage.config.self_teacher import Context


class WarnPolicy(Section):
    """Say so, and go on."""

    type: Literal["warn"] = "warn"


class StopPolicy(Section):
    """The run ends."""

    type: Literal["stop"] = "stop"


class SwitchTeacherPolicy(Section):
    """Go on with the teacher of align.teachers whose advantage is largest and above 0, if any."""

    type: Literal["switch_teacher"] = "switch_teacher"


class LowerWeightPolicy(Section):
    """The teacher's term of the loss counts less, each time anew."""

    type: Literal["lower_weight"] = "lower_weight"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What is left of its weight each time."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Least weight."""


class CurriculumPolicy(Section):
    """Train and probe on the easiest prompts, then on harder ones too.

    More join where the teacher's advantage is gone, or nothing is wrong any more.
    """

    type: Literal["curriculum"] = "curriculum"
    by: str = "prompt_tokens"
    """What orders prompts from easy to hard: their length in tokens, or a column of numbers."""
    start: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the prompts at the beginning."""
    widen: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share that joins each time."""


ProbePolicy = Annotated[
    Annotated[
        WarnPolicy | StopPolicy | SwitchTeacherPolicy | LowerWeightPolicy | CurriculumPolicy,
        Discriminator("type"),
    ],
    tagged(),
]


class ProbeConfig(Section):
    """A small alignment now and then while a student trains."""

    every: PositiveInt = 50
    """Steps between probes; the first comes before training."""
    questions: PositiveInt = 16
    """Held-out questions of a probe."""
    budget: PositiveInt = 50_000
    """Most decoded tokens of a probe."""
    patience: PositiveInt = 1
    """Probes in a row, of a teacher whose advantage is not above 0, until the policy acts."""
    policy: ProbePolicy = WarnPolicy()
    """What then happens besides the warning."""


class AlignConfig(Section):
    """Targeted rollouts: who is compared, on what, at what cost."""

    teachers: dict[str, ModelConfig] = {}
    """Further teachers by name, besides `teacher`; the student's own path with a user_prompt makes
    a self-teacher, whose turn may hold {correct}, {wrong}, {attempt}, {verdict} and {summary}."""
    contexts: list[Context] = []
    """Self-teachers that read a ready-made context: answer, demonstration, summary,
    correct_and_wrong, feedback."""
    objectives: dict[str, Objective] = {
        "reverse_kl": Full(divergence=ReverseKL()),
        "forward_kl": Full(divergence=ForwardKL()),
    }
    """Objectives whose moves are scored, by name; `objective` is always scored too."""
    questions: PositiveInt = 32
    """Questions, spread over the prompts; they are the independent units of every interval."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Natural rollouts of each question."""
    spines: PositiveInt = 4
    """Natural rollouts of each question whose tokens are scored, right and wrong ones alike."""
    rollouts: Annotated[int, Field(ge=4)] = 8
    """Rollouts aimed at for each child; a larger budget buys nodes first."""
    floor: Annotated[int, Field(ge=4)] = 4
    """Fewest rollouts of a child."""
    cap: PositiveInt = 100
    """Most rollouts of a child."""
    least: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Tokens to which the student or a teacher gives this much are children."""
    window: PositiveInt = 50
    """Length of the first depth window; each next one is twice as long."""
    explore: Annotated[NonNegativeFloat, Field(gt=0)] = 0.1
    """Size of a node at which no teacher moves, in mean sizes; keeps every node possible."""
    backup: bool = True
    """Take a child's success from the node below it where that node was scored too."""
    budget: PositiveInt = 1_000_000
    """Most decoded tokens."""
    probe: ProbeConfig | None = None
    """Probes during `train`; None makes none."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "AlignConfig":
        taken = {"teacher", *(f"self:{context}" for context in self.contexts)}
        if twice := taken & self.teachers.keys():
            raise ValueError(f"teachers: {', '.join(sorted(twice))} is taken; choose another name")
        if "objective" in self.objectives:
            raise ValueError("objectives: `objective` is the run's own; choose another name")
        if self.cap < self.floor:
            raise ValueError(f"cap ({self.cap}) must not be below floor ({self.floor})")
        if self.spines > self.samples:
            raise ValueError(f"spines ({self.spines}) are chosen among samples ({self.samples})")
        return self
