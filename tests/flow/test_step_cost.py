"""What a step costs, counted and not timed, so that a loss of speed is noticed and noise is not."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from helpers import tiny_tokenizer
from tutelage.config import Full, TopK
from tutelage.gradient import Models, accumulate
from tutelage.models.local import LocalModel
from tutelage.ops import products as ops_products
from tutelage.types import Prompt, RenderedPrompt, Rollout, SamplingParams

VOCABULARY, WIDTH, LAYERS, INNER = 2048, 32, 2, 96
FULL = Full()
PER_LAYER = 4 * WIDTH**2 + 3 * WIDTH * INNER


def model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=1024,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    local = LocalModel(LlamaForCausalLM(config).eval(), tiny_tokenizer(), vocabulary=VOCABULARY)
    return local


@pytest.fixture(autouse=True)
def one_library(monkeypatch):
    """The counter knows the products of one of torch's libraries alone."""
    monkeypatch.setattr(ops_products, "prefers_onednn", lambda: False)


@pytest.fixture(scope="module")
def models():
    student, teacher = model(0), model(1)
    for parameter in teacher.model.parameters():
        parameter.requires_grad_(False)
    return Models(student=student, teacher=teacher, references={})


def rollout(prompt, index, length, read=8):
    generator = torch.Generator().manual_seed(prompt)
    prompt_ids = tuple(torch.randint(2, VOCABULARY, (read,), generator=generator).tolist())
    ids = tuple((7 * i + 13 * index + prompt) % (VOCABULARY - 2) + 2 for i in range(length))
    return Rollout(
        prompt=Prompt(id=f"q{prompt}", text="q"),
        index=index,
        prompt_ids=prompt_ids,
        completion_ids=ids,
        logprobs=(-1.0,) * length,
        finish_reason="stop",
        text="",
        policy_step=0,
    )


def step(models, rollouts, objective=FULL):
    models.student.model.zero_grad()
    return accumulate(
        models,
        objective,
        rollouts,
        micro_batch_size=64,
        aggregation="token_mean",
        overlap_k=16,
    )


def products(models, rollouts):
    """FLOPs of a step's products outside attention."""
    counter = FlopCounterMode(display=False)
    with counter:
        step(models, rollouts)
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if "attention" not in str(op))


def least_products(read, scored):
    """2 FLOPs a weight and token forwards, 4 backwards; heads at the scored tokens alone."""
    layers, head = LAYERS * PER_LAYER, WIDTH * VOCABULARY
    return 2 * (layers * read + head * scored) + 6 * (layers * read + head * scored)


def test_a_step_multiplies_what_the_arithmetic_asks_for(models):
    lengths = [3 + (11 * i) % 60 for i in range(48)]
    rollouts = [rollout(i, 0, n) for i, n in enumerate(lengths)]
    read, scored = sum(lengths) + 8 * 48 - 48, sum(lengths)
    assert products(models, rollouts) < 1.1 * least_products(read, scored)


def test_one_long_rollout_does_not_make_the_others_longer(models):
    short = [rollout(i, 0, 10) for i in range(48)]
    alone = products(models, short)
    both = products(models, [*short, rollout(48, 0, 500)])
    assert both < alone + 1.1 * least_products(508, 500)


def test_a_long_prompt_of_many_rollouts_is_read_once(models):
    def group(size):
        return [rollout(p, i, 16, read=400) for p in range(2) for i in range(size)]

    one, eight = products(models, group(1)), products(models, group(8))
    assert eight < one + 1.1 * least_products(14 * 17, 14 * 16)


class Operations(TorchDispatchMode):
    """Counts operations, and those that make a tensor of a given size."""

    def __init__(self, large):
        super().__init__()
        self.large, self.all, self.heavy = large, 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.all += 1
        moved = "view" in str(func) or "slice" in str(func) or func.is_view
        if isinstance(result, torch.Tensor) and result.numel() >= self.large and not moved:
            self.heavy[str(func)] += 1
        return result


@pytest.mark.parametrize(("objective", "most"), [(Full(), 19), (TopK(), 15)])
def test_a_step_passes_over_the_vocabulary_no_more_often_than_it_did(models, objective, most):
    rollouts = [rollout(i, 0, 20) for i in range(20)]
    counter = Operations(large=400 * VOCABULARY)
    with counter:
        step(models, rollouts, objective)
    assert sum(counter.heavy.values()) <= most, counter.heavy


def test_sampling_a_token_takes_few_operations_besides_the_models_own(models):
    prompts = [
        RenderedPrompt(prompt=Prompt(id=f"q{i}", text="q"), ids=(2, 3, 4 + i)) for i in range(8)
    ]

    def sampled(tokens):
        params = SamplingParams(max_new_tokens=tokens, temperature=1.0)
        counter = Operations(large=2**60)
        with counter:
            models.student.sample(prompts, params, seed=0, step=0)
        return counter.all

    network, ids = models.student.model, torch.zeros(8, 1, dtype=torch.long)
    with torch.no_grad():
        cache = network(input_ids=ids, use_cache=True).past_key_values
        with Operations(large=2**60) as counter:
            network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    assert (sampled(24) - sampled(8)) / 16 <= counter.all + 60
