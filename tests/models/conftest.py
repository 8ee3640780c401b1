"""A run on a tiny pair whose student is a Llama with a head of its own."""

from pathlib import Path

import pytest

from helpers import save_tiny_llama, sums, tiny_gpt2, tiny_tokenizer, write_jsonl
from tutelage.config import Config, parse_config


@pytest.fixture(scope="session")
def llamas(tmp_path_factory) -> dict[str, Path]:
    """Students (untied, tied, a GPT-2) and a wider GPT-2 teacher, by name."""
    folder = tmp_path_factory.mktemp("llamas")
    for name, rows, width in (("teacher", 312, 24), ("gpt2", 300, 16)):
        tiny_gpt2(rows, width, width).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return {
        "untied": save_tiny_llama(folder / "untied"),
        "tied": save_tiny_llama(folder / "tied", tied=True),
        "gpt2": folder / "gpt2",
        "teacher": folder / "teacher",
    }


@pytest.fixture
def settings(llamas, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(40))

    def make(**sections) -> Config:
        tree = {
            "student": {"path": str(llamas["untied"])},
            "teacher": {"path": str(llamas["teacher"])},
            "data": {"prompts": str(prompts), "held_out": 10, "verifier": "numeric"},
            "rollout": {"prompts_per_step": 6, "group_size": 2, "max_new_tokens": 10},
            "optimizer": {"lr": 1e-2, "micro_batch_size": 5},
            "evaluation": {"every": 2},
            "run": {"dir": str(tmp_path / "run"), "steps": 4, "save_every": 2},
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return parse_config(tree)

    return make
