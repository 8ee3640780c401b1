"""Student and teacher may read different prompts; the completion's tokens stay aligned."""

import json
from dataclasses import replace

import pytest
import torch

from helpers import read_jsonl, sums, write_jsonl
from tutelage.config import PromptFormat
from tutelage.data.collate import collate
from tutelage.data.render import render, render_one, worded
from tutelage.errors import DataError, UsageError
from tutelage.gradient import measure
from tutelage.runs.rollouts import rollout_from_json, rollout_to_json
from tutelage.session import prepare
from tutelage.training import train
from tutelage.types import Message, Prompt, SamplingParams

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>{{ mood }}"
ASKED = Prompt(id="a", text="What is 1 + 1?", answer="2", metadata={"hint": "count", "set": 3})


@pytest.fixture
def sampled(settings):
    config = settings(teacher={"user_prompt": "Answer: {answer}. {question}"})
    session = prepare(config)
    params = SamplingParams(max_new_tokens=9)
    rollouts = session.models.student.sample(session.prompts[:6], params, seed=3, step=0)
    return session.models, rollouts


def test_a_teachers_prompt_does_not_move_what_it_scores(sampled):
    models, rollouts = sampled
    assert all(len(r.teacher_prompt_ids) > len(r.prompt_ids) for r in rollouts)
    student, teacher = collate(rollouts), collate(rollouts, side="teacher")
    for name in ("targets", "rows", "positions"):
        torch.testing.assert_close(getattr(student, name), getattr(teacher, name))
    scores = models.teacher.score(teacher)
    for row, rollout in enumerate(rollouts):
        ids = torch.tensor([rollout.teacher_prompt_ids + rollout.completion_ids])
        start = len(rollout.teacher_prompt_ids) - 1
        logits = models.teacher.model(ids).logits[0, start:-1, : scores.shape[1]]
        torch.testing.assert_close(
            scores[teacher.rows == row], logits.log_softmax(-1), atol=1e-5, rtol=1e-5
        )


def test_metrics_and_gradient_read_the_teachers_prompt(sampled, settings):
    models, rollouts = sampled
    table, _ = measure(models, rollouts, micro_batch_size=2, overlap_k=4)
    p = models.student.score(collate(rollouts))
    q = models.teacher.score(collate(rollouts, side="teacher"))
    torch.testing.assert_close(
        table["kl/reverse"], (p.exp() * (p - q)).sum(-1), atol=1e-5, rtol=1e-4
    )
    blind, _ = measure(
        models,
        [replace(r, teacher_prompt_ids=None) for r in rollouts],
        micro_batch_size=2,
        overlap_k=4,
    )
    assert (table["kl/reverse"] - blind["kl/reverse"]).abs().max() > 1e-3


def test_a_teachers_prompt_of_the_same_ids_changes_nothing(settings, tmp_path):
    runs = []
    for name, teacher in (("shared", {}), ("own", {"user_prompt": "{question}"})):
        config = settings(teacher=teacher, run={"dir": str(tmp_path / name)})
        train(config)
        runs.append(read_jsonl(tmp_path / name / "metrics.jsonl"))
    shared, own = (
        [{k: v for k, v in record.items() if "perf" not in k} for record in records]
        for records in runs
    )
    assert shared == own


def test_the_teacher_answers_its_own_prompt_and_the_student_learns_under_its_own(settings):
    config = settings(
        teacher={"user_prompt": "{answer}"},
        rollout={"student_share": 0.5, "delay_steps": 1},
    )
    train(config)
    resumed = train(
        config.model_copy(update={"run": config.run.model_copy(update={"steps": 6})}),
        resume=True,
    )
    assert resumed is not None


def test_rollouts_keep_both_prompts_in_a_checkpoint(sampled):
    _, rollouts = sampled
    for rollout in (rollouts[0], replace(rollouts[0], teacher_prompt_ids=None)):
        written = json.loads(json.dumps(rollout_to_json(rollout)))
        assert rollout_from_json(written, {rollout.prompt.id: rollout.prompt}) == rollout


