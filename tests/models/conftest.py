"""A run on a tiny pair whose student is a Llama with a head of its own."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers import sums, tiny_gpt2, tiny_tokenizer, write_jsonl
from tutelage.config import Config, parse_config


def save_llama(folder: Path, *, tied: bool = False, rows: int = 0, seed: int = 0) -> Path:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = list(range(0, 300, 15))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llamas(tmp_path_factory) -> dict[str, Path]:
    """Students (untied, tied, a GPT-2) and a wider GPT-2 teacher, by name."""
    folder = tmp_path_factory.mktemp("llamas")
    for name, rows, width in (("teacher", 312, 24), ("gpt2", 300, 16)):
        tiny_gpt2(rows, width, width).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return {
        "untied": save_llama(folder / "untied"),
        "tied": save_llama(folder / "tied", tied=True),
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
