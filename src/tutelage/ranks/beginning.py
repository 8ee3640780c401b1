"""How the ranks of a run begin alike."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from tutelage.config import Config, parse_config
from tutelage.errors import MachineError, UsageError
from tutelage.models.checkpoints import pin_models
from tutelage.models.loading import choose_device
from tutelage.models.local import LocalModel
from tutelage.paths import usable_path
from tutelage.ranks.group import Ranks
from tutelage.ranks.joining import require_alike
from tutelage.runs.checkpoints import Checkpoint, newest_checkpoint, read_checkpoint
from tutelage.runs.directory import Run, environment


def require_same_start(ranks: Ranks, config: Config, settings: Mapping[str, object]) -> None:
    """Refuse ranks of other versions or settings, shared GPUs, a step that cannot be dealt.

    Raises:
        MachineError: versions differ, or two ranks were given one GPU.
        UsageError: settings differ, or the step cannot be dealt.
    """
    if ranks.size == 1:
        return
    found = environment()
    require_alike(ranks, {"python": found["python"], **found["versions"]}, "versions")
    require_alike(ranks, settings, "settings")
    require_own_gpus(ranks, config.student.device)
    count = config.rollout.prompts_per_step
    if count % ranks.size:
        error = UsageError(
            f"a step of rollout.prompts_per_step {count} cannot be dealt to {ranks.size} ranks "
            f"alike; set a multiple of {ranks.size}"
        )
        error.agreed = True
        raise error


def require_own_gpus(ranks: Ranks, name: str) -> None:
    """Refuse two ranks on one GPU.

    Raises:
        MachineError: there are some, alike on all ranks.
    """
    # NCCL refuses a GPU of two ranks too, but in the middle of the first step and in other words.
    device = choose_device(name, "student")
    own = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    owners = dict[str, int]()
    for rank, gpu in enumerate(ranks.gather_json(None if own is None else str(own.uuid))):
        if gpu is None or gpu not in owners:
            owners[gpu] = rank
            continue
        error = MachineError(
            f"ranks {owners[gpu]} and {rank} were given one GPU on {ranks.hosts[rank]}: start as "
            "many processes on a host as it has GPUs (--nproc-per-node), and leave student.device "
            "at auto, which gives each its own; student.device: cpu trains without them"
        )
        error.agreed = True
        raise error


def require_same_parts(ranks: Ranks, digests: Mapping[str, str], student: LocalModel) -> None:
    """Refuse ranks that read other prompts or hold another student.

    Raises:
        MachineError: they do.
    """
    if ranks.size > 1:
        require_alike(ranks, {**digests, "student": _checksum(student)}, "prompts or weights")


@torch.no_grad()
def _checksum(student: LocalModel) -> str:
    sums = [float(p.double().sum()) for p in student.model.parameters()]
    return hashlib.blake2b(repr(sums).encode(), digest_size=16).hexdigest()


def pin_together(config: Config, ranks: Ranks) -> Config:
    """The settings with what the first rank found for all: commits of hubs, the day."""
    if ranks.size == 1:
        return pin_models(config)
    return parse_config(ranks.decide(lambda: pin_models(config).model_dump(mode="json")))


def seen_run(config: Config) -> Run:
    """The run directory as those see it who do not write it."""
    return Run(usable_path(config.run.dir, "run directory"), writes=False)


def require_shared(ranks: Ranks, file: Path) -> None:
    """Refuse hosts that do not see what the first rank wrote.

    Raises:
        UsageError: some do not, alike on all ranks.
    """
    ranks.exchange()
    blind = [r for r, sees in enumerate(ranks.gather_json(file.exists())) if not sees]
    if blind:
        error = UsageError(
            f"{ranks.hosts[blind[0]]} (rank {blind[0]}) does not see {file}, which the first rank "
            "wrote: run.dir must be in a file system that all hosts share"
        )
        error.agreed = True
        raise error


def newest_of_all(ranks: Ranks, root: Path) -> tuple[Checkpoint | None, dict[str, str]]:
    """The newest valid checkpoint, and why others were skipped, as the first rank finds it."""
    if ranks.size == 1:
        return newest_checkpoint(root)

    def look() -> tuple[str | None, dict[str, str]]:
        found, skipped = newest_checkpoint(root)
        return None if found is None else str(found.path), skipped

    path, skipped = ranks.decide(look)
    return None if path is None else read_checkpoint(Path(path)), skipped
