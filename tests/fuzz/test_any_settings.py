"""Settings: YAML text, trees and flags."""

import yaml
from fuzzing import LEAVES, TEXTS, VALUES, changed, damaged
from hypothesis import strategies as st

from tutelage.config import config_keys, dump_config, load_config, parse_config

EXAMPLE = {
    "student": {"path": "s", "lora": {"rank": 4}, "template": {"enable_thinking": False}},
    "teacher": {"path": "t", "server": {"url": "http://127.0.0.1:1", "key_env": "KEY"}},
    "data": {"prompts": "p.jsonl", "verifier": {"type": "pattern", "pattern": "A: (.*)"}},
    "objective": {"type": "top_k", "k": 4, "support": "teacher", "weight": {"type": "clip"}},
    "rollout": {"prompts_per_step": 4, "max_new_tokens": 8},
    "optimizer": {"lr": "2e-5"},
    "align": {"teachers": {"other": {"path": "o"}}},
    "run": {"dir": "r", "steps": 3},
}
KEYS = tuple(sorted({part for key in config_keys() for part in key.split(".")}))
TRAPS = (
    "? [a]\n: b\n",
    "? {a: b}\n: c\n",
    "a: &a [*a]\n",
    "student: &a {path: *a}\n",
    "a: !!python/object:os.system x\n",
    "a: !!binary aGk=\n",
    "a: !!set {b}\n",
    "<<: {a: 1}\n",
    "<<: 3\n",
    "preset: [a]\n",
    "preset: {a: b}\n",
    "a: 0b\n",
    "a: 0x_\n",
    "a: " + "9" * 5000 + "\n",
    "a: 1e999\n",
    "a: .nan\n",
    "--- a\n--- b\n",
    "\t\n",
    "%YAML 9.9\n---\na: b\n",
    "=: =\n",
    "a: =\n",
)


def same_after_a_round(config):
    assert load_text(dump_config(config)) == config


def load_text(text):
    return parse_config(yaml.safe_load(text))


def test_any_text_is_settings_or_our_error(fuzz, tmp_path):
    path = tmp_path / "run.yaml"
    example = yaml.safe_dump(EXAMPLE).encode()

    def read(content):
        path.write_bytes(content)
        same_after_a_round(load_config(path))

    traps = st.tuples(st.sampled_from(TRAPS), st.booleans()).map(
        lambda t: t[0].encode() + (example if t[1] else b"")
    )
    fuzz(read, damaged(example) | traps | st.binary(max_size=60), examples=400)


def test_any_tree_is_settings_or_our_error(fuzz):
    def read(tree):
        if isinstance(tree, dict):
            same_after_a_round(parse_config(tree))

    fuzz(read, changed(EXAMPLE, KEYS), examples=400)


def test_any_flags_are_settings_or_our_error(fuzz, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(EXAMPLE))
    keys = st.sampled_from(sorted(config_keys())) | st.lists(
        st.sampled_from(KEYS) | TEXTS, max_size=4
    ).map(".".join)
    values = LEAVES.map(str) | VALUES.map(repr) | st.sampled_from(TRAPS)
    words = st.lists(
        st.tuples(keys, values, st.booleans()).map(
            lambda t: [f"--{t[0]}={t[1]}"] if t[2] else [f"--{t[0]}", t[1]]
        ),
        max_size=3,
    ).map(lambda pairs: [word for pair in pairs for word in pair])
    fuzz(
        lambda given: load_config(path, given),
        words | st.lists(TEXTS, max_size=4),
        examples=400,
    )
