"""Tiny Llama models and their tokenizer, trained on the CPU in seconds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tutelage.config import PromptFormat
from tutelage.data.render import render
from tutelage.data.verify import make_verifier
from tutelage.errors import UsageError
from tutelage.evaluation import evaluate
from tutelage.lab.tasks import ASK, BOS, EOS, PAD, RunningTotal, SolutionStyle, Task
from tutelage.models.local import LocalModel
from tutelage.types import SamplingParams

ROUNDS = 4
"""Trainings in a row that `Training.until_accuracy` allows."""
_JUDGED = 400


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
    until_accuracy: float | None = None
    """Sampled accuracy on training problems to reach: until then the training is repeated, without
    the curriculum; None trains once. Some seeds stall, and a weak teacher shows nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainingOnLengths(Training):
    """Training on problems of other lengths than the task's."""

    lengths: tuple[int, int]
    """Fewest and most slots."""


def make_tokenizer(task: Task | None = None) -> PreTrainedTokenizerFast:
    """A task's tokens, one each, with its chat template; by default those of the running total."""
    task = task or RunningTotal()
    core = Tokenizer(
        WordLevel({token: i for i, token in enumerate(task.vocabulary)}, unk_token=PAD)
    )
    if task.separator:
        numbers = pre_tokenizers.Split(Regex(r"\d+|\D"), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), numbers])
    else:
        core.normalizer = normalizers.Replace(Regex(r"\s"), "")
        core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=_chat_template(task.example),
        model_max_length=128,
    )


def _chat_template(example: str) -> str:
    return (
        "{% if messages | length != 1 or messages[0].role != 'user' %}"
        "{{ raise_exception('this model reads exactly one user turn, like "
        f'"{example}"\') }}}}{{% endif %}}'
        f"{BOS}{{{{ template | default('X') }}}}{{{{ messages[0].content }}}}"
        f"{{% if add_generation_prompt %}}{ASK}{{% endif %}}"
    )


def fresh_model(size: Size, seed: int, vocabulary: Sequence[str]) -> LlamaForCausalLM:
    """A Llama with random weights.

    The scales decide whether it learns at all: one scale everywhere stalls at
    chance, a wide embedding with a narrow head does not.
    """
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.08,
        pad_token_id=vocabulary.index(PAD),
        bos_token_id=vocabulary.index(BOS),
        eos_token_id=vocabulary.index(EOS),
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
    task: Task,
    training: Training,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> LlamaForCausalLM:
    """Supervised training in place: next-token loss on the solution alone.

    Raises:
        UsageError: `until_accuracy` was not reached in `ROUNDS` trainings.
    """
    rng = np.random.default_rng([seed, 0])
    _train_once(model, task, training, rng, progress)
    if (target := training.until_accuracy) is None:
        return model
    again = replace(training, curriculum=False)
    for _ in range(ROUNDS - 1):
        if (reached := sampled_accuracy(model, task, seed)) >= target:
            return model
        _train_once(model, task, again, rng, progress)
    if (reached := sampled_accuracy(model, task, seed)) < target:
        raise UsageError(
            f"a model of {training.size} samples {reached:.3f} right after {ROUNDS} trainings of "
            f"{training.steps} steps, below until_accuracy {target}; train for more steps, or "
            "choose another seed"
        )
    return model


def sampled_accuracy(model: LlamaForCausalLM, task: Task, seed: int) -> float:
    """Share of right samples at temperature 1, one on each of 400 training problems."""
    local = LocalModel(model=model, tokenizer=make_tokenizer(task))
    prompts = task.train_prompts(_JUDGED, seed)
    rendered, _ = render(prompts, local.tokenizer, PromptFormat(), local.tokenizer.model_max_length)
    params = SamplingParams(max_new_tokens=task.longest_solution)
    found = evaluate(local, rendered, make_verifier(task.verifier), params, seed=seed)
    return fmean(found.accuracies)


def _train_once(
    model: LlamaForCausalLM,
    task: Task,
    training: Training,
    rng: np.random.Generator,
    progress: Callable[[int, float], None] | None,
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _warm_up_cosine(step, training.steps)
    )
    low, high = task.lengths
    model.train()
    for step in range(training.steps):
        if training.curriculum:
            slots, rows = task.next_batch(rng, step / training.steps)
        else:
            slots, rows = int(rng.integers(low, high + 1)), 64
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


def _solution_loss(model: LlamaForCausalLM, ids: Tensor, prompt_length: int) -> Tensor:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, prompt_length - 1 :]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, prompt_length:].flatten())


def _warm_up_cosine(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