@pytest.mark.parametrize(
    ("settings", "text", "messages"),
    [
        (PromptFormat(user_prompt="{hint}: {question}"), "count: What is 1 + 1?", ()),
        (PromptFormat(user_prompt=r"\boxed{} {answer} {set}"), r"\boxed{} 2 3", ()),
        (PromptFormat(user_prompt=r"\frac{1}{2}"), r"\frac{1}{2}", ()),
        (
            PromptFormat(system_prompt="Think."),
            ASKED.text,
            (Message("system", "Think."), Message("user", ASKED.text)),
        ),
    ],
)
def test_a_prompt_is_worded_as_the_settings_ask(settings, text, messages):
    assert worded(ASKED, settings, "teacher") == replace(ASKED, text=text, messages=messages)


def test_a_chat_keeps_its_other_turns():
    turns = (
        Message("system", "Old."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Q"),
    )
    chat = Prompt(id="c", messages=turns, answer="5")
    view = PromptFormat(system_prompt="New.", user_prompt="{question} ({answer})")
    assert worded(chat, view, "student").messages == (
        Message("system", "New."),
        *turns[1:3],
        Message("user", "Q (5)"),
    )


def test_the_braces_of_a_question_are_left_alone():
    row = Prompt(id="b", text="{answer} or {nothing}?", answer="2")
    assert worded(row, PromptFormat(user_prompt="{question}"), "student").text == row.text


def test_a_column_that_a_row_lacks_is_named():
    with pytest.raises(DataError, match=r"teacher.user_prompt asks for \{clue\}.*has answer, hint"):
        worded(ASKED, PromptFormat(user_prompt="{clue}"), "teacher")


def test_a_chat_template_comes_from_a_file_or_another_model(gpt2_pair, settings, tmp_path):
    tokenizer = prepare(settings()).models.student.tokenizer
    file = tmp_path / "chat.jinja"
    file.write_text(CHAT)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path / "other")
    tokenizer.chat_template = None
    for source in (file, tmp_path / "other"):
        view = PromptFormat(chat_template=str(source), template={"mood": "glad"})
        text = tokenizer.decode(render_one(ASKED, tokenizer, view))
        assert text == f"<user>{ASKED.text}<assistant>glad"
    bare = PromptFormat(chat_template="own")
    assert tokenizer.decode(render_one(ASKED, tokenizer, bare)) == ASKED.text


@pytest.mark.parametrize("source", ["nowhere.jinja", "{empty}", "{pair}"])
def test_a_source_without_a_template_is_refused(gpt2_pair, tmp_path, source):
    (tmp_path / "empty.jinja").write_text("")
    named = source.format(empty=tmp_path / "empty.jinja", pair=gpt2_pair[0])
    with pytest.raises(UsageError, match=r"student\.chat_template .* names no template"):
        render([ASKED], None, PromptFormat(chat_template=named), 100)


def test_each_side_renders_with_its_own_template_and_system_prompt(settings, gpt2_pair, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(CHAT)
    write_jsonl(tmp_path / "prompts.jsonl", sums(40))
    config = settings(
        student={"chat_template": str(file), "template": {"mood": "a"}},
        teacher={"chat_template": str(file), "template": {"mood": "b"}, "system_prompt": "S"},
    )
    session = prepare(config)
    decode = session.models.student.tokenizer.decode
    for prompt in session.prompts:
        text = prompt.prompt.text
        assert decode(prompt.ids) == f"<user>{text}<assistant>a"
        assert decode(prompt.teacher_ids) == f"<system>S<user>{text}<assistant>b"


def test_a_teachers_long_prompt_counts_against_its_context(settings):
    config = settings(teacher={"user_prompt": "{question} " * 12})
    with pytest.raises(UsageError, match="the teacher reads 64 tokens"):
        prepare(config)
