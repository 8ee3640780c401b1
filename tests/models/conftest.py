"""A run on a tiny pair whose student is a Llama with a head of its own."""

from pathlib import Path

import pytest

from helpers import save_tiny_llama, tiny_gpt2, tiny_run, tiny_tokenizer


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
    return tiny_run(tmp_path, llamas["untied"], llamas["teacher"], lr=1e-2)
