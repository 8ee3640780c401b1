"""Prompts: bytes and shapes of every kind of file."""

import datetime
import decimal
import io

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import LEAVES, VALUES, damaged, json_file, lines_file
from hypothesis import strategies as st

from tutelage.data.prompts import read_prompts, split_held_out, stream_prompts
from tutelage.data.sources import read_rows

ROWS = [
    {"prompt": "What is 1 + 1?", "answer": "2", "id": "a", "source": "x"},
    {
        "prompt": [{"role": "user", "content": "What is 2 + 2?"}],
        "reward_model": {"ground_truth": "4"},
        "extra_info": {"index": 3},
        "data_source": "y",
    },
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hm?"}]}], "answer": 5.0},
    {"question": "Why?", "solution": ["a", 1], "uuid": 7},
]
KEYS = ("prompt", "question", "problem", "messages", "answer", "solution", "id", "uuid", "role")


def reader(tmp_path, ending):
    path = tmp_path / f"prompts.{ending}"

    def read(content):
        path.write_bytes(content)
        prompts = read_prompts(str(path)).prompts
        assert len({p.id for p in prompts}) == len(prompts)
        for prompt in prompts:
            assert prompt.question.encode().strip()
        split_held_out(prompts, 2)
        assert [row.prompt for row in stream_prompts(str(path))] == prompts

    return read


def test_any_jsonl(fuzz, tmp_path):
    fuzz(reader(tmp_path, "jsonl"), lines_file(ROWS, KEYS), examples=400)


def test_any_json(fuzz, tmp_path):
    fuzz(reader(tmp_path, "json"), json_file(ROWS, KEYS), examples=300)


def test_any_csv(fuzz, tmp_path):
    good = b'question,answer,id\n"What, is ""1"" + 1?",2,a\r\n"two\nlines",3,b\n'
    fuzz(reader(tmp_path, "csv"), damaged(good) | st.binary(max_size=40), examples=300)


def parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def test_any_parquet_bytes(fuzz, tmp_path):
    table = pa.table({"prompt": ["What is 1 + 1?"] * 5, "answer": list("23456")})
    fuzz(reader(tmp_path, "parquet"), damaged(parquet(table)), examples=300)


COLUMNS = [
    pa.array([1, 2]),
    pa.array([1.5, None]),
    pa.array([b"\xff", b"a"]),
    pa.array(["a", None]),
    pa.array([["a"], []]),
    pa.array([[{"role": "user", "content": "hm"}], None]),
    pa.array([{"ground_truth": "1"}, {"ground_truth": None}]),
    pa.array([datetime.date(2026, 1, 1), None]),
    pa.array([2**62, 1], pa.timestamp("ns")),
    pa.array([-(2**40), 1], pa.timestamp("s")),
    pa.array([2**31 - 1, 1], pa.int32()).cast(pa.date32()),
    pa.array([2**60, 1], pa.int64()).cast(pa.duration("s")),
    pa.array([decimal.Decimal("1.5"), None]),
    pa.array([[("a", 1)], [("a", 2), ("a", 3)]], pa.map_(pa.string(), pa.int64())),
    pa.array(["a", "b"]).dictionary_encode(),
    pa.array([None, None]),
    pa.array([True, None]),
    pa.Array.from_buffers(
        pa.string(),
        2,
        [None, pa.py_buffer(b"\x00\0\0\0\x01\0\0\0\x02\0\0\0"), pa.py_buffer(b"\xff\xfe")],
    ),
]


def test_any_parquet_columns(fuzz, tmp_path):
    def table(columns):
        return parquet(pa.table(dict(columns)))

    names = st.sampled_from([*KEYS, "reward_model", "extra_info", "content"])
    tables = st.dictionaries(names, st.sampled_from(COLUMNS), min_size=1, max_size=4).map(table)
    fuzz(reader(tmp_path, "parquet"), tables, examples=300)


def test_any_address(fuzz, tmp_path):
    parts = st.sampled_from(
        [
            *("hub:", "reasoning_gym:", "chain_sum", "?", "size=", "seed=", "&", "@", "/", "~"),
            *(
                "~nobody/",
                "owner/name",
                "0" * 40,
                "-1",
                "3",
                "x" * 300,
                "\x00",
                ".jsonl",
                "..",
                ".",
            ),
            *("[1]", "nan", "split=", "config=", "\ud800", " "),
        ]
    )
    fuzz(read_rows, st.lists(parts, max_size=6).map("".join), examples=200)


def test_values_of_every_kind_in_a_column(fuzz, tmp_path):
    rows = st.lists(
        st.dictionaries(st.sampled_from(KEYS), VALUES | LEAVES, max_size=4), min_size=1, max_size=3
    )
    fuzz(reader(tmp_path, "json"), rows.flatmap(lambda r: json_file(r, KEYS)), examples=200)
