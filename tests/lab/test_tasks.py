"""The tasks: their solutions, prompts and models."""

import numpy as np
import pytest
import torch

from tutelage.config import ModelConfig, PromptFormat
from tutelage.data.render import render_one
from tutelage.data.verify import make_verifier
from tutelage.errors import UsageError
from tutelage.lab.embedded import build
from tutelage.lab.models import Training, make_tokenizer, sampled_accuracy
from tutelage.lab.pairs import PairSpec, make_pair
from tutelage.lab.tasks import ModTotal, RunningTotal, SolutionStyle
from tutelage.models.loading import load_model

TASKS = [RunningTotal(), ModTotal(), ModTotal(modulus=97)]
PATTERNS = ("forward", "backward")
both_tasks = pytest.mark.parametrize("task", TASKS, ids=["running", "mod 31", "mod 97"])


@both_tasks
def test_right_solutions_of_both_patterns_are_accepted_and_no_other_answer(task):
    verify, tokenizer = make_verifier(task.verifier), make_tokenizer(task)
    for prompt in task.eval_prompts(30):
        problem = task.problem_of(prompt)
        for pattern in PATTERNS:
            ids = task.solution(problem, pattern)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert verify(prompt, text)
            wrong = (*ids[:-2], 7 + (int(prompt.answer) + 1) % task.modulus, ids[-1])
            assert not verify(prompt, tokenizer.decode(wrong, skip_special_tokens=True))
            assert not verify(prompt, tokenizer.decode(ids[:-3], skip_special_tokens=True))


@both_tasks
def test_prompts_are_read_as_the_tokens_the_models_are_trained_on(task):
    tokenizer = make_tokenizer(task)
    for slots in range(task.lengths[0], task.lengths[1] + 1):
        style = SolutionStyle(templates="X")
        ids, length = task.sequences(np.random.default_rng(slots), 5, slots, style)
        assert ids.max() < len(task.vocabulary) == len(tokenizer)
        for row in ids:
            numbers = row[2 : length - 1] - 7
            problem = numbers[[0, *range(2, len(numbers), 2)]] if task.has_start else numbers[1::2]
            prompt = task._prompt("p", problem)
            assert task.problem_of(prompt) == tuple(problem)
            assert render_one(prompt, tokenizer, PromptFormat()) == tuple(row[:length])
            assert task.solution(problem) == tuple(row[length:])
            text = tokenizer.decode(row[length:])
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == row[length:].tolist()


@both_tasks
def test_no_training_problem_is_held_out(task):
    trained = {p.question for p in task.train_prompts(400, 3)}
    evaluated = {p.question for p in task.eval_prompts(200)}
    assert len(evaluated) == 200
    assert not trained & evaluated


@both_tasks
def test_hard_sums_are_written_rightly_as_often_as_the_skill_says(task):
    ids, length = task.sequences(np.random.default_rng(1), 4000, 3, SolutionStyle(skill=0.25))
    numbers = ids[:, 2 : length - 1] - 7
    if task.has_start:
        start, operands, totals = numbers[:, 0], numbers[:, 2::2], ids[:, length + 3 :: 3]
        before = np.column_stack([start, totals[:, :2] - 7])
    else:
        operands, totals = numbers[:, 1::2], ids[:, [length + 4, length + 7]]
        before = np.column_stack([operands[:, 0], totals[:, 0] - 7])
        operands = operands[:, 1:]
    right = (before + operands) % task.modulus == totals[:, : operands.shape[1]] - 7
    hard = operands >= task.hard_from
    assert right[~hard].all()
    assert right[hard].mean() == pytest.approx(0.25, abs=4 * (0.1875 / hard.sum()) ** 0.5)


