"""The settings of guards."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from tutelage.config.base import Section

Warned = Literal[
    "truncation",
    "length_inflation",
    "length_collapse",
    "engine_drift",
    "stop_ids",
    "template",
    "same_model",
    "broken_teacher",
    "engine_mismatch",
    "response_limit",
    "truncated_support",
    "reward_tail",
    "stale_rollouts",
    "learning_rate",
    "thinking_pattern",
    "no_new_knowledge",
    "repetition",
    "non_finite",
]
"""What a run may be warned of while it goes on."""


class GuardConfig(Section):
    """When a run is stopped before it does harm."""

    non_finite_limit: PositiveInt = 3
    """Steps in a row with a non-finite loss or gradient; none of them is applied."""
    truncated: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Share of truncated rollouts that is a warning, where it was lower at the start."""
    length_factor: Annotated[float, Field(gt=1)] = 2.0
    """Mean length that is this many times longer or shorter than at the start is a warning."""
    drift: PositiveFloat = 0.01
    """k3 in nats a token, between sampling and training log-probabilities of the same weights, that
    is a warning; a server's rounding gives far less."""
    window: PositiveInt = 5
    """Steps over which truncation and length are averaged."""
    causes: bool = True
    """Warn also of what `explain` would be sure of, every `window` steps."""
    stop: bool | tuple[Warned, ...] = False
    """Stop on warnings too: on all, or on those named; the state is saved first."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
