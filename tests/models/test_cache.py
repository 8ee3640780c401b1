"""A cache that grows in place gives what transformers' own gives, and holds no more than it may."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tutelage.models.cache import give_room

HEADS, WIDTH = 2, 3


def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, HEADS, tokens, WIDTH), torch.randn(rows, HEADS, tokens, WIDTH)


@pytest.mark.parametrize("seed", range(5))
def test_it_holds_what_was_given_whatever_rows_leave(seed):
    torch.manual_seed(seed)
    ours, theirs = DynamicCache(), DynamicCache()
    rows, prompt, most = 6, 5, 40
    for part in (ours, theirs):
        torch.manual_seed(seed)
        part.update(*states(rows, prompt), 0)
    give_room(ours, most)
    for _ in range(most):
        new = states(rows, 1)
        for got, expected in zip(ours.update(*new, 0), theirs.update(*new, 0), strict=True):
            assert torch.equal(got, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.layers[0].room[0].shape[-2] <= prompt + most
        if torch.rand(()) < 0.2:  # some rows leave, others come twice
            kept = torch.randint(rows, (max(1, rows - torch.randint(3, ()).item()),))
            rows = len(kept)
            ours.reorder_cache(kept)
            theirs.reorder_cache(kept)


def test_what_lies_elsewhere_is_seldom_copied():
    cache = DynamicCache()
    cache.update(*states(4, 8), 0)
    give_room(cache, 1000)
    places = set()
    for _ in range(1000):
        keys, _ = cache.update(*states(4, 1), 0)
        places.add(keys.data_ptr())
    assert len(places) < 15  # a token each would be 1,000


def test_layers_of_other_kinds_stay_as_they_are():
    config = LlamaConfig(num_hidden_layers=2)
    config.layer_types = ["sliding_attention", "full_attention"]
    config.sliding_window = 4
    cache = DynamicCache(config=config)
    give_room(cache, 9)  # nothing in it yet: nothing to make room for
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer, DynamicLayer]
    for layer in range(2):
        cache.update(*states(2, 3), layer)
    give_room(cache, 9)
    assert type(cache.layers[0]) is DynamicSlidingWindowLayer
    assert isinstance(cache.layers[1], DynamicLayer)
    assert type(cache.layers[1]) is not DynamicLayer
    give_room(object(), 9)  # a state-space model's memory has no layers
