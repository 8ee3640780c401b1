"""Cold start: answers of the teacher, what is kept, imitation, going on after a kill."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers import draw_rollouts, read_jsonl, save_tiny_llama, sums, tiny_run, write_jsonl
from tutelage.cli import main
from tutelage.config import ModelConfig, dump_config
from tutelage.data.collate import collate, pack
from tutelage.errors import DataError, GuardStop, UsageError
from tutelage.gradient import accumulate_likelihood
from tutelage.lab.embedded import model_path
from tutelage.models.loading import load_model
from tutelage.rescue import cold_start_rollouts, sft
from tutelage.rescue.cold_start import cold_start
from tutelage.rescue.cold_start_rollouts import rejection, without_empty_thought
from tutelage.rescue.cold_start_summary import Added, is_falling, more_of_it
from tutelage.rescue.sft import Lessons
from tutelage.runs.ledger import Ledger

QUICK = {"check": False, "steps": 4, "batch_size": 6, "every": 2, "attempts": 2, "lr": 3e-3}


class Killed(Exception):
    """Stands for a process that ends without a word."""


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    make = tiny_run(tmp_path, *gpt2_pair, lr=3e-3)

    def quick(**sections):
        own = {**QUICK, **sections.pop("cold_start", {})}
        return make(**{"data": {"verifier": None}, **sections}, cold_start=own)

    return quick


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def gradient_of(model, rollouts, **how):
    model.model.zero_grad()
    loss = accumulate_likelihood(model, rollouts, **how)
    return loss, torch.cat([p.grad.flatten() for p in model.model.parameters()])


# --- the gradient ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_imitation_is_cross_entropy_on_the_answers_alone(kind, gpt2_pair, llama):
    model = load_model(ModelConfig(path=str(llama if kind == "llama" else gpt2_pair[0])), "student")
    rollouts = draw_rollouts(model)
    model.model.zero_grad()
    parts = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        logits = model.model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1, : model.vocabulary]
        target = torch.tensor(rollout.completion_ids)
        parts.append(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
    expected = sum(parts) / sum(len(r.completion_ids) for r in rollouts)
    expected.backward()
    wanted = torch.cat([p.grad.flatten() for p in model.model.parameters()])
    for how in (
        {"micro_batch_size": 6},
        {"micro_batch_size": 2},
        {"micro_batch_size": 6, "layout": "packed"},
        {"micro_batch_size": 3, "layout": "packed"},
    ):
        loss, gradient = gradient_of(model, rollouts, **how)
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-3)


def test_packing_leaves_no_padding_and_moves_no_target(gpt2_pair):
    rollouts = draw_rollouts(load_model(ModelConfig(path=str(gpt2_pair[0])), "student"))
    padded, packed = collate(rollouts), pack(rollouts)
    assert packed.input_ids.numel() == int(padded.attention_mask.sum())
    for name in ("targets", "rows", "positions"):
        torch.testing.assert_close(getattr(padded, name), getattr(packed, name))
    assert int(packed.loss_mask.sum()) == len(packed.targets)


# --- answers -----------------------------------------------------------------------------------


def test_every_try_is_kept_with_its_reason_and_slots_without_an_answer_are_counted(settings):
    found = cold_start(settings(), settings().run.dir + "-cold")
    lines = read_jsonl(found.student.parent / "rollouts.jsonl")
    counts = found.answers
    assert counts["tries"] == len(lines) == len({line["unit"] for line in lines})
    rejected = [line["rejected"] for line in lines if line["rejected"]]
    assert counts["rejected"] == {r: rejected.count(r) for r in set(rejected)}
    assert counts["kept"] == len(lines) - len(rejected) > 0
    assert counts["kept"] + counts["dropped"] == counts["slots"] == 30
    for line in lines:
        slot, _, attempt = line["unit"].rpartition("/")
        before = [x for x in lines if x["unit"] in [f"{slot}/{a}" for a in range(int(attempt))]]
        assert all(x["rejected"] for x in before)
        assert ("ids" in line) == (line["rejected"] is None)
        assert (line["rejected"] == "cut") == (line["finish_reason"] == "length")


def test_reasons_come_in_order_and_right_answers_alone_are_kept_where_asked(gpt2_pair):
    some = draw_rollouts(load_model(ModelConfig(path=str(gpt2_pair[0])), "student"), 1)[0]
    good = replace(some, finish_reason="stop", text="so 3", reward=0.0, has_answer=True)
    assert rejection(replace(good, finish_reason="length", text=""), True) == "cut"
    assert rejection(replace(good, text=" \n"), True) == "empty"
    assert rejection(replace(good, has_answer=False), True) == "no_answer"
    assert rejection(good, True) == "wrong"
    assert rejection(replace(good, reward=None), True) == "unknown"
    assert rejection(replace(good, reward=1.0), True) is None
    assert rejection(good, False) is None
    assert rejection(replace(good, has_answer=None, reward=None), False) is None
    looping = "\n".join(["and the same line once more"] * 9)
    assert rejection(replace(good, text=looping), True) == "repeated_line"


class Letters:
    """A tokenizer of single characters."""

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("prompt", "completion", "read", "learnt"),
    [
        ("q:", "<think></think>\n4", "q:<think></think>\n", "4"),
        ("q:<think>\n\n</think>\n\n", "4", "q:<think>\n\n</think>\n\n", "4"),
        ("q:<think>\n</think>\n", "<think></think>4", "q:<think>\n</think>\n", "4"),
        ("q:", "<think>x</think>4", "q:", "<think>x</think>4"),
        ("q:", "4", "q:", "4"),
    ],
)
def test_an_empty_thought_is_read_and_not_learnt(prompt, completion, read, learnt):
    as_ids = [tuple(map(ord, text)) for text in (prompt, completion)]
    found = without_empty_thought(*as_ids, Letters())
    assert tuple("".join(map(chr, ids)) for ids in found) == (read, learnt)


def test_a_teacher_that_never_finishes_stops_the_recipe_with_the_reason(settings, tmp_path):
    config = settings(rollout={"max_new_tokens": 1}, cold_start={"temperature": 0})
    output = tmp_path / "cold"
    with pytest.raises(GuardStop, match=r"none of .* cut at the token limit.*max_new_tokens"):
        cold_start(config, output)
    assert not (output / "student").exists()


def test_hopeless_teachers_are_not_asked_for_every_slot(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(cold_start_rollouts, "HOPELESS", 8)
    config = settings(
        rollout={"max_new_tokens": 1, "batch_size": 4}, cold_start={"temperature": 1e-6}
    )
    with pytest.raises(GuardStop, match="none of 8 answers"):
        cold_start(config, tmp_path / "cold")


# --- what is refused ---------------------------------------------------------------------------


def test_right_answers_need_a_verifier_and_answers(settings, tmp_path):
    with pytest.raises(UsageError, match=r"right_only keeps what data\.verifier finds right"):
        settings(cold_start={"right_only": True})
    rows = write_jsonl(tmp_path / "bare.jsonl", [{"question": f"What is {i}?"} for i in range(20)])
    config = settings(
        data={"prompts": str(rows), "verifier": "numeric"}, cold_start={"right_only": True}
    )
    with pytest.raises(DataError, match="needs an answer column"):
        cold_start(config, tmp_path / "cold")
    assert not (tmp_path / "cold").exists()


def test_a_teacher_with_other_tokens_is_refused_before_a_directory_is_made(settings, tmp_path):
    config = settings(teacher={"path": str(model_path("compatible"))})
    with pytest.raises(UsageError, match="disagree on"):
        cold_start(config, tmp_path / "cold")
    assert not (tmp_path / "cold").exists()


def test_distillation_after_it_takes_the_same_teacher(settings, tmp_path, gpt2_pair):
    other = settings(teacher={"path": str(gpt2_pair[0])})
    with pytest.raises(UsageError, match="give both the same teacher"):
        cold_start(settings(), tmp_path / "cold", then=other)
    assert not (tmp_path / "cold").exists()


# --- imitation ---------------------------------------------------------------------------------


def test_validation_questions_are_never_imitated(settings, gpt2_pair):
    answers = draw_rollouts(load_model(ModelConfig(path=str(gpt2_pair[0])), "student"), 6)
    lessons = Lessons.split([*answers, *answers], 0.3, seed=0)
    sides = [{a.prompt.id for a in side} for side in (lessons.training, lessons.validation)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2
    assert len(Lessons.split(answers[:1], 0.5, 0).training) == 1
    assert not Lessons.split(answers, 0.0, 0).validation


def test_imitation_lowers_the_loss_of_unseen_answers_and_leaves_a_student(settings, tmp_path):
    found = cold_start(settings(cold_start={"steps": 12, "every": 3}), tmp_path / "cold")
    losses = [loss for _, loss in found.imitation["validation"]]
    assert losses[-1] < losses[0]
    assert found.imitation["step"] == min(found.imitation["validation"][1:], key=lambda x: x[1])[0]
    AutoModelForCausalLM.from_pretrained(found.student)
    assert "imitation of the teacher's answers" in (found.student / "README.md").read_text()


def test_it_stops_early_where_the_validation_loss_rises_and_keeps_the_best(settings, tmp_path):
    harmful = {"lr": 1.0, "steps": 40, "every": 1, "patience": 2, "schedule": "constant"}
    found = cold_start(settings(cold_start=harmful), tmp_path / "cold")
    assert found.imitation["steps"] < found.imitation["planned"] == 40
    later = found.imitation["validation"][1:]
    assert found.imitation["step"] == min(later, key=lambda pair: pair[1])[0]
    kept = found.student.parent / "checkpoints" / f"step-{found.imitation['step']}"
    assert (found.student / "model.safetensors").read_bytes() == (
        kept / "model.safetensors"
    ).read_bytes()


def test_a_lora_student_is_merged(settings, tmp_path):
    config = settings(student={"lora": {"rank": 2}}, cold_start={"layout": "packed"})
    found = cold_start(config, tmp_path / "cold")
    assert (found.student / "model.safetensors").is_file()
    assert not (found.student / "adapter_config.json").exists()


# --- kills -------------------------------------------------------------------------------------


def weights(folder):
    return load_file(folder / "student" / "model.safetensors")


def dies_after(monkeypatch, owner, name, calls):
    """The process ends when this is called for the nth time, halfway through its work."""
    original, left = getattr(owner, name), [calls]

    def call(*args, **named):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return original(*args, **named)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (Ledger, "record", 17),
        (sft.Learner, "update", 1),
        (sft.Learner, "update", 3),
        (sft, "save_checkpoint", 0),
        (sft, "prune", 1),
    ],
)
def test_a_kill_at_any_moment_changes_nothing(settings, tmp_path, monkeypatch, owner, name, calls):
    config = settings(rollout={"batch_size": 7})
    whole = cold_start(config, tmp_path / "whole")
    dies_after(monkeypatch, owner, name, calls)
    with pytest.raises(Killed):
        cold_start(config, tmp_path / "broken")
    monkeypatch.undo()
    with (tmp_path / "broken" / "rollouts.jsonl").open("a") as stream:
        stream.write('{"unit": "torn')
    again = cold_start(config, tmp_path / "broken", resume=True)
    assert again.answers == whole.answers
    assert again.imitation["validation"] == whole.imitation["validation"]
    first, second = (read_jsonl(tmp_path / n / "rollouts.jsonl") for n in ("whole", "broken"))
    assert sorted(first, key=lambda r: r["unit"]) == sorted(second, key=lambda r: r["unit"])
    for key, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "broken")[key]), key


def test_other_settings_or_questions_are_not_resumed(settings, tmp_path):
    cold_start(settings(), tmp_path / "cold")
    with pytest.raises(UsageError, match="these differ"):
        cold_start(settings(cold_start={"steps": 5}), tmp_path / "cold", resume=True)
    write_jsonl(tmp_path / "prompts.jsonl", sums(41))
    with pytest.raises(UsageError, match="questions have changed"):
        cold_start(settings(), tmp_path / "cold", resume=True)
    with pytest.raises(UsageError, match="exists"):
        cold_start(settings(), tmp_path / "cold")


# --- what it says ------------------------------------------------------------------------------


def test_the_loss_says_whether_more_would_help():
    assert is_falling([(0, 3.0), (5, 1.0), (10, 0.5)]) is True
    assert is_falling([(0, 3.0), (5, 0.5), (10, 0.4999)]) is False
    assert is_falling([(0, 3.0), (5, 0.5), (10, 0.6)]) is False
    assert is_falling([(0, 3.0)]) is None
    falling, flat = ({"validation": [(0, 3.0), (5, 1.0), (9, x)]} for x in (0.5, 1.1))
    look = {"verdict": "cold-start", "reasons": [{"text": "why"}], "looks": [{}]}
    assert "still falling" in more_of_it(falling, look)
    assert "no longer falls" in more_of_it(flat, look)
    assert more_of_it(falling, {**look, "verdict": "go"}) == "enough: why"
    level = {"accuracy": {"gap": 0.0, "gap_low": -0.03, "gap_high": 0.03}}
    told = more_of_it(falling, {**look, "looks": [{"capability": level}]})
    assert "distillation has nothing to add" in told


def test_what_distillation_added_is_told_with_its_interval():
    def added(low, high):
        return str(Added(before=0.5, after=0.5 + (low + high) / 2, low=low, high=high, questions=9))

    assert "added to the cold start" in added(0.1, 0.3)
    assert "nothing that can be told apart" in added(-0.1, 0.3)
    assert "took away" in added(-0.3, -0.1)


def test_the_command_goes_on_with_distillation_and_says_what_that_added(
    gpt2_pair, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make = tiny_run(tmp_path, *gpt2_pair, lr=3e-3)
    small = {"questions": 4, "samples": 2, "continued": 0, "budget": 0}
    config = make(cold_start={**QUICK, "check": True}, check=small, data={"verifier": "exact"})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    words = ["rescue", "cold-start", "-c", "run.yaml", "-o", "cold"]
    assert main([*words, "--then", "train", "--run.steps", "2"]) == 0
    told = capsys.readouterr().out
    for part in ("answers: ", "imitation: 4 of 4", "check before: ", "check after: ", "added"):
        assert part in told
    run = tmp_path / "run"
    assert (run / "student" / "model.safetensors").is_file()
    assert "cold/student" in (run / "config.yaml").read_text()
    assert main([*words, "--resume", "--json", "--then", "train", "--run.steps", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trained"]["outcome"] == "finished"
    assert math.isfinite(found["added"]["low"])
    assert main([*words, "--then", "align"]) == 2
