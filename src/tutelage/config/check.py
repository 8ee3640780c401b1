"""The settings of `check`."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tutelage.config.base import Section
from tutelage.config.models import ModelConfig

Depth = Annotated[float, Field(ge=0, lt=1)]


class PromptSet(Section):
    """Questions or a wording to try in place of the run's own."""

    prompts: str | None = None
    """A source of prompts, in the forms of data.prompts; None keeps the run's held-out ones."""
    user_prompt: str | None = None
    """The user's turn for both sides, with {question} or another column filled in."""
    system_prompt: str | None = None
    """A system turn for both sides."""

    @model_validator(mode="after")
    def _changes_something(self) -> "PromptSet":
        if self.prompts is None and self.user_prompt is None and self.system_prompt is None:
            raise ValueError(
                "a prompt set that changes nothing is the run's own; give prompts, user_prompt or "
                "system_prompt"
            )
        return self


class CheckConfig(Section):
    """What is measured before training."""

    questions: PositiveInt = 64
    """Questions, spread over the held-out ones; the independent units of every interval."""
    samples: Annotated[int, Field(ge=2)] = 4
    """Completions of each question from either side."""
    continued: NonNegativeInt = 32
    """Student answers that both sides continue from, right and wrong ones alike; 0 continues
    none."""
    depths: Annotated[tuple[Depth, ...], Field(min_length=1)] = (0.1, 0.3, 0.6, 0.9)
    """Shares of a student's answer after which they continue it."""
    continuations: PositiveInt = 4
    """Continuations by either side at each depth."""
    budget: NonNegativeInt = 100_000
    """Most decoded tokens of the gradient alignment that belongs to a check; 0 leaves it out."""
    baseline: ModelConfig | None = None
    """The teacher before post-training, or a sibling trained on the student's data: what a teacher
    with new knowledge differs from in the student's eyes."""
    prompt_sets: dict[str, PromptSet] = {}
    """Other questions or wordings to compare with the run's own, by name."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "CheckConfig":
        if "run" in self.prompt_sets:
            raise ValueError("prompt_sets: `run` is the run's own; choose another name")
        return self
