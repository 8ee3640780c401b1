"""CSV, the hub, layouts that are recognised and shown, and rows of wrong types."""

import csv
import json
import os
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from helpers import write_jsonl
from tutelage.data.prompts import load_prompts, read_prompts
from tutelage.errors import DataError, MachineError, ServerError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# --- layouts ---------------------------------------------------------------------------------

VERL = {
    "data_source": "gsm8k",
    "prompt": [{"role": "user", "content": "q"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 7, "split": "train"},
}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            VERL,
            "verl layout, 1 rows; prompt: prompt; answer: reward_model.ground_truth; "
            "id: extra_info.index; source: data_source",
        ),
        (
            {"prompt": "q", "solution": "4", "id": "a"},
            "TRL layout, 1 rows; prompt: prompt; answer: solution; id: id; source: none",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}]},
            "TRL layout, 1 rows; prompt: messages; answer: none; id: none; source: none",
        ),
        (
            {"problem": "q", "answer": 4, "solution": "2 + 2", "unique_id": "t/1", "source": "s"},
            "question/answer layout, 1 rows; prompt: problem; answer: answer; id: unique_id; "
            "source: source",
        ),
    ],
)
def test_the_layout_is_recognised_and_told(tmp_path, row, told):
    loaded = read_prompts(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    assert str(loaded.layout) == told
    (prompt,) = loaded.prompts
    assert prompt.question == "q"
    assert prompt.answer == (None if "messages" in row else "4")


def test_every_column_that_is_read_is_documented():
    from tutelage.data import prompts

    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for part in ("_QUESTIONS", "_ANSWERS", "_IDS", "_SOURCES"):
        names = ", ".join(f"`{name}`" for name in getattr(prompts, part))
        assert names in page


def test_a_generator_tells_its_layout():
    pytest.importorskip("reasoning_gym")
    layout = read_prompts("reasoning_gym:chain_sum?size=3").layout
    assert str(layout).startswith("reasoning-gym layout, 3 rows; prompt: question; answer: answer")


def test_rows_that_lack_a_column_are_counted(tmp_path):
    rows = [{"question": "a", "answer": 1, "id": "x"}, {"question": "b"}, {"problem": "c"}]
    layout = read_prompts(str(write_jsonl(tmp_path / "rows.jsonl", rows))).layout
    assert layout.prompt == {"question": 2, "problem": 1}
    assert layout.answer == {"answer": 1}
    assert "prompt: question (2), problem (1); answer: answer (1), none (2)" in str(layout)


def test_ids_and_every_other_column_are_kept(tmp_path):
    rows = [VERL, {**VERL, "extra_info": {"index": 9}}]
    first, second = load_prompts(str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert (first.id, second.id) == ("7", "9")
    assert first.metadata["extra_info"] == {"index": 7, "split": "train"}
    assert (first.metadata["ability"], first.source) == ("math", "gsm8k")


def test_real_files_tell_their_layout(data_dir):
    told = {
        "dapo-math-17k.parquet": ("verl", 17_917, "extra_info.index", "data_source"),
        "DeepMath_deduped.parquet": ("verl", 14_116, "extra_info.index", "data_source"),
        "MATH-500.json": ("TRL", 500, "id", "source"),
    }
    for name, (layout, rows, ids, source) in told.items():
        found = read_prompts(str(data_dir / name)).layout
        assert (found.name, found.rows) == (layout, rows)
        assert found.id == {ids: rows}
        assert found.source == {source: rows}
        assert sum(found.answer.values()) == rows


# --- rows of wrong types ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": 3}, "prompt is int"),
        ({"prompt": {"role": "user", "content": "q"}}, "prompt is dict"),
        ({"prompt": ["q"]}, "prompt has a turn that is not a role and a text: 'q'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages has a turn that is not a role and a text",
        ),
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "prompt has no turn of a user"),
        ({"prompt": "q", "id": [1]}, "its id is list; an id is text or an int"),
        ({"prompt": "q", "id": True}, "its id is bool"),
        ({"prompt": "q", "extra_info": {"index": 1.5}}, "its extra_info.index is float"),
        ("q", "is str; a row is an object"),
        (None, "is NoneType; a row is an object"),
    ],
)
def test_a_row_of_a_wrong_type_is_named_with_its_file(tmp_path, row, expected):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + json.dumps(row))
    with pytest.raises(DataError) as caught:
        load_prompts(str(path))
    assert str(caught.value).startswith(f"{path}, line 3")
    assert expected in str(caught.value)


