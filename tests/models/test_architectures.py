"""Families of real models decode here as they score, and what does not is refused at loading."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from helpers import tiny_tokenizer
from tutelage.data.collate import collate
from tutelage.errors import UsageError
from tutelage.models import prefixes
from tutelage.models.loading import require_decodable
from tutelage.models.local import LocalModel
from tutelage.types import Prompt, RenderedPrompt, SamplingParams

TOKENIZER = tiny_tokenizer()
SIZES = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "qwen3_next": LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_5_text": LINEAR,
    "gemma3_text": SLIDING,
    "gpt_oss": SLIDING | {"num_local_experts": 4},
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_ff_dim": 48,
        "block_auto_adjust_ff_dim": False,
    },
    "mistral": {"sliding_window": 4},
    "smollm3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
TEXTS = ("What is 3 + 4?", "The answer is 12. What is 2 + 2? What is 9 + 9?", "3")
PROMPTS = [
    RenderedPrompt(
        prompt=Prompt(id=text, text=text, answer=None),
        ids=tuple(TOKENIZER(text)["input_ids"]),
    )
    for text in TEXTS
]


def build(family, **extra):
    logging.set_verbosity_error()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **extra)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = list(range(0, len(TOKENIZER), 15))
    return LocalModel(model=model, tokenizer=TOKENIZER)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_sampling_and_scoring_agree_in_every_family(family):
    model = build(family, **FAMILIES[family])
    require_decodable(model, "it")
    rollouts = model.sample(
        PROMPTS, SamplingParams(max_new_tokens=20, temperature=1.0), group_size=4, seed=0, step=0
    )
    assert len({len(rollout.completion_ids) for rollout in rollouts}) > 2  # rows left the batch
    batch = collate(rollouts)
    scored = model.score(batch).gather(-1, batch.targets[:, None]).squeeze(-1)
    torch.testing.assert_close(scored, batch.sampling_logprobs, atol=1e-4, rtol=1e-4)


def test_a_model_that_returns_no_cache_is_refused_by_its_name():
    blocks = {"block_types": ["recurrent", "attention"], "attention_window_size": 4}
    model = build("recurrent_gemma", **blocks, lru_width=32)
    with pytest.raises(UsageError, match="RecurrentGemmaForCausalLM, which cannot be decoded here"):
        require_decodable(model, "teacher model x")


def test_a_model_whose_cached_steps_see_something_else_is_refused_with_the_distance():
    model = build("qwen3")
    forward = model.model.forward

    def forgetful(*, past_key_values=None, **inputs):
        inputs.pop("attention_mask", None), inputs.pop("position_ids", None)
        return forward(past_key_values=None, **inputs)

    model.model.forward = forgetful
    with pytest.raises(UsageError, match=r"differ by \d[\d.]* nats, so it would be trained"):
        require_decodable(model, "student model x")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_prompt_read_once_gives_the_states_and_gradients_of_its_copies(family, monkeypatch):
    model = build(family, **FAMILIES[family])
    rollouts = model.sample(
        PROMPTS, SamplingParams(max_new_tokens=20, temperature=1.0), group_size=4, seed=0, step=0
    )
    batch = collate(rollouts)
    above = torch.randn(len(batch.targets), 32, generator=torch.Generator().manual_seed(1))

    def states_and_gradients():
        model.model.zero_grad()
        states = model.hidden(batch)
        (states * above).sum().backward()
        gradients = {n: p.grad for n, p in model.model.named_parameters() if p.grad is not None}
        return states.detach(), gradients

    apart, apart_gradients = states_and_gradients()
    monkeypatch.setattr(prefixes, "_TOKENS", 0)
    monkeypatch.setattr(prefixes, "_SHARE", 0)
    shared = prefixes.shared_prompts(batch)
    assert shared is not None
    assert len(shared.prompts) == len(PROMPTS)
    reads = []
    model.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: reads.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    together, gradients = states_and_gradients()
    if model.shares_prompts:
        assert len(reads) == 2
        assert sum(reads) == shared.prompts.numel() + shared.completions.numel()
    else:
        assert reads == [batch.input_ids.numel()]
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == apart_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, apart_gradients[name], atol=2e-3, rtol=1e-3, msg=name)


def test_families_with_full_attention_alone_share_prompts():
    able = {f for f, extra in FAMILIES.items() if prefixes.can_share(build(f, **extra).model)}
    assert {"qwen3", "qwen3_moe", "smollm3", "opt"} <= able
    assert not able & {"qwen3_next", "qwen3_5_text", "gemma3_text", "gpt_oss", "lfm2", "mistral"}


def test_prompts_are_not_shared_under_attention_that_was_never_tried_with_it():
    model = build("qwen3").model
    assert prefixes.can_share(model)
    model.config._attn_implementation = "flash_attention_2"
    assert not prefixes.can_share(model)
