"""Matrix products in float32 on processors where torch takes the slower of its two libraries.

torch multiplies float32 matrices with MKL, which leaves half of an AMD processor with AVX-512
unused; oneDNN, which torch brings along too, does not. So layers and heads multiply with oneDNN
there, where a product is large enough to be worth the call, and as ever elsewhere.
"""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Multiplications from which oneDNN is worth its call. It makes a kernel for every new number of
# rows, in a third of a millisecond: a batch's is new each time, a decoding step's comes again.
_WORTH, _WORTH_DECODING = 2**24, 2**22
_ROWS, _ROWS_DECODING = 8, 64


@cache
def prefers_onednn() -> bool:
    """Whether this processor is one of those; a fact of the machine, so that results repeat."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AMD" in _vendor()
    )


def linear(
    inputs: Float[Tensor, "*S K"],
    weight: Float[Tensor, "N K"],
    bias: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, "*S N"]:
    """inputs @ weight.T + bias, differentiable once."""
    if not _is_worth_it(inputs, weight):
        return nn.functional.linear(inputs, weight, bias)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (inputs, weight, bias)
    ):
        product: Tensor = _Linear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return _onednn(inputs, weight, bias)


def speed_up(model: nn.Module) -> None:
    """Let the linear layers of a model multiply by `linear`, where that is another way."""
    if prefers_onednn():
        # A kernel is made for every shape, and batches come in many: 1,024 of them would be kept.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _FastLinear


class _FastLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _onednn(inputs, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad
        flat = above.reshape(-1, above.shape[-1])
        return (
            _onednn(above, weight.T) if wants_inputs else None,
            _onednn(flat.T, inputs.reshape(-1, inputs.shape[-1]).T) if wants_weight else None,
            flat.sum(0) if wants_bias else None,
        )


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


def _is_worth_it(inputs: Tensor, weight: Tensor) -> bool:
    rows = inputs.numel() // max(1, inputs.shape[-1])
    worth = _WORTH_DECODING if rows <= _ROWS_DECODING else _WORTH
    return (
        prefers_onednn()
        and rows >= _ROWS
        and inputs.numel() * weight.shape[0] >= worth
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)  # not what FSDP2 holds of it
        and not torch.is_autocast_enabled("cpu")
    )


def _vendor() -> str:
    file = Path("/proc/cpuinfo")
    if file.exists():
        return file.read_text(errors="replace")[:1000]
    return platform.processor()  # names the vendor on Windows
