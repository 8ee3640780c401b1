"""Small models and prompts that tests build for themselves."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tutelage.config import Config, parse_config
from tutelage.models.base import Sampler
from tutelage.types import Prompt, RenderedPrompt, Rollout, SamplingParams

TEXT = [f"What is {a} + {b}? The answer is {a + b}." for a in range(30) for b in range(30)]


def tiny_tokenizer(extra: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>", *extra],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def tiny_gpt2(rows: int, width: int, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with tied embeddings, dropout in its config and random weights."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=rows,
        n_positions=64,
        n_embd=width,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    model = GPT2LMHeadModel(config).eval()
    # One id in fifteen ends a completion, so that lengths differ.
    model.generation_config.eos_token_id = list(range(0, 300, 15))
    return model


def save_tiny_pair(folder: Path) -> tuple[Path, Path]:
    """Student and wider teacher; the teacher's head is padded."""
    tokenizer = tiny_tokenizer()
    for name, width, rows, seed in (
        ("student", 16, len(tokenizer), 0),
        ("teacher", 24, len(tokenizer) + 12, 1),
    ):
        tiny_gpt2(rows, width, seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "student", folder / "teacher"


def save_tiny_llama(folder: Path, *, tied: bool = False, rows: int = 0, seed: int = 0) -> Path:
    """A Llama with random weights, and its tokenizer; `rows` pads or cuts the head."""
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


def draw_rollouts(model: Sampler, count: int = 6) -> list[Rollout]:
    """Rollouts of prompts of several lengths."""
    prompts = [
        RenderedPrompt(prompt=Prompt(id=f"p{i}", text="x"), ids=tuple(range(5, 8 + i)))
        for i in range(count)
    ]
    return model.sample(prompts, SamplingParams(max_new_tokens=8), seed=0, step=0)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int) -> list[dict[str, str]]:
    """Question and answer rows that the tiny tokenizer reads."""
    return [
        {"question": f"What is {i} + {2 * i}?", "answer": str(3 * i), "id": f"sum-{i}"}
        for i in range(count)
    ]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tiny_run(folder: Path, student: Path, teacher: Path, lr: float) -> Callable[..., Config]:
    """Settings of a four-step run; called with sections to change in them."""
    prompts = write_jsonl(folder / "prompts.jsonl", sums(40))

    def make(**sections: Mapping[str, Any]) -> Config:
        tree: dict[str, Any] = {
            "student": {"path": str(student)},
            "teacher": {"path": str(teacher)},
            "data": {"prompts": str(prompts), "held_out": 10, "verifier": "numeric"},
            "rollout": {"prompts_per_step": 6, "group_size": 2, "max_new_tokens": 10},
            "optimizer": {"lr": lr, "micro_batch_size": 5},
            "evaluation": {"every": 2},
            "run": {"dir": str(folder / "run"), "steps": 4, "save_every": 2},
        }
        for name, section in sections.items():
            kept = {} if name == "teacher" and "type" in section else tree.get(name, {})
            tree[name] = {**kept, **section}
        return parse_config(tree)

    return make
