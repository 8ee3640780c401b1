"""Folders of models: configs, tokenizers, templates, weights, adapters."""

import json
import shutil

import pytest
from fuzzing import damaged, json_file
from hypothesis import strategies as st

from helpers import save_tiny_llama
from tutelage.config import ModelConfig, PromptFormat, parse_config
from tutelage.credit import read_table
from tutelage.data.render import render_one
from tutelage.models.checkpoints import open_folder
from tutelage.models.facts import disagreements, facts_of
from tutelage.models.loading import load_model, load_tokenizer
from tutelage.planning import plan
from tutelage.types import Message, Prompt

KEYS = (
    *("vocab_size", "hidden_size", "model_type", "architectures", "auto_map", "eos_token_id"),
    *("text_config", "tie_word_embeddings", "torch_dtype", "dtype", "quantization_config"),
    *("rope_parameters", "attn_implementation", "max_position_embeddings", "added_tokens"),
    *("tokenizer_class", "chat_template", "num_hidden_layers", "num_attention_heads"),
)


@pytest.fixture
def model(tmp_path):
    return save_tiny_llama(tmp_path / "model")


def read_without_weights(path):
    settings = ModelConfig(path=str(path))
    folder = open_folder(str(path), "teacher")
    assert folder.parameters >= 0
    assert folder.vocabulary >= 0
    assert folder.width >= 0
    facts = facts_of(settings, "teacher")
    disagreements(facts, facts)
    json.dumps(facts.to_dict())


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_any_config(fuzz, model, name):
    good = json.loads((model / name).read_bytes())
    config = parse_config(
        {
            "student": {"path": str(model)},
            "teacher": {"path": str(model)},
            "data": {"prompts": "p.jsonl"},
            "run": {"dir": "r"},
        }
    )

    def read(content):
        (model / name).write_bytes(content)
        read_without_weights(model)
        plan(config)
        load_model(ModelConfig(path=str(model)), "teacher")

    fuzz(read, json_file(good, KEYS), examples=100)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_any_tokenizer(fuzz, model, name):
    good = json.loads((model / name).read_bytes())
    prompt = Prompt(id="a", text="What is 1 + 1?")

    def read(content):
        (model / name).write_bytes(content)
        settings = ModelConfig(path=str(model))
        read_without_weights(model)
        render_one(prompt, load_tokenizer(settings, "teacher"), settings, role="teacher")

    fuzz(read, json_file(good, KEYS), examples=80)


def test_any_weights(fuzz, model):
    good = (model / "model.safetensors").read_bytes()
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])

    def with_header(raw):
        return len(raw).to_bytes(8, "little") + raw + good[8 + size :]

    def read(content):
        (model / "model.safetensors").write_bytes(content)
        read_without_weights(model)
        load_model(ModelConfig(path=str(model)), "teacher")

    fuzz(read, damaged(good) | json_file(header).map(with_header), examples=150)


def test_any_adapter(fuzz, model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    good = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(model),
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    shutil.copy(model / "model.safetensors", adapter / "adapter_model.safetensors")

    def read(content):
        (adapter / "adapter_config.json").write_bytes(content)
        load_model(ModelConfig(path=str(adapter)), "teacher")

    fuzz(read, json_file(good, ("revision", "auto_mapping", "use_dora", "bias")), examples=60)


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PIECES = (
    *("{{", "}}", "{%", "%}", "{#", " for x in range(9) ", "{{ x.__class__ }}", "{{ ''.mro }}"),
    *("{{ messages[9].content }}", "{{ 1/0 }}", "{% include 'x' %}", "{% import 'os' as o %}"),
    *("{{ raise_exception('no') }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    *("{{ 'x' * 10000000 }}", "{{ cycler.__init__.__globals__ }}", "{{ lipsum }}", "\x00"),
    *("{{ strftime_now('%Y') }}", "{{ none.x.y }}", "{% generation %}", "{{ messages | tojson }}"),
)


@st.composite
def templates(draw):
    text = TEMPLATE
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 12))
        piece = draw(st.sampled_from(PIECES) | st.text(max_size=6))
        text = text[:place] + piece + text[place + cut :]
    return text


def test_any_chat_template(fuzz, model):
    tokenizer = load_tokenizer(ModelConfig(path=str(model)), "teacher")
    prompt = Prompt(id="a", messages=(Message("user", "What is 1 + 1?"),))

    def read(template):
        tokenizer.chat_template = template
        render_one(prompt, tokenizer, PromptFormat(), role="teacher")

    fuzz(read, templates(), examples=120)


def test_any_table_of_reliability(fuzz, tmp_path):
    path = tmp_path / "table.json"
    good = {"positions": [0.5], "entropies": [1.0], "weights": [[1.0, 0.5], [0.2, 0.1]]}

    def read(content):
        path.write_bytes(content)
        positions, entropies, table = read_table(str(path))
        assert table.shape == (len(positions) + 1, len(entropies) + 1)

    fuzz(read, json_file(good), examples=200)
