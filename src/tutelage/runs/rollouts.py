"""Rollouts as JSON, for checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tutelage.runs.directory import defined
from tutelage.types import Prompt, Rollout


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """Everything but the prompt's text, which its id stands for."""
    record = asdict(rollout)
    record["prompt"] = rollout.prompt.id
    record["logprobs"] = [defined(x) for x in rollout.logprobs]
    return record


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
