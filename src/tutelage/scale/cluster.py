"""Ray itself: found at its address, or started on this machine for loopback alone."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tutelage.config import RayEngine, Resources
from tutelage.errors import MachineError, ServerError

_OBJECTS_BYTES = 2**28
_TOLD = 400
"""Characters of what Ray says of a death."""
_PROBE = "import sys, ray; ray.init(address=sys.argv[1], logging_level=50, log_to_driver=False)"


def connect(settings: RayEngine, needs: Resources) -> tuple[Any, Callable[[], None]]:
    """The module `ray`, connected, and what disconnects it again.

    Raises:
        MachineError: Ray is not installed, or this machine lacks what the workers need.
        ServerError: nobody answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if settings.address is None:
        # Ray's name for it is of the systems where it is the default: servers listen at loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MachineError(
            f"engine ray needs Ray, which cannot be imported ({error}): pip install "
            "'tutelage[ray]', or leave --engine out"
        ) from None
    if ray.is_initialized():
        return ray, lambda: None
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if settings.address is None:
        ray.init(
            include_dashboard=False,
            object_store_memory=_OBJECTS_BYTES,
            _system_config={"worker_niceness": 0},  # the user's own work, and all there is of it
            **quiet,
        )
    else:
        _require_answer(settings.address, settings.start_s)
        try:
            ray.init(address=settings.address, **quiet)
        except Exception as error:  # Ray has no common class for them
            raise _refused(settings.address, error) from None
    # Ray prints what it has to say of a death on stdout, which is data here, and has no setting for
    # that; a test notices when the name is another one.
    ray._private.worker._worker_logs_enabled = False
    if settings.address is None:
        try:
            _require_room(ray, settings, needs)
        except MachineError:
            ray.shutdown()
            raise
    return ray, ray.shutdown


def resources_told(ray: Any) -> str:
    """What the cluster has and what of it is free, in words."""
    total, free = ray.cluster_resources(), ray.available_resources()
    has = ", ".join(f"{total.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
    left = ", ".join(f"{free.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
    return f"there are {has} ({left} free)"


def first_words(error: BaseException) -> str:
    """What Ray says, without its list of advice."""
    text = " ".join(str(error).split())
    return text.split(" Some common causes")[0][-_TOLD:]


def _require_answer(address: str, seconds: float) -> None:
    """Refuse an address where nobody listens, or listens and is not Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), timeout=seconds).close()
        except OSError as error:
            raise ServerError(
                f"Ray cannot be reached at {address}: {error}. Start it (ray start --head "
                "--include-dashboard=false), mend engine.address, or leave it out to start Ray here"
            ) from None
    if address.startswith("ray://"):
        return
    # Where another server answers, Ray waits for minutes and ends its process: let that be another.
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            timeout=seconds,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServerError(
            f"who listens at {address} had not answered as Ray does after engine.start_s "
            f"{seconds:g} s; give the port of Ray's head (ray start prints it)"
        ) from None
    if asked.returncode:
        raise _refused(address, asked.stderr.strip().rpartition("\n")[2])


def _refused(address: str, error: object) -> ServerError | MachineError:
    text = " ".join(str(error).split())[:400]
    if "ersion mismatch" in text:
        return MachineError(f"Ray at {address} is another one: {text}")
    return ServerError(f"Ray at {address} cannot be used: {text}{_about_tokens()}")


def _about_tokens() -> str:
    """What to set where a cluster wants a token: Ray says none of it, and looks for none itself."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return ""
    return (
        ". If the cluster asks for a token, as one of ray start does where its host keeps one, set "
        "RAY_AUTH_MODE=token here, and have that token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
    )


def _require_room(ray: Any, settings: RayEngine, needs: Resources) -> None:
    """Refuse workers that will never find a place on this machine."""
    total = ray.cluster_resources()
    for kind, each, setting in (("CPU", needs.cpus, "cpus"), ("GPU", needs.gpus, "gpus")):
        if (wanted := settings.workers * each) > total.get(kind, 0):
            raise MachineError(
                f"{settings.workers} workers with {each:g} {kind} each need {wanted:g}, and this "
                f"machine has {total.get(kind, 0):g}: lower engine.workers or engine.student."
                f"{setting} and engine.teacher.{setting}, or give engine.address a cluster that "
                "has them"
            )
