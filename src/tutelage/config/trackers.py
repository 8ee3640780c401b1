"""Where the numbers of a run are mirrored."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, StringConstraints, model_validator

from tutelage.config.base import Section, tagged
from tutelage.config.server import VariableName

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$", max_length=100)]


class _Mirror(Section):
    name: Word | None = None
    """What the run is called there; None takes its directory's name."""
    dir: str | None = None
    """Folder of the mirror; None is trackers/ in the run directory."""


class TensorBoard(_Mirror):
    """Event files for TensorBoard."""

    type: Literal["tensorboard"] = "tensorboard"


class Trackio(_Mirror):
    """A local database for trackio's dashboard."""

    type: Literal["trackio"] = "trackio"
    project: Word = "tutelage"
    """The project that the run belongs to."""


class WandB(_Mirror):
    """A run of Weights & Biases."""

    type: Literal["wandb"] = "wandb"
    project: Word = "tutelage"
    """The project that the run belongs to."""
    mode: Literal["offline", "online"] = "offline"
    """offline writes files, which `wandb sync` uploads; online sends every record."""
    entity: Word | None = None
    """User or team that owns the project; None takes the account's own."""
    key_env: VariableName | None = None
    """NAME of the environment variable that holds the API key, for online; never the key itself."""

    @model_validator(mode="after")
    def _key_has_a_use(self) -> "WandB":
        if self.mode == "offline" and self.key_env is not None:
            raise ValueError("key_env: offline sends nothing, so it needs no key; leave it out")
        return self


def _as_list(value: Any) -> Any:
    """One tracker is short for a list of it, and names apart by commas for one of each."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return [value] if isinstance(value, dict) else value


Tracker = Annotated[
    Annotated[TensorBoard | Trackio | WandB, Discriminator("type")],
    tagged(),
]
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(_as_list)]
