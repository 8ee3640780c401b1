"""The projection to the vocabulary, walked in chunks of tokens.

[tokens, vocabulary] is never held for a whole batch. One sweep computes logits,
lets a visitor turn them into losses and their gradient in the logits, and pulls
that gradient back to hidden states and weights at once: the loss is a scalar, so
what comes from above is only a factor. In all: three matrix products with the
student's head and one with the teacher's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.ops.products import linear

Visitor = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""(rows, logits [n, V]) -> (scalar loss of these rows, its gradient [n, V]).

The logits may be overwritten, and the gradient may be the same memory."""

# Logits of a chunk: 16 MiB of float32 on a CPU, whose allocator keeps so much at hand instead of
# asking the system for fresh pages every time; 64 MiB elsewhere, for full-speed products.
_CHUNK_ELEMENTS = {"cpu": 2**22}
_CHUNK_ELEMENTS_ELSEWHERE = 2**24


@dataclass(frozen=True, slots=True)
class Head:
    """How hidden states become logits."""

    weight: Float[Tensor, "R H"] | None
    """Output embedding; None where the "hidden states" are logits already."""
    bias: Float[Tensor, "R"] | None = None
    """Added after the product."""
    scale: float = 1.0
    """Multiplies the logits."""
    softcap: float | None = None
    """cap tanh(logits / cap), after the scale."""
    temperature: float = 1.0
    """Divides the logits last."""
    vocabulary: int | None = None
    """Rows in use; those beyond only pad the head."""

    def logits(self, hidden: Float[Tensor, "n H"]) -> Float[Tensor, "n V"]:
        """Logits at each state, in float32 or better."""
        if self.weight is None:
            raw = hidden[:, : self.vocabulary].clone()
        else:
            bias = None if self.bias is None else self.bias[: self.vocabulary]
            raw = linear(hidden, self.weight[: self.vocabulary], bias)
        if raw.dtype in (torch.float16, torch.bfloat16):
            raw = raw.float()
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = self.softcap * (raw / self.softcap).tanh()
        return raw if self.temperature == 1.0 else raw / self.temperature

    def pull_back(
        self, gradient: Float[Tensor, "n V"], logits: Float[Tensor, "n V"] | None
    ) -> Float[Tensor, "n V"]:
        """The gradient before temperature, cap and scale; overwrites its argument.

        `logits` are needed for the cap alone.
        """
        if self.temperature != 1.0:
            gradient /= self.temperature
        if self.softcap is not None:
            assert logits is not None
            squeezed = logits * (self.temperature / self.softcap)
            gradient *= 1 - squeezed.square_()
        if self.scale != 1.0:
            gradient *= self.scale
        return gradient


def chunk_rows(vocabulary: int, device: str) -> int:
    """Tokens of a chunk on a type of device."""
    return max(16, _CHUNK_ELEMENTS.get(device, _CHUNK_ELEMENTS_ELSEWHERE) // vocabulary)


def chunks(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover `count` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def sweep(
    hidden: Float[Tensor, "N H"], head: Head, visit: Visitor, rows: int | None = None
) -> Float[Tensor, ""]:
    """The summed loss of all rows, differentiable in hidden states, weight and bias.

    Args:
        hidden: states to project.
        head: how.
        visit: called once for every chunk, in order, without gradient tracking.
        rows: tokens of a chunk; None chooses by memory.
    """
    vocabulary = (
        head.vocabulary
        or (hidden if head.weight is None else head.weight).shape[1 if head.weight is None else 0]
    )
    size = rows or chunk_rows(vocabulary, hidden.device.type)
    loss: Tensor = _Sweep.apply(hidden, head.weight, head.bias, head, visit, size)  # type: ignore[no-untyped-call]
    return loss


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        head: Head,
        visit: Visitor,
        size: int,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight) if weight is not None and wants_weight else None
        d_bias = torch.zeros_like(bias) if bias is not None and wants_bias else None
        used = slice(0, head.vocabulary)
        total = None
        for part in chunks(len(hidden), size):
            states = hidden[part]
            logits = head.logits(states)
            kept = logits.clone() if head.softcap is not None else None
            loss, gradient = visit(part, logits)
            total = loss if total is None else total + loss
            gradient = head.pull_back(gradient, kept).to(hidden.dtype)
            if weight is None:
                if d_hidden is not None:
                    d_hidden[part, used] = gradient
                continue
            if d_hidden is not None:
                d_hidden[part] = linear(gradient, weight[used].T)
            if d_weight is not None:
                d_weight[used].addmm_(gradient.T, states)
            if d_bias is not None:
                d_bias[used] += gradient.sum(0)
        ctx.gradients = (d_hidden, d_weight, d_bias)
        return hidden.new_zeros(()) if total is None else total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        ctx.gradients = None  # computed once, given away once
        if factor.item() != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient *= factor
        return (*gradients, None, None, None)
