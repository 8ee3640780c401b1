"""Fake servers on the tiny pair."""

import pytest
from fake import FakeVllm

from helpers import sums, write_jsonl
from tutelage.config import Config, parse_config


@pytest.fixture
def serve():
    servers = []

    def start(folder, **settings):
        servers.append(FakeVllm(folder, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Retries that do not wait."""
    monkeypatch.setattr("tutelage.models.served.client.LONGEST_PAUSE_S", 0.001)


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(24))

    def make(**sections) -> Config:
        tree = {
            "student": {"path": str(gpt2_pair[0])},
            "teacher": {"path": str(gpt2_pair[1])},
            "data": {"prompts": str(prompts), "held_out": 4, "verifier": "numeric"},
            "rollout": {"prompts_per_step": 4, "group_size": 2, "max_new_tokens": 10},
            "optimizer": {"lr": 3e-3, "micro_batch_size": 5},
            # A random teacher would draw ids of its padding.
            "evaluation": {"every": 0, "teacher": 0},
            "run": {"dir": str(tmp_path / "run"), "steps": 2, "save_every": 1},
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return parse_config(tree)

    return make
