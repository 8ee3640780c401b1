"""The whole state of a run in safetensors and JSON, with a manifest written last.

`step-N/` holds the student as transformers saves it, or its LoRA adapter as peft does,
`optimizer.safetensors`, `state.json` and `MANIFEST.json`. Of a sharded student weights and
moments are in one file a rank (`ranks/saving.py`). The directory is filled under a temporary
name and renamed when all of it is on disk, so a kill leaves the old checkpoints. A damaged one
is set aside as `damaged.step-N`, where it never counts.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.errors import CheckpointError, MachineError
from tutelage.models.local import LocalModel
from tutelage.models.sharded import part_like
from tutelage.runs.directory import environment, replace_text, says_full, to_json

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint on disk."""

    path: Path
    """Its directory; transformers, or peft, loads the student from it."""
    step: int
    """Optimizer steps taken."""
    state: Mapping[str, Any]
    """Counters of the loop."""


def save_checkpoint(
    root: Path,
    step: int,
    student: LocalModel,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    further: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Path:
    """Write `root/step-N`; an existing one of the same step is replaced.

    `further` are tensors of others, by the file that keeps them. Where writing fails, nothing
    of it is left and what was there before is whole.
    """
    temporary = root / f"tmp.step-{step}"
    begin_checkpoint(temporary)
    tensors, scalars = _flatten_optimizer(optimizer)
    with _whole_or_gone(temporary):
        student.save(temporary)
        save_file(tensors, temporary / "optimizer.safetensors")
        for name, kept in (further or {}).items():
            save_file(dict(kept), temporary / name)
    return seal_checkpoint(temporary, step, state, scalars)


@contextmanager
def _whole_or_gone(temporary: Path) -> Iterator[None]:
    try:
        yield
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def begin_checkpoint(temporary: Path) -> None:
    """An empty folder for a checkpoint that is being written."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def seal_checkpoint(
    temporary: Path, step: int, state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> Path:
    """Make a checkpoint of a folder that holds all its tensors: state, manifest, its name.

    `groups` are the optimizer's settings. Where writing fails, nothing of it is left.
    """
    root, final = temporary.parent, temporary.with_name(f"step-{step}")
    with _whole_or_gone(temporary):
        _seal(temporary, step, state, groups)
    old = root / f"old.{final.name}"
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    _sync(root)
    return final


def size_of_checkpoint(student: LocalModel, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors that a checkpoint holds, about."""
    learned = [p for p in student.model.parameters() if p.requires_grad]
    whole = list(student.model.parameters()) if student.adapter is None else learned
    moments, _ = _flatten_optimizer(optimizer)
    return sum(t.numel() * t.element_size() for t in [*whole, *moments.values()])


def _seal(
    temporary: Path, step: int, state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> None:
    (temporary / "state.json").write_text(
        json.dumps({"step": step, "loop": dict(state), "optimizer": groups}, allow_nan=False)
    )
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    manifest = {
        "step": step,
        "versions": environment()["versions"],
        "files": {
            str(p.relative_to(temporary)): {"size": p.stat().st_size, "blake2b": _digest(p)}
            for p in files
        },
    }
    for path in files:
        _sync(path)
    replace_text(temporary / MANIFEST, to_json(manifest))
    _sync(temporary)


def newest_checkpoint(root: Path) -> tuple[Checkpoint | None, dict[str, str]]:
    """The newest valid checkpoint, and why newer ones were skipped, by their names.

    None where no save was ever finished.

    Raises:
        CheckpointError: there are some, and none is valid.
    """
    skipped: dict[str, str] = {}
    clear_unfinished(root)
    for _, path in sorted(saved_steps(root).items(), reverse=True):
        fault = _fault(path)
        if fault is None:
            return read_checkpoint(path), skipped
        skipped[path.name] = fault
    if not skipped:
        return None, {}
    reasons = "; ".join(f"{name}: {fault}" for name, fault in skipped.items())
    whole = next((root / name for name in skipped if _weights_are_whole(root / name)), None)
    instead = f", or a new run from the weights alone: --student.path {whole}" if whole else ""
    raise CheckpointError(
        f"no valid checkpoint in {root} ({reasons}); start again with --overwrite{instead}"
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder that was found valid."""
    state = json.loads((path / "state.json").read_text())
    return Checkpoint(path, state["step"], state["loop"])


def clear_unfinished(root: Path) -> None:
    """Remove what a kill in the middle of a save left behind."""
    for temporary in root.glob("tmp.step-*"):
        shutil.rmtree(temporary)
    for old in root.glob("old.step-*"):
        if (final := root / old.name.removeprefix("old.")).exists():
            shutil.rmtree(old)
        else:  # it came between the two renames
            old.rename(final)


def valid_checkpoints(root: Path) -> Iterator[Checkpoint]:
    """The valid checkpoints under `root`, newest first; nothing is mended or set aside."""
    for _, path in sorted(saved_steps(root).items(), reverse=True):
        if _fault(path) is None:
            yield read_checkpoint(path)


def set_aside(root: Path, names: Iterable[str]) -> None:
    """Rename damaged checkpoints, so that their higher numbers do not outlive good ones."""
    for name in names:
        shutil.rmtree(root / f"damaged.{name}", ignore_errors=True)
        (root / name).rename(root / f"damaged.{name}")


def restore_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's moments and settings; a sharded one takes its part of them."""
    files = sorted(checkpoint.path.glob("optimizer*.safetensors"))
    tensors = {name: value for file in files for name, value in load_file(file).items()}
    scalars = json.loads((checkpoint.path / "state.json").read_text())["optimizer"]
    state: dict[int, dict[str, Any]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        like = parameters[int(index)]
        state.setdefault(int(index), {})[name] = (
            part_like(value, like) if value.shape == like.shape else value
        )
    optimizer.load_state_dict({"state": state, "param_groups": scalars})


def making_room(
    write: Callable[[], None],
    root: Path,
    *,
    keep: Sequence[int],
    needed: int,
    otherwise: str,
    prunes: bool = True,
) -> None:
    """Write a checkpoint; where the disk is full, once more without old ones.

    The newest and those of the steps `keep` stay. One process of a run `prunes`.

    Raises:
        MachineError: it is full all the same; `needed` are the bytes of a checkpoint, and
            `otherwise` says how to go on.
    """
    for attempt in ("first", "last"):
        try:
            return write()
        except Exception as error:
            if not says_full(error):
                raise
        if attempt == "first" and prunes:
            prune(root, 1, protected=keep)
    free = shutil.disk_usage(root.parent).free / 2**20
    raise MachineError(
        f"the disk of {root.parent} is full: a checkpoint takes {needed / 2**20:,.0f} MiB and "
        f"{free:,.0f} are free. Free some space; the checkpoints saved before are whole, so "
        f"{otherwise}"
    )


def prune(root: Path, keep: int, protected: Sequence[int] = ()) -> None:
    """Remove all but the `keep` newest checkpoints and the protected steps."""
    steps = sorted(saved_steps(root), reverse=True)
    for step in steps[keep:]:
        if step not in protected:
            shutil.rmtree(root / f"step-{step}")


def saved_steps(root: Path) -> dict[int, Path]:
    """The checkpoints under `root` by their step, good or damaged."""
    if not root.is_dir():
        return {}
    matches = ((re.fullmatch(r"step-(\d+)", p.name), p) for p in root.iterdir() if p.is_dir())
    return {int(m[1]): p for m, p in matches if m}


def _weights_are_whole(path: Path) -> bool:
    """Whether a checkpoint that cannot be resumed has its student's weights as they were saved."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        weights = [name for name in files if fnmatch(name, "*model*.safetensors")]
        return bool(weights) and all(_digest(path / n) == files[n]["blake2b"] for n in weights)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _fault(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted; None if it can."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        entries = {name: (entry["size"], entry["blake2b"]) for name, entry in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "its manifest is missing or damaged, so it was never finished"
    for needed in ("state.json", "optimizer*.safetensors", "model*.safetensors"):
        instead = "adapter_model.safetensors" if needed.startswith("model") else needed
        if not any(fnmatch(name, needed) or name == instead for name in entries):
            return f"its manifest lists no {needed}"
    for name, (size, digest) in entries.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if _digest(file) != digest:
            return f"{name} does not match its hash"
    return None


def _flatten_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    content = optimizer.state_dict()
    tensors = {
        f"{index}/{name}": value.contiguous()
        for index, entry in content["state"].items()
        for name, value in entry.items()
    }
    return tensors, content["param_groups"]


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
