"""The head of real architectures is found, and a head that cannot be separated is left alone."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from tutelage.models.anatomy import find_head

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "tied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "softcap": (
        Gemma2ForCausalLM,
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0),
    ),
    "logits_scaling": (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=3.0)),
    "logit_scale": (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.1)),
    "bias": (PhiForCausalLM, PhiConfig(**SIZES)),
    "embed_out": (GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES)),
    "projected": (
        OPTForCausalLM,
        OPTConfig(
            vocab_size=50,
            hidden_size=16,
            word_embed_proj_dim=8,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            init_std=0.3,
        ),
    ),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_hidden_states_through_the_head_are_the_models_logits(name):
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    if name == "bias":
        torch.nn.init.normal_(model.lm_head.bias)
    head = find_head(model)
    assert head.weight is not None
    ids = torch.randint(3, 50, (3, 9))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        hidden = model.base_model(input_ids=ids).last_hidden_state
        for row in range(3):
            torch.testing.assert_close(
                head.logits(hidden[row]), expected[row], atol=1e-5, rtol=1e-4
            )
    assert (head.softcap is not None) == (name == "softcap")
    assert (head.bias is not None) == (name == "bias")
    assert (head.scale != 1) == name.startswith("logit")


def test_a_head_that_does_something_else_keeps_its_logits():
    class Unusual(LlamaForCausalLM):
        def forward(self, **inputs):
            output = super().forward(**inputs)
            output.logits = output.logits**3
            return output

    torch.manual_seed(0)
    assert find_head(Unusual(LlamaConfig(**SIZES)).eval()).weight is None
