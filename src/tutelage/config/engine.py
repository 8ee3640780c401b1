"""Where work runs that falls into units: in this process, or on Ray's workers."""

from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from tutelage.config.base import Section, tagged


class LocalEngine(Section):
    """Everything in this process, one unit after the other."""

    type: Literal["local"] = "local"


class Resources(Section):
    """What a worker takes of its host."""

    cpus: PositiveFloat = 1.0
    """Processors; it computes with as many threads."""
    gpus: NonNegativeFloat = 0.0
    """Accelerators; 0.5 lets two workers share one."""


class RayEngine(Section):
    """Workers that Ray places, on this machine or on a cluster."""

    type: Literal["ray"] = "ray"
    address: str | None = None
    """ray://HOST:10001, HOST:6379 from a host of the cluster, or auto; None starts Ray on this
    machine, for loopback alone, and ends it afterwards."""
    workers: PositiveInt = 2
    """Processes that do units, or train."""
    student: Resources = Resources()
    """What one takes that holds the student."""
    teacher: Resources = Resources()
    """What one takes that holds a teacher; with both, the processors of the larger and the
    accelerators of both."""
    restarts: NonNegativeInt = 3
    """How often training begins again, from the newest checkpoint, after a worker died."""
    start_s: PositiveFloat = 300.0
    """Most seconds until Ray has answered and until every worker has started."""
    unit_s: PositiveFloat = 3600.0
    """Most seconds of one unit, or of loading the models; then the worker counts as dead."""

    @field_validator("address")
    @classmethod
    def _can_be_one(cls, address: str | None) -> str | None:
        if address is None or address == "auto":
            return address
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
            raise ValueError(
                f"{address!r} is no address of Ray; write ray://HOST:10001, HOST:6379 or auto"
            )
        return address


Engine = Annotated[Annotated[LocalEngine | RayEngine, Discriminator("type")], tagged("ray")]
