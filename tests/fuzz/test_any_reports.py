"""The page of a run whose files hold anything."""

import pytest
from fuzzing import damaged, json_file, lines_file

from helpers import read_jsonl
from tutelage.reports.gather import gather
from tutelage.reports.page import render_page, write_csv

KEYS = (
    "kind",
    "step",
    "accuracy",
    "accuracy/low",
    "loss",
    "bins",
    "edges",
    "event",
    "text",
    "scores",
)


@pytest.fixture
def shown(run, tmp_path, monkeypatch):
    # Reading both tokenizers takes longer than all the rest, and has tests of its own.
    monkeypatch.setattr("tutelage.diagnose.explaining.static_facts", lambda config: {})

    def shown():
        report = gather([run])
        page = render_page(report)
        page.encode("utf-8")
        assert page.count("<script") <= 3 + len("data")
        write_csv(report.figures(), tmp_path / "csv")

    return shown


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "positions.jsonl", "events.jsonl", "rollouts/step-0.jsonl"]
)
def test_the_page_shows_any_lines(fuzz, run, shown, name):
    records = read_jsonl(run / name)[:6]

    def read(content):
        (run / name).write_bytes(content)
        shown()

    fuzz(read, lines_file(records, KEYS), examples=30)


@pytest.mark.parametrize("name", ["check.json", "environment.json"])
def test_the_page_shows_any_file(fuzz, run, shown, name):
    look = {"teacher": "t", "verdict": "go", "reasons": [{"text": "so"}]}
    look["alignment"] = {"advantage": {"value": 0.1, "interval": [0.0, 0.2]}}
    good = {"versions": {"torch": "2"}, "python": "3", "looks": [look], "verdict": "go"}

    def read(content):
        (run / name).write_bytes(content)
        shown()

    fuzz(read, json_file(good, ("looks", "value", "versions", "reasons")), examples=30)


def test_the_page_shows_any_settings(fuzz, run, shown):
    good = (run / "config.yaml").read_bytes()

    def read(content):
        (run / "config.yaml").write_bytes(content)
        shown()

    fuzz(read, damaged(good), examples=30)


ESTIMATE = {"value": 0.1, "interval": [0.0, 0.2]}
POOLED = {"advantage": ESTIMATE, "alignment": ESTIMATE, "dot": ESTIMATE, "reliability": 0.9}
POOLED = {**POOLED, "by": {"outcome": {"right": POOLED, "wrong": POOLED}, "depth": {"1": POOLED}}}
RESULTS = {
    "alignment.json": {
        "teachers": {"teacher": {"objectives": {"objective": POOLED}}},
        "differences": {"a - b": {"advantage": ESTIMATE}},
        "best_teacher": {"q": "teacher"},
        "nodes": 3,
        "tokens": 9,
    },
    "controls.json": {
        "metric": "accuracy",
        "arms": [{"arm": "sft", "values": {"0": 0.5}, "mean": 0.5, "interval": [0.4, 0.6]}],
        "left_out": {"wrong_context": "none"},
    },
    "summary.json": {
        "answers": {"slots": 8, "kept": 7, "tries": 9, "rejected": {"cut": 2}},
        "imitation": {"steps": 2, "planned": 2, "validation": [[0, 2.0], [2, 1.0]]},
    },
    "clean.jsonl.summary.json": {
        "rows": 9,
        "written": 7,
        "met": {"training": {"near": 1}},
        "leaks": {"test": {"questions": 5, "leaked": {"near": 2}}},
        "templates": {"test": {"templates": [{"prefix": "a", "suffix": "b", "rows": 3}]}},
        "scores": {"mean": {"overlap": 0.5}, "mean_selected": {"overlap": 0.6}},
        "example": {"before": "a", "after": "b"},
    },
}


@pytest.mark.parametrize("name", list(RESULTS))
def test_the_page_shows_any_result(fuzz, tmp_path, name):
    path = tmp_path / name

    def read(content):
        path.write_bytes(content)
        render_page(
            gather([path if name.endswith("summary.json") and "." in path.stem else tmp_path])
        )

    keys = ("teachers", "objectives", "by", "arms", "values", "answers", "leaks", "scores", "rows")
    fuzz(read, json_file(RESULTS[name], keys), examples=30)
