"""Prompts in the layouts people have."""

import json
import time

import pyarrow
import pyarrow.parquet
import pytest

from tutelage.config import DataConfig, parse_config
from tutelage.data.prompts import load_prompts, split_held_out, without
from tutelage.data.verify import choose_verifier, make_verifier
from tutelage.errors import DataError, UsageError
from tutelage.runs.directory import append_line, read_lines
from tutelage.runs.ledger import Ledger
from tutelage.types import Prompt

ROWS = [
    ({"prompt": "2 + 2?", "answer": 4}, ("2 + 2?", "4")),
    ({"prompt": [{"role": "user", "content": "hi"}], "answer": "x"}, ("hi", "x")),
    ({"question": "2 + 2?", "answer": "4"}, ("2 + 2?", "4")),
    ({"problem": "2 + 2?", "ground_truth": "4"}, ("2 + 2?", "4")),
    (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ("q", None),
    ),
    (
        {
            "prompt": [{"role": "user", "content": "q"}],
            "reward_model": {"ground_truth": "34", "style": "rule"},
            "extra_info": {"index": "abc"},
        },
        ("q", "34"),
    ),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_every_layout_loads_from_every_kind_of_file(tmp_path, row, expected, kind):
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(row) + "\r\n", encoding="utf-8-sig")  # with a BOM and CRLF
    elif kind == "json":
        path.write_text(json.dumps([row]))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (prompt,) = load_prompts(str(path))
    assert (prompt.question, prompt.answer) == expected
    assert prompt.id == (row["extra_info"]["index"] if "extra_info" in row else "row-0")


def test_held_out_prompts_are_spread_and_never_in_training():
    prompts = [Prompt(id=str(i), text=f"question {i // 2}") for i in range(100)]
    training, held_out = split_held_out(prompts, 10)
    assert len(held_out) == 10
    assert len(training) == 80  # each held-out question stands twice
    assert not {p.text for p in training} & {p.text for p in held_out}
    assert int(held_out[0].id) < 20
    assert int(held_out[-1].id) > 80
    assert without(prompts, []) == prompts


def test_real_question_sets_load_with_their_answers(data_dir):
    sizes = {"AIME24": 30, "AIME25": 30, "AMC23": 83, "MATH-500": 500}
    for name, size in sizes.items():
        prompts = load_prompts(str(data_dir / f"{name}.json"))
        assert len(prompts) == size
        assert all(p.answer and p.question for p in prompts)


def test_dapo_and_deepmath_load_in_seconds(data_dir):
    import time

    started = time.process_time()  # a busy machine stretches the time of the clock
    dapo = load_prompts(str(data_dir / "dapo-math-17k.parquet"))
    deepmath = load_prompts(str(data_dir / "DeepMath_deduped.parquet"))
    assert (len(dapo), len(deepmath)) == (17_917, 14_116)
    assert dapo[0].messages[0].role == "user"
    assert all(p.answer for p in dapo)
    assert time.process_time() - started < 20


def test_reasoning_gym_prompts_bring_their_scorer():
    source = "reasoning_gym:chain_sum?size=5&seed=3&max_terms=2"
    prompts = load_prompts(source)
    assert [p.id for p in prompts] == [f"chain_sum-3-{i}" for i in range(5)]
    verify = choose_verifier(DataConfig(prompts=source), prompts)
    for prompt in prompts:
        assert verify(prompt, f" {prompt.answer} ") == 1
        assert verify(prompt, "no idea") == 0
    assert load_prompts(source)[0].question == prompts[0].question
    with pytest.raises(UsageError, match="refuses these options"):
        load_prompts("reasoning_gym:chain_sum?sizes=5")


def test_an_answer_on_which_a_scorer_hangs_or_fails_is_unknown_and_costs_no_other_verdict():
    source = "reasoning_gym:countdown?size=2"
    prompts = load_prompts(source)
    data = DataConfig(
        prompts=source, verifier={"type": "reasoning_gym", "deadline_s": 0.5, "workers": 1}
    )
    verify = choose_verifier(data, prompts)
    right = prompts[1].metadata["entry"]["metadata"]["expression"]
    pairs = [(prompts[0], "9**9**9**9"), (prompts[1], right), (prompts[1], "1")]
    assert verify.many(pairs) == [None, 1, 0]
    broken = Prompt(id="x", text="?", metadata={"reasoning_gym": "none", "entry": {}})
    assert verify.many([(broken, "1"), (prompts[1], right)]) == [None, 1]


