"""Chat templates are programs of others: refused, bounded, and told one day for a whole run."""

import time
from datetime import date
from pathlib import Path

import pytest
import yaml

from helpers import tiny_run, tiny_tokenizer
from tutelage.config import PromptFormat
from tutelage.data import render
from tutelage.errors import DataError, UsageError
from tutelage.training import train
from tutelage.types import Message, Prompt

# As four families write theirs: a thought left out on demand, the day in a system turn, no system
# turn at all, and turns that must alternate.
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
DAY = (
    "{{ bos_token }}{% if date_string is not defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<system>Today is {{ date_string }}.{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% endfor %}<assistant>"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ messages[0].content | trim }}"
)
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.content }}]{% endfor %}"
)
ENDLESS = (
    "{% if '1 + 1' in messages[0].content %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}"
)
ASKED = [Prompt(id=f"p{i}", text=f"What is 1 + {i}?") for i in range(150)]


def tokenizer(template):
    made = tiny_tokenizer()
    made.bos_token, made.chat_template = "<end>", template
    return made


def read(text, prompts=ASKED, **view):
    made = tokenizer(text)
    return [made.decode(ids) for ids in render.render_all(prompts, made, PromptFormat(**view))]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(render, "DEADLINE_S", 0.5)
    render._templates.cache_clear()
    yield
    render._templates.cache_clear()


def test_every_prompt_gets_its_own_text_in_order():
    assert read(THINKING) == [f"<user>{p.text}<assistant>" for p in ASKED]
    quiet = read(THINKING, template={"enable_thinking": False}, system_prompt="Sums.")
    assert quiet == [f"<system>Sums.<user>{p.text}<assistant><think></think>" for p in ASKED]


def test_begin_of_sequence_stands_once_and_the_day_is_the_one_that_is_told():
    (text,) = read(DAY, ASKED[:1], today=date(2024, 7, 26))
    assert text == "<end><system>Today is 26 Jul 2024.<user>What is 1 + 0?<assistant>"
    (text,) = read(DAY, ASKED[:1], template={"date_string": "1 May 1900"})
    assert "Today is 1 May 1900." in text
    (text,) = read(DAY, ASKED[:1])
    assert date.today().strftime("%Y") in text


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (NO_SYSTEM, ("system", "user"), "System role not supported"),
        (ALTERNATE, ("user", "user"), "roles must alternate"),
        ("{{ messages[0].nothing.at_all }}", ("user",), "no attribute 'nothing'"),
        ("{% for %}", ("user",), "Expected"),
        ("{{ 'x' * 10 ** 11 }}", ("user",), "MemoryError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", ("user",), "Range too big"),
        ("{{ ().__class__.__base__.__subclasses__() }}", ("user",), "unsafe"),
        ("", ("user",), "renders to no token"),
    ],
)
def test_a_template_that_fails_names_side_and_prompt(template, turns, said):
    chat = Prompt(id="c7", messages=tuple(Message(role, "hi") for role in turns))
    view = PromptFormat(chat_template="own")
    with pytest.raises(DataError, match=rf"prompt 'c7'.*{said}"):
        render.render_all([chat], tokenizer(template), view, role="teacher")


def test_a_template_that_does_not_end_is_stopped_and_the_prompt_named(impatient):
    started = time.monotonic()
    with pytest.raises(DataError, match=r"teacher's chat template .* 'p1': it has not ended after"):
        render.render_all(ASKED, tokenizer(ENDLESS), PromptFormat(), role="teacher")
    assert time.monotonic() - started < 60
    assert read(ENDLESS, ASKED[2:4]) == ["What is 1 + 2?", "What is 1 + 3?"]


def test_one_power_that_never_ends_is_stopped_too(impatient):
    with pytest.raises(DataError, match="has not ended"):
        read("{{ 9 ** (9 ** 9) }}", ASKED[:1])


def test_a_resumed_run_is_told_the_day_it_began(gpt2_pair, tmp_path, monkeypatch):
    (tmp_path / "day.jinja").write_text("{{ strftime_now('%d %b') }} {{ messages[0].content }}")
    config = tiny_run(tmp_path, *gpt2_pair, lr=1e-3)(
        student={"chat_template": str(tmp_path / "day.jinja")}
    )

    class Before(date):
        @classmethod
        def today(cls):
            return date(2024, 7, 26)

    with monkeypatch.context() as patch:
        patch.setattr("tutelage.models.checkpoints.date", Before)
        run = train(config).run
    assert yaml.safe_load((Path(run) / "config.yaml").read_text())["student"]["today"] == (
        "2024-07-26"
    )
    steps = config.run.model_copy(update={"steps": config.run.steps + 1})
    more = config.model_copy(update={"run": steps})
    assert train(more, resume=True).step == steps.steps
    other = config.student.model_copy(update={"today": date(2024, 7, 27)})
    with pytest.raises(UsageError, match=r"student\.today was '2024-07-26'"):
        train(more.model_copy(update={"student": other}), resume=True)
