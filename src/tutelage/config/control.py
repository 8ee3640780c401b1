"""Controls: runs in which something takes the teacher's place, so that a gain can be explained."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field

from tutelage.config.base import Section, tagged


class NoControl(Section):
    """The teacher, as it is."""

    type: Literal["none"] = "none"


class ShuffledTeacher(Section):
    """The teacher reads another question: its style stays, what it knows of this one goes."""

    type: Literal["shuffled_teacher"] = "shuffled_teacher"


class WrongContext(Section):
    """The teacher reads this question beside the answer and columns of another one (2608.09228)."""

    type: Literal["wrong_context"] = "wrong_context"


class FixedAdvantage(Section):
    """Every sampled token has one advantage, and no teacher is asked (2608.31046)."""

    type: Literal["fixed_advantage"] = "fixed_advantage"
    advantage: Annotated[float, Field(le=10, ge=-10)] = -1.0
    """Of every token; below 0 all that is sampled becomes less likely."""


Control = Annotated[
    Annotated[NoControl | ShuffledTeacher | WrongContext | FixedAdvantage, Discriminator("type")],
    tagged(),
]