def test_a_pattern_whose_search_does_not_end_is_unknown_and_no_answer_is_claimed(monkeypatch):
    monkeypatch.setattr("tutelage.data.verify.PATTERN_DEADLINE_S", 0.2)
    pattern = {"type": "pattern", "pattern": "^((?:a|aa)+)$"}
    verify = make_verifier(DataConfig(prompts="p", verifier=pattern).verifier)
    prompt = Prompt(id="p", text="q", answer="aaa")
    endless = "a" * 60 + "!"
    started = time.monotonic()
    assert verify.many([(prompt, "aaa"), (prompt, endless), (prompt, "aa")]) == [1, None, 0]
    assert [verify.has_answer(text) for text in ("aaa", endless, "b")] == [True, None, False]
    assert time.process_time() - started < 20


def test_reasoning_gym_scorer_refuses_other_prompts():
    data = DataConfig(prompts="x.jsonl", verifier={"type": "reasoning_gym"})
    with pytest.raises(UsageError, match="prompt 'a' is not one"):
        choose_verifier(data, [Prompt(id="a", text="b", answer="c")])


@pytest.mark.parametrize(
    ("verifier", "answer", "text", "reward"),
    [
        ("exact", " 4\n", "4", 1),
        ("exact", "4", "the answer is 4", 0),
        ("numeric", "1,234", "so it is 1234.", 1),
        ("numeric", "0.5", "that makes .5", 1),
        ("numeric", "-3", "x = -3", 1),
        ("numeric", "3", "3 and then 4", 0),
        ("numeric", "3", "none", 0),
        ("numeric", "4", "between 3-4", 1),
        ("numeric", "-4", "x-4", 0),
        ("numeric", "-4", "(-4)", 1),
        ("numeric", "-5", "x = \u22125", 1),
        ("numeric", "\u22125", "x = -5", 1),
        ("numeric", "-.5", "so -.5", 1),
        ({"type": "pattern", "pattern": r"Answer: (\w+)"}, "B", "Answer: B.", 1),
        ({"type": "pattern", "pattern": r"Answer: (\w+)"}, "B", "B", 0),
    ],
)
def test_verifiers(verifier, answer, text, reward):
    data = DataConfig.model_validate({"prompts": "p", "verifier": verifier})
    assert make_verifier(data.verifier)(Prompt(id="p", text="q", answer=answer), text) == reward


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([1, 2], "[1, 2]"),
        ({"x": "é"}, '{"x": "é"}'),
        (True, "True"),
        (2.5, "2.5"),
        (42, "42"),
        (42.0, "42"),
    ],
)
def test_answers_that_are_no_text_become_text(tmp_path, answer, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "?", "answer": answer}))
    assert load_prompts(str(path))[0].answer == text


@pytest.mark.parametrize("answer", ["", "#### 42 apples", "nan", "inf", "[1]"])
def test_numeric_reads_every_answer_at_the_start(answer):
    data = DataConfig(prompts="p", verifier={"type": "numeric"})
    prompts = [Prompt(id=str(i), text="q", answer=str(i)) for i in range(5)]
    with pytest.raises(DataError, match="prompt 'late' has the answer"):
        choose_verifier(data, [*prompts, Prompt(id="late", text="q", answer=answer)])
    assert choose_verifier(data, prompts) is not None


def test_accuracy_may_be_the_metric_of_reasoning_gym_prompts():
    tree = {
        "student": {"path": "s"},
        "teacher": {"path": "t"},
        "data": {"prompts": "reasoning_gym:chain_sum"},
        "evaluation": {"metric": "accuracy"},
    }
    assert parse_config(tree).evaluation.metric == "accuracy"


# --- append-only files -----------------------------------------------------------------------


def test_a_ledger_survives_a_torn_last_line_and_does_each_unit_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.record("a", {"value": 1})
    ledger.record("b", {"value": 2})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        reopened = Ledger(path)
        assert len(reopened) == whole[:cut].count(b"\n")
        reopened.record("c", {"value": 3})
        assert Ledger(path)["c"] == {"unit": "c", "value": 3}
    with pytest.raises(ValueError, match="already"):
        Ledger(path).record("c", {})


def test_a_damaged_line_inside_a_file_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as stream:
        stream.write('{"step": \n')
    append_line(path, {"step": 3})
    with pytest.raises(DataError, match="line 2 is damaged"):
        list(read_lines(path))


def test_numbers_that_json_lacks_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(tmp_path / "x.jsonl", {"loss": float("nan")})
