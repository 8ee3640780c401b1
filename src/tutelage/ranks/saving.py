"""Checkpoints of a sharded student: a safetensors file of weights and one of moments a rank.

Every tensor is whole in one of the files, and an index in JSON says in which. So the folder is one
that transformers loads, at any number of ranks, and the finished student is a part of it.
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tutelage.models.anatomy import quiet_transformers
from tutelage.models.local import LocalModel
from tutelage.models.sharded import whole_tensor
from tutelage.ranks.group import Ranks
from tutelage.runs.checkpoints import begin_checkpoint, seal_checkpoint
from tutelage.runs.directory import replace_text, says_full, to_json


def save_sharded(
    ranks: Ranks,
    root: Path,
    step: int,
    student: LocalModel,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> None:
    """Write `root/step-N`, each rank its part; a disk that is full on one is full on all.

    Raises:
        OSError: the disk has no room; nothing is left of it.
    """
    temporary = root / f"tmp.step-{step}"
    with _alike(ranks):
        if ranks.first:
            begin_checkpoint(temporary)
    weights, files = _own_weights(ranks, student)
    moments = _own_moments(ranks, optimizer)
    with _alike(ranks):
        save_file(weights, temporary / _name("model", ranks, ranks.rank), {"format": "pt"})
        save_file(moments, temporary / _name("optimizer", ranks, ranks.rank))
        if ranks.first:
            _describe(student, temporary, files)
    with _alike(ranks):
        if ranks.first:
            groups = optimizer.state_dict()["param_groups"]
            seal_checkpoint(temporary, step, state, groups)


@contextmanager
def _alike(ranks: Ranks) -> Iterator[None]:
    fault = None
    try:
        yield
    except Exception as error:
        if not says_full(error):
            raise
        fault = str(error)
    if faults := [told for told in ranks.gather_json(fault) if told]:
        raise OSError(errno.ENOSPC, faults[0])


def _name(what: str, ranks: Ranks, rank: int) -> str:
    return f"{what}-{rank + 1:05}-of-{ranks.size:05}.safetensors"


def _owners(ranks: Ranks, sizes: list[int]) -> list[int]:
    """Who writes each tensor: whoever has the least so far."""
    load = [0] * ranks.size
    owners = []
    for size in sizes:
        owners.append(load.index(min(load)))
        load[owners[-1]] += size
    return owners


@torch.no_grad()
def _own_weights(ranks: Ranks, student: LocalModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights this rank writes, and the file of every weight."""
    learned = dict(student.model.named_parameters())
    names = {name for name, _ in student.model.named_parameters(remove_duplicate=False)}
    kept = {k: v for k, v in student.model.state_dict().items() if k not in names}
    owners = _owners(ranks, [p.numel() for p in learned.values()])
    own, files = {}, {}
    for (name, parameter), owner in zip(learned.items(), owners, strict=True):
        files[name] = _name("model", ranks, owner)
        tensor = whole_tensor(parameter)  # of one weight at a time; asked for by every rank
        if owner == ranks.rank:
            own[name] = tensor.cpu().clone()
    for name, buffer in kept.items():
        files[name] = _name("model", ranks, 0)
        if ranks.first:
            own[name] = buffer.cpu().clone()
    return own, files


@torch.no_grad()
def _own_moments(ranks: Ranks, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    entries = [
        (f"{index}/{name}", value)
        for index, entry in state.items()
        for name, value in entry.items()
    ]
    own = {}
    for (name, value), owner in zip(
        entries, _owners(ranks, [value.numel() for _, value in entries]), strict=True
    ):
        tensor = whole_tensor(value)
        if owner == ranks.rank:
            own[name] = tensor.cpu().clone()
    return own


def _describe(student: LocalModel, folder: Path, files: Mapping[str, str]) -> None:
    """Config, tokenizer and the index, as transformers reads them."""
    model = student.model
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
    replace_text(folder / "model.safetensors.index.json", to_json(index))
    with quiet_transformers():
        model.config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
