"""The optimizer, its learning rate, and the step it takes."""

import math

import torch

from tutelage.config import OptimizerConfig
from tutelage.models.local import LocalModel
from tutelage.models.sharded import is_sharded, whole_tensor


def make_optimizer(student: LocalModel, settings: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over everything in the student that learns."""
    return torch.optim.AdamW(
        student.model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        # One pass over weights, gradients and moments, without copies.
        fused=not is_sharded(student),
    )


def take_step(
    optimizer: torch.optim.Optimizer,
    student: LocalModel,
    loss: float,
    *,
    lr: float,
    grad_clip: float,
    usable: bool = True,
) -> tuple[float, bool]:
    """Clip, move the weights, drop the gradient; its norm, and whether the step was applied.

    A loss or gradient that is not finite is not applied, nor one that is not `usable`.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    clipped = torch.nn.utils.clip_grad_norm_(student.model.parameters(), grad_clip)
    norm = whole_tensor(clipped).item()
    applied = usable and math.isfinite(norm) and math.isfinite(loss)
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, applied


def learning_rate(settings: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`."""
    warm_up = settings.warmup_steps
    if step < warm_up:
        return settings.lr * (step + 1) / warm_up
    if settings.schedule == "constant":
        return settings.lr
    done = (step - warm_up) / max(1, steps - warm_up)
    return settings.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