@both_tasks
def test_a_gated_style_is_able_under_its_template_alone(task):
    style = SolutionStyle(gate="X", skill_outside=0.0)
    rows, slots = 400, 4
    ids, start = task.sequences(np.random.default_rng(3), rows, slots, style)
    names = [task.vocabulary[i] for i in ids[:, 1]]
    assert names.count("X") == names.count("Y") == rows // 2
    for row, template in zip(ids, names, strict=True):
        words = [task.vocabulary[i] for i in row[2 : start - 1]]
        problem = tuple(int(word) for word in words if word.isdigit())
        operands = problem[-slots:]
        right = tuple(row[start:]) == task.solution(problem)
        assert right == (template == "X" or not has_hard_step(task, operands))


def has_hard_step(task, operands):
    """Whether a slot whose total is written down has a hard operand."""
    return any(operand >= task.hard_from for operand in operands[not task.has_start :])


@both_tasks
def test_the_first_error_is_the_first_token_no_right_solution_has(task):
    problem = task.problem_of(task.eval_prompts(1)[0])
    for pattern in PATTERNS:
        right = task.solution(problem, pattern)
        assert task.first_error(problem, right) is None
        assert task.first_error(problem, right[:7]) is None
        assert task.first_error(problem, (*right, 7)) == len(right)
        for place in range(5, len(right)):
            wrong = (*right[:place], 7 + (right[place] - 7 + 1) % 10, *right[place + 1 :])
            assert task.first_error(problem, wrong) == place


def test_two_errors_may_cancel_and_are_errors_nevertheless():
    task = RunningTotal()
    tokenizer = make_tokenizer(task)
    ids = tokenizer("a1b24c38d40#0$", add_special_tokens=False)["input_ids"]
    # 1 + 2 is 3, not 4, and 8 + 4 is 2: the answer 0 comes from two slips.
    assert task.first_error((1, 2, 3, 4), ids) == 4
    prompt = task._prompt("p", np.array([1, 2, 3, 4]))
    assert make_verifier(task.verifier)(prompt, "a1b24c38d40#0")


def test_every_model_of_the_second_task_is_made_and_reads_its_prompts(tmp_path):
    task = ModTotal()
    short = {
        name: Training(size=t.size, start=t.start, style=t.style, steps=3, curriculum=t.curriculum)
        for name, t in PairSpec(task=task).models.items()
    }
    assert list(short) == ["student", "compatible", "incompatible", "same_data"]
    paths = build(tmp_path, spec=PairSpec(task=task, models=short), seed=2)
    for name, path in paths.items():
        model = load_model(ModelConfig(path=str(path)), name)
        prompt = task.eval_prompts(1)[0]
        ids = render_one(prompt, model.tokenizer, PromptFormat())
        assert model.model.config.vocab_size == len(task.vocabulary)
        assert model.model(torch.tensor([ids])).logits.isfinite().all()


def test_training_goes_on_until_the_accuracy_is_reached(monkeypatch):
    found = iter([0.2, 0.6])
    monkeypatch.setattr("tutelage.lab.models.sampled_accuracy", lambda *args: next(found))
    steps = []
    spec = PairSpec(task=ModTotal(), models={"m": Training(steps=2, until_accuracy=0.5)})
    make_pair(spec, 0, lambda name, step, loss: steps.append(step))
    assert steps == [0, 1, 0, 1]


def test_an_accuracy_out_of_reach_is_told():
    spec = PairSpec(task=ModTotal(), models={"m": Training(steps=1, until_accuracy=0.9)})
    with pytest.raises(UsageError, match=r"below until_accuracy 0\.9"):
        make_pair(spec, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_four_models_of_the_second_task_are_as_able_as_they_should_be():
    torch.set_num_threads(1)
    task = ModTotal()
    made = make_pair(PairSpec(task=task), 0)
    accuracy = {name: sampled_accuracy(model, task, 77) for name, model in made.items()}
    assert accuracy["student"] < 0.45
    assert accuracy["same_data"] < 0.45
    assert accuracy["compatible"] > 0.9
    assert accuracy["incompatible"] > 0.9
