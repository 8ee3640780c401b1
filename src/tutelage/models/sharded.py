"""A student of which each rank holds a part, through torch's `fully_shard` (FSDP2).

A layer's weights are gathered when it runs and given up after it. What is outside of the layers
(embedding, last norm, head) is gathered with the first forward pass of a micro-batch, so that the
chunked loss can use the head, and given up when its gradient is summed over the ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from tutelage.models.local import LocalModel


def shard(student: LocalModel) -> None:
    """Leave each rank its part of the student's weights: rows of every one."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    model: Any = student.model
    for layer in layers(model):
        fully_shard(layer)
    # The head is applied outside of the model's forward, so its states are asked for by a method.
    model.last_states = MethodType(_last_states, model)
    fully_shard(model)
    register_fsdp_forward_method(model, "last_states")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss has the whole step's denominator, so gradients are summed.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    student.sharded = True


def _last_states(model: Any, **inputs: Any) -> Any:
    return model.base_model(**inputs).last_hidden_state


def layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a transformer, outermost first where they hold each other."""
    found: list[torch.nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and id(module) not in inside:
            found.append(module)
            inside |= {id(part) for part in module.modules()}
    return found


def is_sharded(student: LocalModel) -> bool:
    """Whether each rank holds a part of its weights."""
    return student.sharded


@contextmanager
def gathered(student: LocalModel) -> Iterator[None]:
    """Inside, every rank has all weights, for work without gradient in which ranks differ.

    Sampling runs as many steps as its longest completion, evaluation as many passes as it has
    rollouts; without this every one of them would wait for the other ranks' layers. It takes
    the memory of the whole student.
    """
    if not student.sharded or student.gatherings:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [m for m in student.model.modules() if isinstance(m, FSDPModule)]
    inner = parts[1:]  # the first one is the whole model
    student.gatherings += 1
    try:
        for part in parts:
            part.unshard()
        for part in inner:
            part.set_reshard_after_forward(False, recurse=False)
        with torch.no_grad():
            yield
    finally:
        for part in inner:
            part.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.reshard()
        student.gatherings -= 1


def own_parts(student: LocalModel) -> list[Tensor]:
    """What this rank holds of every weight; what a forward pass left gathered is given up."""
    if not student.sharded:
        return list(student.model.parameters())
    model: Any = student.model
    model.reshard()
    return [parameter.to_local() for parameter in model.parameters()]


def part_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that is divided as another one of its shape is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; asked for by every rank."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
