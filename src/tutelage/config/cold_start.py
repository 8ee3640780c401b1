"""The settings of a cold start: the teacher's answers, and learning to imitate them."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from tutelage.config.base import Section


class ColdStartConfig(Section):
    """What the teacher answers, what of it is kept, and how the student imitates it."""

    prompts: str | None = None
    """What the teacher answers, in the forms of data.prompts; None takes the training prompts."""
    questions: PositiveInt | None = None
    """Most of them, spread evenly; None takes all."""
    rollouts: PositiveInt = 1
    """Answers kept of each question; each is a slot."""
    attempts: PositiveInt = 3
    """Rollouts drawn for a slot until one is kept; then it is dropped and counted."""
    temperature: NonNegativeFloat = 0.7
    """Of the teacher's sampling; 0 is greedy, where further attempts are the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus kept when the teacher samples."""
    max_new_tokens: PositiveInt | None = None
    """Most tokens of an answer; None takes rollout.max_new_tokens."""
    right_only: bool = False
    """Keep only answers that data.verifier finds right."""
    epochs: PositiveFloat = 2.0
    """Times that every kept answer is imitated."""
    steps: PositiveInt | None = None
    """Optimizer steps; None takes as many as `epochs` need."""
    batch_size: PositiveInt = 64
    """Answers of one optimizer step; optimizer.micro_batch_size of them go forward at once."""
    lr: PositiveFloat = 1e-5
    """Peak learning rate; the rest of AdamW is that of `optimizer`."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After warm-up: stay, or fall to 10 % over the steps."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps with linear warm-up."""
    layout: Literal["padded", "packed"] = "padded"
    """Answers of a micro-batch one below the other, or one after the other without padding."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the questions whose answers are not imitated but measure the validation loss."""
    every: PositiveInt | None = None
    """Steps between validations, each with a checkpoint; None makes ten."""
    patience: NonNegativeInt = 3
    """Validations without a new lowest loss before it stops; 0 never stops early."""
    check: bool = True
    """Run `check` before and after."""
