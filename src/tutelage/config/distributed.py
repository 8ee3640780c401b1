"""Training on several processes, which torchrun or another launcher starts."""

from typing import Annotated, Literal

from pydantic import Discriminator, PositiveFloat

from tutelage.config.base import Section, tagged


class SingleProcess(Section):
    """One process, started by itself."""

    type: Literal["none"] = "none"


class _Ranks(Section):
    """Several processes (ranks), on one host or many."""

    join_timeout_s: PositiveFloat = 300.0
    """Seconds within which every rank must have joined."""
    silence_s: PositiveFloat = 30.0
    """Seconds without a sign of life after which a rank, or its host, counts as gone."""
    timeout_s: PositiveFloat = 1800.0
    """Seconds that ranks wait for each other; more than the rollouts of the slowest may take."""


class DDP(_Ranks):
    """Every rank holds the whole student; gradients are summed once a step."""

    type: Literal["ddp"] = "ddp"


class FSDP2(_Ranks):
    """Every rank holds its part of the student's weights, gradients and moments."""

    type: Literal["fsdp2"] = "fsdp2"


Distributed = Annotated[
    Annotated[SingleProcess | DDP | FSDP2, Discriminator("type")],
    tagged(),
]
