"""Prompts at the edges of what is read: very long, alone, and damaged at the ends of lines."""

import pytest

from helpers import tiny_run, tiny_tokenizer, write_jsonl
from tutelage.config import PromptFormat
from tutelage.data.prompts import load_prompts
from tutelage.data.render import render
from tutelage.errors import DataError
from tutelage.training import train
from tutelage.types import Prompt


def test_a_prompt_of_200_000_tokens_is_dropped_and_counted():
    prompts = [Prompt(id="long", text="7 + " * 100_000), Prompt(id="short", text="7 + 7?")]
    kept, dropped = render(prompts, tiny_tokenizer(), PromptFormat(), 1024)
    assert [prompt.prompt.id for prompt in kept] == ["short"]
    assert dropped == 1


def test_one_row_is_enough_to_train_on(gpt2_pair, tmp_path):
    prompts = write_jsonl(tmp_path / "one.jsonl", [{"question": "What is 1 + 1?", "answer": "2"}])
    settings = tiny_run(tmp_path, *gpt2_pair, lr=1e-3)
    made = settings(
        data={"prompts": str(prompts), "held_out": 0},
        rollout={"prompts_per_step": 1},
        run={"steps": 1},
    )
    assert train(made).step == 1


ROW = '{"prompt": "What is 1 + 1?", "answer": "2"}'


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"\xef\xbb\xbf" + f"{ROW}\n".encode(), 1),
        (f"{ROW}\r\n{ROW}\r\n".encode(), 2),
        (f"\n{ROW}\n\n".encode(), 1),
        (ROW.encode(), 1),  # prompts are the user's file, which may end without a line feed
    ],
    ids=["byte order mark", "CRLF", "empty lines", "no line feed at the end"],
)
def test_what_editors_leave_is_read(tmp_path, content, rows):
    (tmp_path / "rows.jsonl").write_bytes(content)
    prompts = load_prompts(str(tmp_path / "rows.jsonl"))
    assert [prompt.text for prompt in prompts] == ["What is 1 + 1?"] * rows


@pytest.mark.parametrize(
    "bad", [b"\x00\x00", b"\xed\xa0\x80", b'{"prompt": "a', b'{"prompt": "a\x00"}', b"\xff\xfe"]
)
def test_a_line_that_is_none_is_an_error_with_its_number_wherever_it_stands(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    for place in range(3):
        lines = [ROW.encode()] * 2
        lines.insert(place, bad)
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(DataError, match=f"line {place + 1}|not UTF-8"):
            load_prompts(str(path))
