"""Rollouts as JSON, for checkpoints, and packed, for messages between ranks."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tutelage.runs.directory import defined
from tutelage.types import Prompt, Rollout

_TOKENS = {
    "prompt_ids": torch.int64,
    "teacher_prompt_ids": torch.int64,
    "completion_ids": torch.int64,
    "logprobs": torch.float64,
}
_OTHERS = [f.name for f in fields(Rollout) if f.name not in _TOKENS and f.name != "prompt"]


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """Everything but the prompt's text, which its id stands for."""
    return {
        **_without_tokens(rollout),
        **{name: getattr(rollout, name) for name in _TOKENS},
        "logprobs": [defined(x) for x in rollout.logprobs],
    }


def rollout_from_json(record: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> Rollout:
    """The rollout that `rollout_to_json` wrote, given the prompts by id."""
    teacher_ids = record["teacher_prompt_ids"]
    tuples: dict[str, Any] = {
        "prompt_ids": tuple(record["prompt_ids"]),
        "teacher_prompt_ids": None if teacher_ids is None else tuple(teacher_ids),
        "completion_ids": tuple(record["completion_ids"]),
        "logprobs": tuple(math.nan if x is None else x for x in record["logprobs"]),
    }
    return Rollout(**{**record, **tuples, "prompt": prompts[record["prompt"]]})


def pack_rollouts(rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """Rollouts as a few tensors, which are told faster than JSON.

    `others` is the JSON of what is not a number a token; of each kind of tokens there are those
    of all rollouts, one after the other, and how many each has (-1: None).
    """
    told = json.dumps([_without_tokens(rollout) for rollout in rollouts]).encode()
    packed = {"others": torch.frombuffer(bytearray(told), dtype=torch.uint8)}
    for name, kind in _TOKENS.items():
        parts = [getattr(rollout, name) for rollout in rollouts]
        packed[name] = torch.tensor(list(chain.from_iterable(p or () for p in parts)), dtype=kind)
        lengths = [-1 if part is None else len(part) for part in parts]
        packed[f"{name}/lengths"] = torch.tensor(lengths, dtype=torch.int64)
    return packed


def unpack_rollouts(packed: Mapping[str, Tensor], prompts: Mapping[str, Prompt]) -> list[Rollout]:
    """The rollouts that `pack_rollouts` packed, given the prompts by id."""
    records = json.loads(packed["others"].numpy().tobytes())
    for name in _TOKENS:
        values, begin = packed[name].tolist(), 0
        for record, length in zip(records, packed[f"{name}/lengths"].tolist(), strict=True):
            record[name] = None if length < 0 else tuple(values[begin : begin + length])
            begin += max(length, 0)
    return [Rollout(**{**record, "prompt": prompts[record["prompt"]]}) for record in records]


def _without_tokens(rollout: Rollout) -> dict[str, Any]:
    return {"prompt": rollout.prompt.id, **{name: getattr(rollout, name) for name in _OTHERS}}
