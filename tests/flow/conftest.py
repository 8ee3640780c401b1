"""A run on the tiny pair, ready to be changed."""

import pytest

from helpers import sums, write_jsonl
from tutelage.config import Config, parse_config


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(40))

    def make(**sections) -> Config:
        tree = {
            "student": {"path": str(gpt2_pair[0])},
            "teacher": {"path": str(gpt2_pair[1])},
            "data": {"prompts": str(prompts), "held_out": 10, "verifier": "numeric"},
            "rollout": {"prompts_per_step": 6, "group_size": 2, "max_new_tokens": 10},
            "optimizer": {"lr": 3e-3, "micro_batch_size": 5},
            "evaluation": {"every": 2},
            "run": {"dir": str(tmp_path / "run"), "steps": 4, "save_every": 2},
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return parse_config(tree)

    return make
