"""Pages of damaged directories."""

import pytest
from fuzzing import damaged, json_file, lines_file
from hypothesis import strategies as st

from helpers import read_jsonl
from tutelage.reports.gather import gather
from tutelage.reports.page import render_page, write_csv

CHECK = {
    "verdict": "go",
    "reasons": [{"text": "because"}],
    "looks": [
        {
            "teacher": "teacher",
            "verdict": "go",
            "reasons": [{"text": "so"}],
            "alignment": {"advantage": {"value": 0.1, "interval": [0.0, 0.2]}},
            "capability": {"accuracy": {"gap": 0.1}},
            "agreement": {"overlap/mass_student": 0.5, "kl/reverse": 0.1},
        }
    ],
}
LINES = ("metrics.jsonl", "positions.jsonl", "events.jsonl", "rollouts/step-4.jsonl")
OBJECTS = {"check.json": CHECK, "environment.json": {"versions": {}}}


def write_page(run, folder):
    report = gather([run])
    render_page(report)
    write_csv(report.figures(), folder)


@pytest.mark.parametrize("name", [*LINES, *OBJECTS, "config.yaml"])
def test_a_page_is_made_of_any_file_or_our_error(fuzz, run, tmp_path, name):
    contents: st.SearchStrategy[bytes]
    if name in LINES:
        contents = lines_file(read_jsonl(run / name)[:6], ("step", "kind", "bins", "scores"))
    elif name in OBJECTS:
        contents = json_file(OBJECTS[name])
    else:
        contents = damaged((run / name).read_bytes())

    def read(content):
        (run / name).write_bytes(content)
        write_page(run, tmp_path / "csv")

    fuzz(read, contents, examples=10)


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
    "lab.json": {
        "task": "running",
        "seeds": 5,
        "suites": [
            {
                "suite": "compatible",
                "claim": "it teaches",
                "verdict": "appears",
                "unit": "accuracy",
                "parts": [{"says": "gain", "above": 0.1, "state": "holds", **ESTIMATE}],
                "shown": {"before": ESTIMATE, "after": {"value": 0.5}},
                "curves": {"accuracy": {"a": {"steps": [0, 9], "mean": [0.3, 0.5]}}},
                "left_out": {"3": "no"},
            }
        ],
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
    keys += ("suites", "parts", "shown", "curves")
    fuzz(read, json_file(RESULTS[name], keys), examples=40)
