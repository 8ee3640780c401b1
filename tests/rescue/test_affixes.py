"""Templates are learned from a column and taken off, whatever they are."""

import random
from collections.abc import Sequence

import pytest

from tutelage.rescue.affixes import Affixes, learn_affixes
from tutelage.rescue.sieve import turns_of
from tutelage.types import Message, Prompt

SHAPES = {
    "prefix": "Answer the following task as shortly as you can.\n\n{question}",
    "suffix": "{question}\n\nEnd with a line that says `Result: X`.",
    "both": "### Problem\nRead twice, then solve it.\n{question}\n### Solution, step by step:",
    "unicode": "以下の問題を解いて、最後に答えだけを書いてください。\n{question}\n"
    "どうぞよろしくお願いいたします、ありがとうございます。",
    "cyrillic": "Решите задачу и напишите только ответ: {question}",
    "boxed": "{question} Please reason step by step, and put your final answer within \\boxed{}.",
    "marks": "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    "colon": "You are a tutor who checks every step twice. Task: {question}",
}


def questions(count: int, seed: int = 0) -> list[str]:
    """Questions that begin and end in several ways, as people write them."""
    rng = random.Random(seed)
    starts = ("Find", "What is", "Let $x$ be", "How many", "Évaluez", "求", "$")
    ends = ("?", ".", "$", "", ")", " cm?")
    return [
        f"{rng.choice(starts)} {rng.choice('abcdefgh')}{rng.randrange(10**6)} of "
        f"{' '.join(rng.choice('pqrstuvw') * rng.randrange(1, 9) for _ in range(12))}"
        f"{rng.choice(ends)}"
        for _ in range(count)
    ]


def fill(template: str, texts: Sequence[str]) -> list[str]:
    return [template.replace("{question}", text) for text in texts]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [12, 1500])
def test_one_template_is_learned_whole(shape: str, count: int):
    asked = questions(count)
    found = learn_affixes(fill(SHAPES[shape], asked))
    prefix, suffix = (part.lstrip() for part in SHAPES[shape].split("{question}"))
    suffix = SHAPES[shape].split("{question}")[1].rstrip()
    assert found.prefixes == ((prefix,) if len(prefix) >= 20 else ())
    assert found.suffixes == ((suffix,) if len(suffix) >= 20 else ())
    if len(prefix) >= 20 or not prefix:
        kept = [found.strip(text) for text in fill(SHAPES[shape], asked)]
        tail = suffix if 0 < len(suffix) < 20 else ""
        assert kept == [(text + tail).strip() for text in asked]


def test_several_templates_in_one_column_are_told_apart():
    names = ("prefix", "suffix", "both", "unicode", "boxed")
    asked = questions(1000)
    column = [SHAPES[names[i % 5]].replace("{question}", q) for i, q in enumerate(asked)]
    found = learn_affixes(column)
    assert [found.strip(text) for text in column] == [q.strip() for q in asked]
    assert sum(found.rows.values()) == 1000
    assert sorted(found.rows.values()) == [200] * 5


def test_templates_that_begin_alike_are_told_apart_where_they_part():
    ways = (
        "Solve the following problem and box the result.\n",
        "Solve the following riddle, and speak aloud:\n",
    )
    asked = questions(400)
    column = [ways[i % 2] + q for i, q in enumerate(asked)]
    found = learn_affixes(column)
    assert sorted(found.prefixes) == sorted(ways)


def test_rows_without_the_template_and_slips_in_it_do_no_harm():
    asked = questions(1000)
    column = fill(SHAPES["boxed"], asked)
    column[::250] = [text.replace("Please", "please") for text in column[::250]]
    found = learn_affixes(column)
    assert found.suffixes == (SHAPES["boxed"].removeprefix("{question}"),)
    half = learn_affixes([*fill(SHAPES["both"], asked[:400]), *asked[400:]])
    assert half.rows[("", "")] == 600
    assert [half.strip(text) for text in asked[400:]] == [q.strip() for q in asked[400:]]


def test_plain_questions_have_no_template():
    assert learn_affixes(questions(3000)) == Affixes(rows={("", ""): 3000})
    assert learn_affixes([]) == Affixes()
    few = fill(SHAPES["both"], questions(7))
    assert learn_affixes(few).prefixes == ()  # seven rows may be about one thing


def test_a_row_that_is_only_template_is_left_as_it_is():
    template = SHAPES["boxed"]
    found = learn_affixes(fill(template, questions(50)))
    empty = template.replace("{question}", "")
    assert found.strip(empty) == empty.strip()


def test_a_phrase_of_one_question_in_thirty_is_no_template():
    asked = questions(3000)
    asked[::30] = [f"{q} Express the answer as a common fraction." for q in asked[::30]]
    assert learn_affixes(asked).suffixes == ()


def test_a_chat_is_read_without_its_system_turn():
    prompts = [
        Prompt(
            id=str(i),
            messages=(
                Message("system", "You are kind."),
                Message("user", SHAPES["both"].replace("{question}", q)),
            ),
        )
        for i, q in enumerate(questions(60))
    ]
    found = learn_affixes(map(turns_of, prompts))
    assert [found.strip(turns_of(p)) for p in prompts] == [q.strip() for q in questions(60)]
