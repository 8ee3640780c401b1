"""The decoding loop: many rows of one model, token by token, over its cache."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tutelage.models.cache import give_room
from tutelage.ops.sampling import draw
from tutelage.types import FinishReason, SamplingParams


@dataclass(slots=True)
class Completion:
    """What the decoding loop gives for one row."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    draws: Tensor,
    params: SamplingParams,
    limits: Sequence[int],
    stops: frozenset[int],
    vocabulary: int,
) -> list[Completion]:
    """Completions of left-padded prompts, row i drawn by the uniforms `draws[i]` alone.

    Row i ends after `limits[i]` tokens, if not before.

    Equal prompts are read once. Finished rows leave the batch once they are half of it.
    """
    unique = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    longest = max(map(len, unique))
    padded = any(len(prompt) != longest for prompt in unique)
    device = model.device
    input_ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in unique], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in unique], device=device)
    copies = torch.tensor([unique[tuple(prompt)] for prompt in prompts], device=device)
    stop_tensor = torch.tensor(sorted(stops), dtype=torch.long, device=device)
    rows = torch.arange(len(prompts), device=device)  # which prompt each row of the batch is
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    ids_out = torch.full((len(prompts), params.max_new_tokens), -1, dtype=torch.long, device=device)
    logprobs_out = torch.zeros((len(prompts), params.max_new_tokens), device=device)
    most = torch.tensor(limits, device=device).clamp_max(params.max_new_tokens)
    lengths = most.clone()
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    cache: Any = None
    for place in range(params.max_new_tokens):
        extra: dict[str, Any] = {}
        if padded:  # without padding the defaults say the same and cost less
            extra["attention_mask"] = mask
            if takes_positions:
                positions = (mask.cumsum(-1) - 1).clamp_min(0)
                extra["position_ids"] = positions[:, -input_ids.shape[1] :]
        output = model(
            input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **extra
        )
        cache, logits = output.past_key_values, output.logits[:, -1, :vocabulary]
        if place == 0 and len(unique) < len(prompts):
            cache.reorder_cache(copies)
            logits, mask = logits[copies], mask[copies]
        if place == 0:
            give_room(cache, params.max_new_tokens)
        token, logprob = draw(
            logits,
            draws[rows, place],
            params.temperature,
            params.top_p,
            params.top_k,
        )
        ids_out[rows[alive], place] = token[alive]
        logprobs_out[rows[alive], place] = logprob[alive].float()
        ended = alive & (torch.isin(token, stop_tensor) | (most[rows] <= place + 1))
        lengths[rows[ended]] = place + 1
        alive = alive & ~ended
        live = int(alive.sum())
        if live == 0:
            break
        if live <= len(alive) // 2 and place + 1 < params.max_new_tokens:
            kept = alive.nonzero().squeeze(-1)
            cache.reorder_cache(kept)
            rows, token, mask, alive = rows[kept], token[kept], mask[kept], alive[kept]
        input_ids = token.unsqueeze(-1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
    return [
        _completion(ids[:n], logprobs[:n], stops)
        for ids, logprobs, n in zip(
            ids_out.tolist(), logprobs_out.tolist(), lengths.tolist(), strict=True
        )
    ]


def _completion(ids: list[int], logprobs: list[float], stops: frozenset[int]) -> Completion:
    reason: FinishReason = "stop" if ids and ids[-1] in stops else "length"
    return Completion(tuple(ids), tuple(logprobs), reason)
