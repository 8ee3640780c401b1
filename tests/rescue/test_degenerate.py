"""Degenerate answers are found at every period, and no sound answer is taken for one."""

import json
import random
import string
from collections.abc import Sequence
from pathlib import Path

import pytest

from tutelage.config import ModelConfig, PromptFormat
from tutelage.data.render import render
from tutelage.lab.embedded import EMBEDDED_SPEC, model_path
from tutelage.models.loading import load_model
from tutelage.rescue.degenerate import (
    final_loop,
    find_repetition,
    repeated_line,
    repeated_passage,
)
from tutelage.types import SamplingParams

SOUND = "We add both sides, so x + 3 = 10 and hence x = 7, which solves the equation as asked."
ALPHABETS = {
    "ascii": string.ascii_letters + string.digits + " .,+-=\n",
    "unicode": "αβγδεжзикл数列求値😀é∑√ ",
}


@pytest.fixture(scope="module")
def solutions() -> list[str]:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    data = reasoning_gym.create_dataset("gsm_symbolic", size=1000, seed=0)
    return [entry["metadata"]["answer_cot"] for entry in data]


def looped(start: str, unit: str, rng: random.Random) -> str:
    """A text whose last third, and a little more, repeats a unit and breaks off inside it."""
    length = max(2 * len(unit), len(start) // 2 + 1, 31 + len(unit))
    times = -(-length // len(unit))
    return start + unit * times + unit[: rng.randrange(len(unit) + 1)]


def test_loops_of_every_period_are_found(solutions: Sequence[str]):
    rng = random.Random(0)
    texts: list[str] = []
    for period in range(1, 401):
        for name, alphabet in ALPHABETS.items():
            start = "" if name == "unicode" and period % 5 == 0 else rng.choice(solutions)
            unit = "".join(rng.choice(alphabet) for _ in range(period))
            texts.append(looped(start, unit, rng))
        texts.append(looped(rng.choice(solutions), (rng.choice(solutions) * 9)[:period], rng))
    found = sum(find_repetition(text) is not None for text in texts)
    assert found >= 0.99 * len(texts)


def test_no_worked_solution_is_rejected(solutions: Sequence[str]):
    assert len(solutions) == 1000
    assert [text for text in solutions if find_repetition(text)] == []


def test_no_question_of_math_500_is_rejected(data_dir: Path):
    questions = [row["prompt"] for row in json.loads((data_dir / "MATH-500.json").read_text())]
    assert len(questions) == 500
    assert [text for text in questions if find_repetition(text)] == []


def test_no_clean_rollout_of_the_embedded_models_is_rejected():
    prompts = EMBEDDED_SPEC.task.eval_prompts(600)
    texts: list[str] = []
    for name in ("student", "compatible"):
        model = load_model(ModelConfig(path=str(model_path(name))), name)
        rendered, _ = render(prompts, model.tokenizer, PromptFormat(), 1024)
        drawn = model.sample(
            rendered, SamplingParams(max_new_tokens=28), group_size=1, seed=0, step=0
        )
        texts += [rollout.text for rollout in drawn if rollout.finish_reason == "stop"]
    assert len(texts) >= 1000
    assert [text for text in texts if find_repetition(text)] == []


def test_a_loop_is_found_behind_white_space_and_of_white_space():
    assert final_loop(SOUND + " wait," * 20 + "  \n\n") is not None
    assert final_loop(SOUND + "\n" * 60) is not None
    assert final_loop(SOUND + "\n\n") is None


def test_a_loop_that_ended_before_the_answer_is_a_repeated_passage():
    text = SOUND + "and so we go on, " * 30 + "Then we are done after all.\n" + SOUND[:60]
    assert final_loop(text) is None
    found = find_repetition(text)
    assert found is not None
    assert found.kind == "passage"


@pytest.mark.parametrize("gap", [0, 1, 7, 50, 99])
def test_passages_count_at_every_offset_and_never_twice_for_one_place(gap: int):
    rng = random.Random(gap)
    passage = "".join(rng.choice(string.ascii_letters) for _ in range(100))
    between = ["".join(rng.choice(string.digits) for _ in range(gap + i)) for i in range(3)]
    assert repeated_passage(between[0] + passage + between[1] + passage) is None
    assert repeated_passage("".join(part + passage for part in between)) is not None
    assert repeated_passage("-" * 299) is None  # a rule of a table is no passage three times
    assert repeated_passage("-" * 300) is not None


def test_lines_count_from_twenty_characters_and_five_times():
    line, short = "x" * 20, "y" * 19
    others = [f"{i} is another line of the text" for i in range(9)]
    text = [part for i, other in enumerate(others) for part in ([line] if i < 4 else []) + [other]]
    assert repeated_line("\n".join([*text, *[short] * 9])) is None
    found = repeated_line("\n".join([*text, f"  {line}  "]))
    assert found is not None
    assert (found.text, found.times) == (line, 5)


@pytest.mark.parametrize("text", ["", "7", "The answer is 7.", "ha ha ha", "1 2 1 2 1 2", "....."])
def test_short_answers_are_sound(text: str):
    assert find_repetition(text) is None
