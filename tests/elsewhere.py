"""A device that is only pretended: tensors left on the CPU are found on a machine without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda")
_DEVICE, _IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]


class Elsewhere(TorchFunctionMode):
    """Inside, what is put on `cuda` stays on the CPU with a mark, and operations mind the marks.

    As on a real device, an operation takes tensors of one place alone; a number without dimensions
    may come from the CPU, and so may an index. What comes out of torch's own C++ without a mark,
    such as a gradient, may meet both.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func == _DEVICE:
            return DEVICE if _place(args[0]) == "there" else func(*args)
        if func == _IS_CUDA:
            return _place(args[0]) == "there"
        if name == "_parse_to":  # what `Module.to` was asked
            return func(*args, **kwargs)
        given = _tensors((args, kwargs))
        asked = [d for d in map(_as_device, tree_leaves((args, kwargs))) if d is not None]
        there = any(_place(t) == "there" for t in given)
        here = any(_place(t) == "here" and t.dim() for t in given)
        if there and here and not _may_meet(name, args):
            raise RuntimeError(f"{name}: tensors on {DEVICE} and on the CPU in one operation")
        if there and name in ("numpy", "__array__"):
            raise TypeError(f"a tensor on {DEVICE} is no array; copy it with .cpu() first")
        if asked:
            args, kwargs = tree_map(_on_cpu, args), tree_map(_on_cpu, kwargs)
        result = func(*args, **kwargs)
        if name == "__set__":  # as of `parameter.data`
            if isinstance(args[1], torch.Tensor) and (place := _place(args[1])):
                args[0].place = place
            return result
        moves = name == "cpu" or (asked and given)
        if name == "cpu" or asked:
            place = "there" if DEVICE.type in [d.type for d in asked] else "here"
            if moves and result is args[0] and _place(result) != place:
                result = result.clone()  # as between devices: other memory
        elif given:
            place = "there" if there else _place(given[0])
        else:
            place = "here"
        for tensor in _tensors(result):
            if place and (moves or _place(tensor) is None):
                tensor.place = place  # type: ignore[attr-defined]
        return result


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, models of `auto` go to the pretended device."""
    monkeypatch.setattr("tutelage.models.loading.choose_device", lambda name, role: DEVICE)
    with Elsewhere():
        yield


def _place(tensor: torch.Tensor) -> str | None:
    return getattr(tensor, "place", None)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _as_device(value: Any) -> torch.device | None:
    if not isinstance(value, str | torch.device) or str(value).split(":")[0] not in ("cuda", "cpu"):
        return None  # meta, too
    return torch.device(value)


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if _as_device(value) is not None else value


def _may_meet(name: str, args: Any) -> bool:
    if name in ("__getitem__", "index", "index_put_"):
        return _place(args[0]) == "there"
    if name == "__setitem__":
        value = args[2]
        same = not isinstance(value, torch.Tensor) or _place(value) != "here" or not value.dim()
        return _place(args[0]) == "there" and same
    return name in ("copy_", "to", "__set__")
