"""Keys and values that are written where they stay.

transformers appends a token to its cache by copying all that is in it. Layers with room for what
will come write the new token alone: a long decoding copies each number a few times, not once a
token.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

_GROWTH = 1.5


def give_room(cache: Any, tokens: int) -> None:
    """Let the plain layers of a transformers cache grow in place, up to so many tokens more.

    Layers of other kinds stay as they are, and so do those that hold nothing.
    """
    for place, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[place] = _RoomyLayer(layer, tokens)


class _RoomyLayer(DynamicLayer):
    """Its keys and values are views of the filled part of larger tensors."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.__dict__ |= layer.__dict__
        self.most = layer.get_seq_length() + tokens
        self.room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values with the new ones at their end."""
        filled = self.get_seq_length()
        total = filled + key_states.shape[-2]
        if self.room is None or total > self.room[0].shape[-2]:
            size = max(total, min(int(total * _GROWTH), self.most))
            self.room = (_roomy(self.keys, size), _roomy(self.values, size))
        for whole, new in zip(self.room, (key_states, value_states), strict=True):
            whole[:, :, filled:total] = new
        self.keys, self.values = (whole[:, :, :total] for whole in self.room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep these rows, in this order."""
        super().reorder_cache(beam_idx)
        self.room = None


def _roomy(states: Tensor, tokens: int) -> Tensor:
    batch, heads, filled, width = states.shape
    whole = states.new_empty(batch, heads, tokens, width)
    whole[:, :, :filled] = states
    return whole
