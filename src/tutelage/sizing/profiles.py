"""What is known of a device: measured with the models of a run, or given for one not at hand."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from tutelage.config.base import Section
from tutelage.errors import UsageError
from tutelage.sizing.cost import Link, Speeds
from tutelage.sizing.lengths import Lengths

Share = Annotated[float, Field(gt=0, le=1)]


class GivenLink(Section):
    """A connection between two devices, each way."""

    bytes_per_s: PositiveFloat
    """Bytes a second and device."""
    latency_s: NonNegativeFloat = 2e-5
    """Seconds of the smallest message."""

    def link(self, message_bytes_per_s: float) -> Link:
        """As the cost model takes it."""
        return Link(self.latency_s, 1 / self.bytes_per_s, 1 / message_bytes_per_s)


class Hardware(Section):
    """Numbers of a data sheet, and what share of them is reached; all results are projections."""

    type: Literal["given"] = "given"
    name: str
    """What it is called."""
    memory_gb: PositiveFloat
    """Memory of a device, 10^9 bytes."""
    bfloat16_flops: PositiveFloat
    """Most operations a second in bfloat16, of dense products."""
    float32_flops: PositiveFloat
    """Most operations a second in float32."""
    bytes_per_s: PositiveFloat
    """Most bytes a second from memory."""
    utilisation: Share = 0.4
    """Share of the operations that is reached where many tokens go through at once."""
    memory_utilisation: Share = 0.6
    """Share of the bytes."""
    layer_s: NonNegativeFloat = 4e-4
    """Seconds that a layer of a pass takes to be asked for, however small the work is."""
    devices_per_host: PositiveInt = 8
    """Devices of a host."""
    within_host: GivenLink
    """Between devices of one host."""
    between_hosts: GivenLink
    """Between devices of two hosts."""
    message_bytes_per_s: PositiveFloat = 1e9
    """Of messages between the hosts' processors (gloo), for each rank."""
    disk_bytes_per_s: PositiveFloat = 1e9
    """Of the file system that ranks and servers share."""
    record_token_s: NonNegativeFloat
    """Seconds of a processor a token of the step: judging, statistics, records."""
    rollout_s: NonNegativeFloat
    """Seconds of a processor a token to pack a rollout and unpack it."""
    answer_s: NonNegativeFloat
    """Seconds of a processor a log-probability to read a server's answer."""


class Measured(Section):
    """Rates measured on this machine with the two models of a run."""

    type: Literal["measured"] = "measured"
    name: str
    """The machine: processor or accelerator, and threads."""
    device: str
    """Type of the device: cpu or cuda."""
    student: str
    """Path of the student."""
    teacher: str
    """Path of the teacher."""
    speeds: Speeds
    """What was measured."""
    lengths: Lengths
    """Lengths of the student's completions."""
    prompt_tokens: PositiveFloat
    """Mean tokens of a prompt."""
    link: Link | None = None
    """Between ranks, where several measured side by side."""
    seconds: PositiveFloat
    """What measuring took."""


Profile = Annotated[Hardware | Measured, Discriminator("type")]
_PROFILE: TypeAdapter[Hardware | Measured] = TypeAdapter(Profile)
_KNOWN = Path(__file__).with_name("hardware")


def known_hardware() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in _KNOWN.glob("*.yaml"))


def read_profile(source: str | Path) -> Hardware | Measured:
    """A profile from a file, YAML or JSON, or one that comes with the package by its name.

    Raises:
        UsageError: no such profile, or one that is not whole.
    """
    path = _KNOWN / f"{source}.yaml" if str(source) in known_hardware() else Path(source)
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"cannot read profile {source}: {reason}; give a file, or one of "
            f"{', '.join(known_hardware())}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"profile {source} is not YAML: {error}") from None
    if isinstance(tree, dict) and "type" not in tree:
        tree = {"type": "given", **tree}
    try:
        return _PROFILE.validate_python(tree)
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in error.errors()[:5]
        ]
        raise UsageError(
            f"profile {source} cannot be used: {'; '.join(faults)}. See docs/scaling.md for what "
            "stands in one"
        ) from None


def write_profile(profile: BaseModel, path: Path) -> None:
    """Keep a profile as JSON."""
    text = json.dumps(profile.model_dump(mode="json"), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
