"""Rollouts as JSON, for checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tutelage.types import Prompt, Rollout


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """Everything but the prompt's text, which its id stands for."""
    record = asdict(rollout)
    record["prompt"] = rollout.prompt.id
    return record


def rollout_from_json(record: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> Rollout:
    """The rollout that `rollout_to_json` wrote, given the prompts by id."""
    tuples = {key: tuple(record[key]) for key in ("prompt_ids", "completion_ids", "logprobs")}
    return Rollout(**{**record, **tuples, "prompt": prompts[record["prompt"]]})