def test_columns_of_parquet_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    for column, expected in (
        ({"prompt": [b"q"]}, "row 1, prompt is bytes"),
        ({"prompt": ["q"], "answer": [b"4"]}, "row 1: its answer is bytes"),
    ):
        pyarrow.parquet.write_table(pyarrow.table(column), path)
        with pytest.raises(DataError, match=expected):
            load_prompts(str(path))


def test_tables_with_gaps_keep_whole_numbers_and_decimals_and_days_are_text(tmp_path):
    path = tmp_path / "rows.parquet"
    answers = [5.0, None, 2.5, 1e300]
    table = {"prompt": list("abcd"), "answer": answers, "id": [7.0, 8.0, 9.0, 10.0]}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    prompts = load_prompts(str(path))
    assert [p.answer for p in prompts] == ["5", None, "2.5", str(int(1e300))]
    assert [p.id for p in prompts] == ["7", "8", "9", "10"]
    other = {"prompt": ["a"], "answer": [Decimal("12.50")], "when": [date(2026, 11, 25)]}
    pyarrow.parquet.write_table(pyarrow.table(other), path)
    assert load_prompts(str(path))[0].answer == "12.50"


def test_content_in_parts_of_text_is_one_text(tmp_path):
    content = [{"type": "text", "text": "What is "}, {"type": "text", "text": "1 + 1?"}]
    row = {"messages": [{"role": "user", "content": content, "tool_calls": None}]}
    (prompt,) = load_prompts(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    assert prompt.messages[0].content == "What is 1 + 1?"


def test_text_is_kept_whatever_ends_its_lines(tmp_path):
    question = "a\u2028b\u0085c\x0bd"
    rows = [{"question": question, "answer": "1"}, {"question": "e", "answer": "2"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for text in ("\n".join(lines), "\ufeff" + "\r\n".join(lines) + "\r\n\r\n"):
        (tmp_path / "rows.jsonl").write_bytes(text.encode())
        assert [p.text for p in load_prompts(str(tmp_path / "rows.jsonl"))] == [question, "e"]
    (tmp_path / "rows.csv").write_bytes(f"\ufeffquestion,answer\r\n{question},1\r\n".encode())
    assert load_prompts(str(tmp_path / "rows.csv"))[0].text == question
    (tmp_path / "rows.json").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"Extra data.*one row a line is called \.jsonl"):
        load_prompts(str(tmp_path / "rows.json"))


def test_missing_numbers_are_missing_answers(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"prompt": ["a", "b"], "answer": [1.5, float("nan")]})
    pyarrow.parquet.write_table(table, path)
    assert [p.answer for p in load_prompts(str(path))] == ["1.5", None]


# --- csv -------------------------------------------------------------------------------------


def test_csv_keeps_text_as_it_stands(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [
        {"id": "007", "question": 'He said "2,5"\nand left', "answer": "1e5", "source": ""},
        {"id": "8", "question": "x" * 200_000, "answer": "", "source": "gsm8k"},
    ]
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    before = csv.field_size_limit()
    prompts = load_prompts(str(path))
    assert csv.field_size_limit() == before
    assert [p.id for p in prompts] == ["007", "8"]
    assert [p.text for p in prompts] == [row["question"] for row in rows]
    assert [p.answer for p in prompts] == ["1e5", None]
    assert [p.source for p in prompts] == [None, "gsm8k"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("question,answer\na,1\nb,2,3\n", "line 3 has 3 cells, but the first line names 2 columns"),
        ("question,answer\na\n", "line 2 has 1 cells"),
        ("question,question\na,1\n", "names the column 'question' twice"),
        ('question,answer\n"a"b,1\n', "line 2 is not CSV"),
        ('question\n"a', "is not CSV"),
        ("a,b\n1,2\n", "line 2 has no prompt: it holds a, b"),
        ("question,answer\n", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_damaged_csv_is_told_with_its_line(tmp_path, text, expected):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=expected):
        load_prompts(str(path))


# --- the hub ---------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's datasets, in a folder; the calls that reach them are kept."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "hub" / "main"
    folder.mkdir(parents=True)
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(5)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-0.parquet")
    write_jsonl(tmp_path / "hub" / "main" / "test.jsonl", rows[:2])
    calls = []
    load = datasets.load_dataset

    def fetch(path, name=None, *, split, revision):
        calls.append((path, name, split, revision))
        files = {"train": "train-0.parquet", "test": "test.jsonl"}
        if split not in files:
            raise ValueError(f'Unknown split "{split}". Should be one of [train, test].')
        file = folder / files[split]
        kind = "parquet" if file.suffix == ".parquet" else "json"
        options = {"data_files": str(file), "split": "train"}
        return load(kind, **options, cache_dir=str(tmp_path / "cache"))

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets, "load_dataset", fetch)
    return calls


def test_a_hub_dataset_is_asked_for_at_its_commit(hub):
    loaded = read_prompts(f"hub:openai/gsm8k@{COMMIT}?config=main")
    assert hub == [("openai/gsm8k", "main", "train", COMMIT)]
    assert [p.text for p in loaded.prompts] == [f"{i}?" for i in range(5)]
    assert str(loaded.layout).startswith("question/answer layout, 5 rows")
    assert len(load_prompts(f"hub:openai/gsm8k@{COMMIT}?split=test")) == 2
    assert hub[1] == ("openai/gsm8k", None, "test", COMMIT)


@pytest.mark.parametrize(
    ("source", "error", "expected"),
    [
        ("hub:openai/gsm8k", UsageError, "pinned to a commit, as in hub:openai/gsm8k@COMMIT"),
        ("hub:openai/gsm8k@main", UsageError, "a branch or tag can move"),
        (f"hub:openai/gsm8k@{COMMIT}?splitt=a", UsageError, "'splitt' is no option"),
        (f"hub:openai/gsm8k@{COMMIT}?split=dev", DataError, 'Unknown split "dev"'),
        ("openai/gsm8k", DataError, "a dataset of the hub is written hub:openai/gsm8k"),
    ],
)
def test_hub_addresses_that_cannot_be_used(hub, source, error, expected):
    with pytest.raises(error, match=expected):
        load_prompts(source)


def test_a_local_folder_never_stands_in_for_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is a local openai/gsm8k here"):
        load_prompts(f"hub:openai/gsm8k@{COMMIT}")
    assert hub == []


@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [
        ("ConnectionError", ServerError, "the hub cannot be reached"),
        ("FileNotFoundError", DataError, "the hub shows no such dataset"),
        ("DatasetNotFoundError", DataError, "log in with `hf auth login`"),
        ("DatasetGenerationError", DataError, "cannot be loaded: no"),
    ],
)
def test_what_the_hub_says_is_passed_on(monkeypatch, name, error, expected):
    import builtins

    datasets = pytest.importorskip("datasets")

    def refuse(*args, **options):
        raise (getattr(builtins, name, None) or getattr(datasets.exceptions, name))("no\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(error, match=expected) as caught:
        load_prompts(f"hub:a/b@{COMMIT}")
    assert "more" not in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match=r"pip install 'tutelage\[hub\]'"):
        load_prompts(f"hub:a/b@{COMMIT}")


def test_files_are_read_without_the_hubs_package(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q"}])
    code = (
        "import sys; from tutelage.data.prompts import load_prompts; "
        f"load_prompts({str(path)!r}); "
        "sys.exit(any(m in sys.modules for m in ('datasets', 'torch', 'math_verify')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
