"""An answer that is not there is told apart from one that is wrong, and from one cut off."""

import json
from dataclasses import replace

import pytest

from helpers import read_jsonl, write_jsonl
from tutelage.config import DataConfig
from tutelage.data.verify import judge, make_verifier
from tutelage.evaluation import Evaluation, Question, write_questions
from tutelage.types import Prompt, Rollout


def verifier(settings):
    if settings == "math":
        pytest.importorskip("math_verify")
    return make_verifier(DataConfig(prompts="p", verifier=settings).verifier)


def completion(text, finish_reason="stop", answer="5", index=0):
    return Rollout(
        prompt=Prompt(id="p", text="?", answer=answer),
        index=index,
        prompt_ids=(1,),
        completion_ids=(1,),
        logprobs=(0.0,),
        finish_reason=finish_reason,
        text=text,
        policy_step=0,
    )


def evaluation(settings, *rollouts):
    judged = judge(rollouts, verifier(settings))
    return Evaluation(tuple(Question((rollout,)) for rollout in judged))


@pytest.mark.parametrize(
    ("settings", "formed", "formless"),
    [
        ("numeric", ["5", "about 6 or 7.5", "-.5"], ["", "five", "x = y"]),
        (
            {"type": "pattern", "pattern": r"Answer: (\w+)"},
            ["Answer: 5", "so\nAnswer: no"],
            ["", "5", "answer: 5", "Answer:"],
        ),
        (
            "math",
            [r"so \boxed{5} it is", "first\nAnswer: 5", "a sum\n#### 5", "5", "It is 5."],
            ["", r"\boxed{}", "We add 2 and 3.\nThat makes 5.", "I do not know.\nSorry."],
        ),
    ],
)
def test_each_form_has_texts_that_meet_it_and_texts_that_do_not(settings, formed, formless):
    verify = verifier(settings)
    assert [text for text in formed if not verify.has_answer(text)] == []
    assert [text for text in formless if verify.has_answer(text) is not False] == []


def test_right_wrong_cut_off_and_unformatted_add_up():
    rollouts = [
        completion("thus\nAnswer: 5"),
        completion("thus\nAnswer: 6"),
        completion("thus\nI give up"),
        completion("thus\nif we", finish_reason="length"),
        completion("thus\nAnswer: 6", finish_reason="length"),
    ]
    found = evaluation({"type": "pattern", "pattern": r"Answer: (\w+)"}, *rollouts)
    record = found.record()
    assert record["accuracy"] == pytest.approx(1 / 5)
    assert record["accuracy/unformatted"] == pytest.approx(1 / 5)
    assert [r.has_answer for r in found.rollouts] == [True, True, False, False, True]
    assert [q.unformatted for q in found.questions] == [0, 0, 1, 0, 0]


def test_what_is_right_without_a_mark_is_no_failure_of_form():
    found = evaluation("math", completion("We add 2 and 3.\nThat makes 5."))
    assert found.record()["accuracy"] == 1
    assert found.record()["accuracy/unformatted"] == 0
    assert found.rollouts[0].has_answer is False


def test_what_cannot_be_judged_is_in_no_share():
    unknown = evaluation("math", completion("so\nI give up", answer=None))
    assert unknown.record() == {"accuracy/unknown": 1}
    both = (*unknown.questions, *evaluation("math", completion("so\nI give up")).questions)
    assert Evaluation(both).record()["accuracy/unformatted"] == 1


def test_the_share_weighs_questions_as_the_accuracy_does():
    samples = judge([completion("5"), *[completion("none", index=1)] * 3], verifier("numeric"))
    questions = (Question(tuple(samples)), Question((samples[0],)))
    record = Evaluation(questions).record()
    assert record["accuracy"] == pytest.approx((1 / 4 + 1) / 2)
    assert record["accuracy/unformatted"] == pytest.approx((3 / 4 + 0) / 2)


def test_without_a_form_nothing_is_said_of_it(tmp_path):
    found = evaluation("exact", completion("none"))
    assert "accuracy/unformatted" not in found.record()
    write_questions(found, tmp_path / "questions.jsonl")
    (question,) = read_jsonl(tmp_path / "questions.jsonl")
    assert "unformatted" not in question
    assert "has_answer" not in question["samples"][0]
    plain = judge([completion("none")], lambda prompt, text: 0.0)
    assert plain == [replace(completion("none"), reward=0.0)]


def test_a_file_of_questions_says_which_samples_held_no_answer(tmp_path):
    samples = judge([completion("5"), completion("none", index=1)], verifier("numeric"))
    write_questions(Evaluation((Question(tuple(samples)),)), tmp_path / "questions.jsonl")
    (question,) = read_jsonl(tmp_path / "questions.jsonl")
    assert question["unformatted"] == 0.5
    assert [sample["has_answer"] for sample in question["samples"]] == [True, False]


def test_eval_shows_the_share(gpt2_pair, tmp_path, capsys):
    from tutelage.cli import main

    prompts = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "1 + 1 =", "answer": "2"}])
    words = ["eval", str(gpt2_pair[0]), "--prompts", str(prompts), "--samples", "2", "--json"]
    assert main([*words, "--verifier", "pattern:never(!)", "--max-new-tokens", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    ended = 1 - record["rollout/truncated"]
    assert record["accuracy/unformatted"] == pytest.approx(ended)
