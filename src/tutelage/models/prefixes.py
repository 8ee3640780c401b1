"""Several rollouts of one prompt: the prompt is read once, and its gradient is theirs together.

The prompts pass through the model first, each once. Their keys and values are given to every row
that begins with them, and the completions pass through over those. The hidden states are those of
whole rows; gradients flow back through keys and values.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tutelage.types import Batch

# What is saved at least where two passes are worth it: a share of a batch's tokens, and tokens.
_SHARE, _TOKENS = 0.25, 512


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """A batch as prompts without copies, and the completions that follow them."""

    prompts: Tensor
    """int64 [U, P]: right-padded."""
    prompt_mask: Tensor
    """int64 [U, P]."""
    copies: Tensor
    """int64 [B]: which prompt each row begins with."""
    completions: Tensor
    """int64 [B, C]: what each row reads after its prompt, all but its last token; right-padded."""
    completion_mask: Tensor
    """int64 [B, C]."""


def shared_prompts(batch: Batch) -> SharedPrompts | None:
    """The batch without copies of prompts; None where they are too few to be worth it."""
    if batch.position_ids is not None or not bool(batch.loss_mask.any(-1).all()):
        return None
    starts = (batch.loss_mask.int().argmax(-1) + 1).tolist()
    ends = batch.attention_mask.sum(-1).tolist()
    rows = batch.input_ids.tolist()
    own = [tuple(row[:start]) for row, start in zip(rows, starts, strict=True)]
    unique = {prompt: i for i, prompt in enumerate(dict.fromkeys(own))}
    if not saves_enough(own, sum(ends)):
        return None
    prompts, prompt_mask = _padded(list(unique))
    completions, completion_mask = _padded(
        [row[start : end - 1] for row, start, end in zip(rows, starts, ends, strict=True)]
    )
    copies = torch.tensor([unique[prompt] for prompt in own])
    return SharedPrompts(prompts, prompt_mask, copies, completions, completion_mask)


def saves_enough(prompts: Sequence[Sequence[int]], tokens: int) -> bool:
    """Whether copies of prompts are so large a part of so many tokens that they are left out."""
    saved = sum(map(len, prompts)) - sum(map(len, set(map(tuple, prompts))))
    return saved >= max(_TOKENS, _SHARE * tokens)


def can_share(model: PreTrainedModel) -> bool:
    """Whether all that a model remembers of a prompt are keys and values, which a mask can hide.

    Rows of shorter prompts have padding between prompt and completion. Masks of other kinds of
    attention were never tried with that.
    """
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    names = inspect.signature(model.forward).parameters
    if not {"past_key_values", "position_ids"} <= names.keys():
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def shared_states(model: PreTrainedModel, shared: SharedPrompts) -> Tensor | None:
    """Hidden states [N, H] at the states of the scored tokens; None if the cache is another."""
    device, base = model.device, model.base_model
    mask, copies = shared.prompt_mask.to(device), shared.copies.to(device)
    cache = DynamicCache(config=model.config)
    prompts: Any = base(
        input_ids=shared.prompts.to(device),
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    if prompts.past_key_values is not cache or cache.get_seq_length() != mask.shape[-1]:
        return None
    lengths = mask.sum(-1)
    last = prompts.last_hidden_state[torch.arange(len(mask), device=device), lengths - 1]
    states = last[copies].unsqueeze(1)
    follows = shared.completion_mask.to(device)
    if follows.shape[-1]:
        cache.reorder_cache(copies)
        positions = lengths[copies].unsqueeze(-1) + torch.arange(follows.shape[-1], device=device)
        completions: Any = base(
            input_ids=shared.completions.to(device),
            attention_mask=torch.cat([mask[copies], follows], dim=-1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        states = torch.cat([states, completions.last_hidden_state], dim=1)
    scored = torch.cat([follows.new_ones(len(follows), 1), follows], dim=1)
    picked: Tensor = states[scored.bool()]
    return picked


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids, mask
