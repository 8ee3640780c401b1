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
ALIGNMENT = {"pooled": {"teacher": {"objective": {"advantage": {"value": 0.1}}}}, "questions": 3}
LINES = ("metrics.jsonl", "positions.jsonl", "events.jsonl", "rollouts/step-4.jsonl")
OBJECTS = {"check.json": CHECK, "environment.json": {"versions": {}}, "alignment.json": ALIGNMENT}


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
