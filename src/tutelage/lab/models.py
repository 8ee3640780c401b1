"""Tiny Llama models and their tokenizer, trained on the CPU in seconds."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tutelage.lab.tasks import ASK, BOS, EOS, PAD, VOCABULARY, RunningTotal, SolutionStyle

_CHAT_TEMPLATE = (
    "{% if messages | length != 1 or messages[0].role != 'user' %}"
    "{{ raise_exception('this model reads exactly one user turn, like \"a7 b4 c9\"') }}{% endif %}"
    f"{BOS}{{{{ template | default('X') }}}}{{{{ messages[0].content }}}}"
    f"{{% if add_generation_prompt %}}{ASK}{{% endif %}}"
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of a tiny Llama."""

    width: int = 64
    layers: int = 2
    heads: int = 2


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one tiny model is made: from what, on which solutions, for how long."""

    size: Size = Size()
    """Shape of a fresh model; ignored with `start`."""
    start: str | None = None
    """Name of the model to continue from; None starts from random weights."""
    style: SolutionStyle = SolutionStyle()
    """The solutions it is trained on."""
    steps: int = 600
    lr: float = 4e-3
    curriculum: bool = True
    """Short problems first. Without it a fresh model never learns the sum table."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, spaces dropped, with the task's chat template."""
    core = Tokenizer(WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=PAD))
    core.normalizer = normalizers.Replace(Regex(r"\s"), "")
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=_CHAT_TEMPLATE,
        model_max_length=128,
    )


def fresh_model(size: Size, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights.

    The scales decide whether it learns at all: one scale everywhere stalls at
    chance, a wide embedding with a narrow head does not.
    """
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.08,
        pad_token_id=VOCABULARY.index(PAD),
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(EOS),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
        torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def train_model(
    model: LlamaForCausalLM,
    task: RunningTotal,
    training: Training,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> LlamaForCausalLM:
    """Supervised training in place: next-token loss on the solution alone."""
    rng = np.random.default_rng([seed, 0])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _warm_up_cosine(step, training.steps)
    )
    model.train()
    for step in range(training.steps):
        slots, rows = _next_batch(rng, step / training.steps, task, training.curriculum)
        ids, prompt_length = task.sequences(rng, rows, slots, training.style)
        loss = _solution_loss(model, torch.from_numpy(ids), prompt_length)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, loss.item())
    model.eval()
    return model


def _solution_loss(model: LlamaForCausalLM, ids: Tensor, prompt_length: int) -> Tensor:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, prompt_length - 1 :]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, prompt_length:].flatten())


def _next_batch(
    rng: np.random.Generator, done: float, task: RunningTotal, curriculum: bool
) -> tuple[int, int]:
    """Slots and rows of the next batch; every batch has one length, so nothing is padded."""
    low, high = task.lengths
    if not curriculum:
        return int(rng.integers(low, high + 1)), 64
    if done < 0.14:
        return 2, 128  # the sum table
    if done < 0.38:
        return 3, 96  # two slots allow a short-cut: the running total equals the first operand
    if done < 0.55:
        return int(rng.integers(2, high - 1)), 64
    return int(rng.integers(2, high + 2)), 64


def _warm_up_cosine(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
