"""The student as its own teacher under another prompt, and what may take a teacher's place."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from helpers import read_jsonl, sums, tiny_run, write_jsonl
from tutelage.beginning import start_run
from tutelage.config import CONTEXTS, parse_config
from tutelage.data.collate import collate
from tutelage.data.contexts import partners, siblings
from tutelage.diagnose.checking import check
from tutelage.errors import UsageError
from tutelage.gradient import accumulate
from tutelage.models.loading import load_model
from tutelage.planning import plan
from tutelage.previewing import preview
from tutelage.session import prepare
from tutelage.training import train
from tutelage.types import Prompt, SamplingParams

SHORT = {"user_prompt": "{answer}! {question}"}
KINDS = [{"type": "initial"}, {"type": "ema", "decay": 0.5}, {"type": "current"}]


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    make = tiny_run(tmp_path, *gpt2_pair, lr=3e-3)

    def with_teacher(teacher=None, control=None, **sections):
        tree = make(**sections).model_dump(mode="json")
        changed = {"teacher": teacher, "control": control}
        return parse_config(tree | {k: v for k, v in changed.items() if v is not None})

    return with_teacher


def drawn(session, count=6):
    params = SamplingParams(max_new_tokens=9)
    return session.models.student.sample(
        session.prompts[:count], params, group_size=2, seed=3, step=0
    )


def step_gradient(config, session, rollouts, **more):
    session.models.student.model.zero_grad()
    accumulate(
        session.models,
        config.objective,
        rollouts,
        micro_batch_size=5,
        aggregation="token_mean",
        overlap_k=4,
        **more,
    )
    parameters = session.models.student.model.parameters()
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["type"])
def test_a_self_teacher_scores_the_students_tokens_under_its_own_prompt(settings, kind):
    session = prepare(settings({**kind, **SHORT}))
    rollouts = drawn(session)
    student, teacher = collate(rollouts), collate(rollouts, side="teacher")
    for name in ("targets", "rows", "positions"):
        torch.testing.assert_close(getattr(student, name), getattr(teacher, name))
    scores = session.models.teacher.score(teacher)
    network = session.models.student.model
    for row, rollout in enumerate(rollouts):
        assert len(rollout.teacher_prompt_ids) > len(rollout.prompt_ids)
        ids = torch.tensor([rollout.teacher_prompt_ids + rollout.completion_ids])
        start = len(rollout.teacher_prompt_ids) - 1
        logits = network(ids).logits[0, start:-1, : scores.shape[1]]
        torch.testing.assert_close(
            scores[teacher.rows == row], logits.log_softmax(-1), atol=1e-5, rtol=1e-5
        )


def test_present_weights_teach_like_a_frozen_copy_of_them(settings, gpt2_pair):
    own = settings({"type": "current", **SHORT})
    copy = settings({"path": str(gpt2_pair[0]), **SHORT})
    sessions = [prepare(config) for config in (own, copy)]
    assert sessions[0].models.teacher is sessions[0].models.student
    rollouts = drawn(sessions[0])
    first, second = (
        step_gradient(c, s, rollouts) for c, s in zip((own, copy), sessions, strict=True)
    )
    assert first.abs().max() > 1e-4
    torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-5)


def test_the_initial_student_does_not_move_and_needs_no_copy_beside_lora(settings, gpt2_pair):
    trainer = start_run(settings({"type": "initial", **SHORT}), lambda record: None)
    trainer.update(trainer.next_rollouts())
    fresh = load_model(trainer.config.student, "student").model.state_dict()
    for name, tensor in trainer.models.teacher.model.state_dict().items():
        assert torch.equal(tensor, fresh[name])
    adapted = prepare(settings({"type": "initial", **SHORT}, student={"lora": {"rank": 2}}))
    assert adapted.models.teacher.model is adapted.models.student.model
    assert not adapted.models.teacher.adapted


# --- the moving average ------------------------------------------------------------------------


@pytest.mark.parametrize("student", [{}, {"lora": {"rank": 2}}], ids=["whole", "lora"])
def test_the_average_is_that_of_all_steps_and_resumes_to_the_bit(settings, tmp_path, student):
    def config(place, steps):
        return settings(
            {"type": "ema", "decay": 0.5, **SHORT},
            student=student,
            run={"dir": str(tmp_path / place), "steps": steps, "save_every": 1, "keep": 9},
        )

    whole = train(config("whole", 3))
    part = train(config("part", 2))
    again = train(config("part", 3), resume=True)
    root = whole.run / "checkpoints"
    file = "adapter_model.safetensors" if student else "model.safetensors"
    steps = [load_file(root / f"step-{n}" / file) for n in (1, 2, 3)]
    average = load_file(root / "step-3" / "average.safetensors")
    fresh = load_model(whole and config("whole", 3).student, "student").model.state_dict()
    for name, mean in average.items():
        key = name.replace(".default", "").replace("base_model.model.", "")
        kept = [next(t for k, t in step.items() if k.endswith(key)) for step in steps]
        if student:
            continue  # the random start of the additions is in no file
        first = fresh[name]
        expected = first / 8 + kept[0] / 8 + kept[1] / 4 + kept[2] / 2
        torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-5)
    resumed = load_file(again.checkpoint / "average.safetensors")
    assert all(torch.equal(mean, resumed[name]) for name, mean in average.items())
    first, second = (
        [
            {k: v for k, v in r.items() if "perf" not in k}
            for r in read_jsonl(run / "metrics.jsonl")
            if r["kind"] == "train"
        ]
        for run in (whole.run, part.run)
    )
    assert first == second
    assert not (again.student / "average.safetensors").exists()


# --- contexts ----------------------------------------------------------------------------------


def test_a_self_teacher_reads_like_the_student_where_it_says_nothing(settings):
    config = settings(
        {"type": "initial", "context": "answer"}, student={"template": {"mood": "calm"}}
    )
    assert config.teacher_model.user_prompt == CONTEXTS["answer"]
    assert config.teacher_model.template == {"mood": "calm"}
    assert config.teacher_model.path == config.student.path


def test_other_rollouts_are_shown_and_never_the_rollout_itself(settings):
    view = {"type": "current", "user_prompt": "{question} {correct}"}
    config = settings(view)
    session = prepare(config)
    tokenizer = session.models.student.tokenizer
    rollouts = [replace(r, reward=float(r.index == 1)) for r in drawn(session)]
    seen = session.show_siblings(rollouts)
    for one, shown in zip(rollouts, seen, strict=True):
        other = next(r for r in rollouts if r.prompt.id == one.prompt.id and r.index == 1)
        if one.index == 1:  # the only right one: nothing else to show
            assert shown.teacher_prompt_ids is None
        else:
            text = f"{one.prompt.text} {other.text}"
            assert shown.teacher_prompt_ids == tuple(tokenizer(text)["input_ids"])
    assert session.contexts_missing(seen) == {"context/missing": 0.5}
    told = siblings(rollouts[0], rollouts[:2])
    assert told == {
        "correct": rollouts[1].text,
        "wrong": None,
        "attempt": rollouts[1].text,
        "verdict": "right",
    }


def test_a_run_with_feedback_trains_and_counts_what_it_could_not_show(settings):
    result = train(settings({"type": "current", "user_prompt": "{question} {verdict} {attempt}"}))
    steps = [r for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train"]
    assert all(0 <= step["context/missing"] < 1 for step in steps)


def test_a_contrast_measures_the_teacher_under_another_questions_context(settings):
    trainer = start_run(settings({"type": "initial", **SHORT}), lambda record: None)
    record = trainer.evaluate()
    session, models = trainer.session, trainer.models
    other = partners([p.prompt for p in session.held_out], trainer.config.run.seed)
    told = {p.prompt.id: p for p in session.held_out}
    for id_, ids in session.other_contexts.items():
        text = f"{other[id_].answer}! {told[id_].prompt.text}"
        assert ids == tuple(models.student.tokenizer(text)["input_ids"])
        assert other[id_].answer != told[id_].prompt.answer
    questions = read_jsonl(trainer.run.path / "eval" / "step-0.jsonl")
    assert len(questions) == len(told)
    assert record["contrast/style_share"] == pytest.approx(
        record["contrast/kl_other"] / record["kl/reverse"]
    )
    assert record["contrast/context"] > 0
    assert 0 < record["contrast/context_early"] < 1
    silent = prepare(settings({"type": "initial", "contrast": False, **SHORT}))
    assert not silent.other_contexts


def test_partners_differ_in_their_answer_where_they_can():
    prompts = [Prompt(id=str(i), text="q", answer=str(i % 2)) for i in range(10)]
    found = partners(prompts, seed=1)
    assert all(found[p.id].answer != p.answer for p in prompts)
    same = [replace(p, answer="0") for p in prompts]
    assert all(partners(same, 1)[p.id].id != p.id for p in same)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["type"])
def test_check_plan_and_preview_know_a_self_teacher(settings, kind):
    small = {"questions": 4, "samples": 2, "continued": 0, "budget": 0}
    config = settings({**kind, **SHORT}, check=small)
    found = check(config)
    assert found.looks[0].agreement["kl/reverse"] > 0
    needed = plan(config)
    assert (needed.teacher_bytes == 0) == (kind["type"] == "current")
    row = preview(config, rows=1).rows[0]
    assert row.teacher.text == f"{row.answer}! {row.student.text}"


# --- controls ----------------------------------------------------------------------------------


def test_a_shuffled_teacher_reads_another_question_and_is_read_truly_when_measured(settings):
    plain, control = settings(), settings(control="shuffled_teacher")
    true, shuffled = prepare(plain), prepare(control)
    ids = {p.ids for p in true.prompts}
    for prompt in shuffled.prompts:
        assert prompt.teacher_ids in ids
        assert prompt.teacher_ids != prompt.ids
    assert all(prompt.teacher_ids is None for prompt in shuffled.held_out)


def test_a_wrong_context_keeps_the_question_and_shows_another_answer(settings):
    session = prepare(settings({"type": "initial", **SHORT}, control="wrong_context"))
    decode = session.models.student.decode_text
    for prompt in session.prompts:
        answer, _, question = decode(prompt.teacher_ids).partition("! ")
        assert question == prompt.prompt.text
        assert answer != prompt.prompt.answer
    for prompt in session.held_out:
        assert decode(prompt.teacher_ids).startswith(f"{prompt.prompt.answer}! ")


def test_a_fixed_advantage_is_a_policy_gradient_that_asks_no_teacher(settings, gpt2_pair):
    teachers = [{"path": str(path)} for path in gpt2_pair]
    sessions = [prepare(settings(teacher)) for teacher in teachers]
    rollouts = drawn(sessions[0])
    first, second = (
        step_gradient(settings(teacher), session, rollouts, fixed_advantage=-0.5)
        for teacher, session in zip(teachers, sessions, strict=True)
    )
    torch.testing.assert_close(first, second, atol=1e-7, rtol=1e-5)
    student = sessions[0].models.student
    student.model.zero_grad()
    batch = collate(rollouts)
    logp = student.state_logprobs(batch).gather(-1, batch.targets.unsqueeze(-1))
    (0.5 * logp.mean()).backward()
    wanted = torch.cat([p.grad.flatten() for p in student.model.parameters()])
    torch.testing.assert_close(first, wanted, atol=1e-6, rtol=1e-4)


def test_a_clipped_token_counts_for_no_more_than_the_limit(settings):
    plain = settings(objective={"type": "full"})
    clipped = settings(objective={"type": "full", "weight": {"type": "clip", "most": 1e-3}})
    session = prepare(plain)
    rollouts = drawn(session)[:1]
    batch = collate(rollouts)
    p = session.models.student.state_logprobs(batch)
    q = session.models.teacher.score(batch)
    loss = (p.exp() * (p - q)).sum(-1)
    weight = (1e-3 / loss.detach()).clamp(max=1)
    session.models.student.model.zero_grad()
    (loss * weight).mean().backward()
    wanted = torch.cat([p.grad.flatten() for p in session.models.student.model.parameters()])
    found = step_gradient(clipped, session, rollouts)
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-3)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "sections", "told"),
    [
        ({"type": "current"}, {}, "must read something that it does not read as a student"),
        ("initial", {}, "must read something"),
        ({"type": "ema", "context": "answer", **SHORT}, {}, "both word the user's turn"),
        ({"type": "ema", "context": "summary"}, {}, "needs summaries"),
        ({"type": "emma", **SHORT}, {}, "Did you mean 'ema'"),
        ({"type": "ema", "decai": 0.9, **SHORT}, {}, r"teacher\.decai does not exist"),
        ({"type": "ema", "decay": 1.0, **SHORT}, {}, r"teacher\.decay"),
        ({"type": "current", "context": "demonstration"}, {"rollout": {"group_size": 1}}, "group"),
        (
            {"type": "current", "context": "demonstration"},
            {"data": {"verifier": None}},
            "verifier",
        ),
        (None, {"control": "wrong_context"}, "nothing but the question"),
    ],
)
def test_self_teachers_and_controls_that_cannot_be_are_refused(settings, teacher, sections, told):
    with pytest.raises(UsageError, match=told):
        settings(teacher, **sections)


def test_a_row_without_the_column_is_named(settings, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", sums(40))
    config = settings(
        {"type": "initial", "user_prompt": "{rule} {question}"}, data={"prompts": str(rows)}
    )
    with pytest.raises(Exception, match=r"asks for \{rule\}, which prompt .* lacks"):
        prepare(config)
