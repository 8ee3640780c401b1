"""Run directories, whole and in part, and the logs of other libraries."""

import json

import pytest
from fuzzing import NUMBERS, damaged, json_file, lines_file
from hypothesis import strategies as st

from helpers import read_jsonl
from tutelage.diagnose.explaining import explain
from tutelage.diagnose.told import as_text
from tutelage.runs.checkpoints import newest_checkpoint, valid_checkpoints
from tutelage.runs.directory import Run, open_run
from tutelage.runs.ledger import Ledger

KEYS = ("kind", "step", "accuracy", "accuracy/low", "kl/reverse", "teacher/accuracy", "bins")
CHECK = {
    "verdict": "go",
    "reasons": [{"text": "because", "evidence": {"a": 1.0}}],
    "looks": [{"teacher": "teacher", "verdict": "go", "reasons": [{"text": "so"}]}],
}
SERVERS = {"teacher": {"root": "/models/t", "model": "t", "fingerprint": {"sequence": [1]}}}


def explained(path):
    found = explain(path)
    as_text(found, top=3)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "positions.jsonl", "events.jsonl", "rollouts/step-0.jsonl"]
)
def test_explain_reads_any_lines(fuzz, run, name):
    records = read_jsonl(run / name)[:6]

    def read(content):
        (run / name).write_bytes(content)
        explained(run)

    fuzz(read, lines_file(records, KEYS), examples=150)


@pytest.mark.parametrize(("name", "good"), [("check.json", CHECK), ("servers.json", SERVERS)])
def test_explain_reads_any_file(fuzz, run, name, good):
    def read(content):
        (run / name).write_bytes(content)
        explained(run)

    fuzz(read, json_file(good), examples=100)


def test_explain_reads_any_settings(fuzz, run):
    good = (run / "config.yaml").read_bytes()

    def read(content):
        (run / "config.yaml").write_bytes(content)
        explained(run)

    fuzz(read, damaged(good), examples=100)


TRL = {
    "log_history": [
        {"step": i, "loss": 1.0 / i, "grad_norm": 0.5, "learning_rate": 1e-5, "entropy": 1.0}
        for i in range(1, 14)
    ]
}
VERL = [
    {"step": i, "data": {"actor/grad_norm": 0.1, "actor/entropy": 1.0, "response_length/mean": 9.0}}
    for i in range(1, 14)
]


def test_explain_reads_any_log_of_trl(fuzz, tmp_path):
    path = tmp_path / "trainer_state.json"

    def read(content):
        path.write_bytes(content)
        explained(path)

    fuzz(read, json_file(TRL, ("loss", "step", "entropy")), examples=200)


def test_explain_reads_any_log_of_verl(fuzz, tmp_path):
    path = tmp_path / "verl.jsonl"

    def read(content):
        path.write_bytes(content)
        explained(path)

    fuzz(read, lines_file(VERL, ("step", "data", "actor/grad_norm")), examples=200)


def test_numbers_of_any_size_in_a_log_are_explained(fuzz, tmp_path):
    path = tmp_path / "trainer_state.json"
    entries = st.lists(
        st.fixed_dictionaries(dict.fromkeys(TRL["log_history"][0], NUMBERS)), max_size=20
    )

    def read(history):
        path.write_text(json.dumps({"log_history": history}))
        explained(path)

    fuzz(read, entries, examples=200)


# --- checkpoints and ledgers -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json", "optimizer.safetensors"])
def test_any_file_of_a_checkpoint_is_whole_or_passed_over(fuzz, run, name):
    root = run / "checkpoints"
    path = root / "step-4" / name
    good = path.read_bytes()

    def read(content):
        path.write_bytes(content)
        found, skipped = newest_checkpoint(root)
        assert found.step == 2 or content == good or name == "MANIFEST.json"
        assert (found.step == 2) == ("step-4" in skipped)
        assert next(valid_checkpoints(root)).step == found.step

    whole = json_file(json.loads(good)) if name.endswith("json") else damaged(good)
    fuzz(read, whole, examples=150)


def test_any_metrics_are_cut_back_or_our_error(fuzz, run):
    records = read_jsonl(run / "metrics.jsonl")[:5]

    def read(content):
        (run / "metrics.jsonl").write_bytes(content)
        open_run(run)
        kept = Run(run)
        kept.cut_torn_lines()
        kept.truncate_after(2)

    fuzz(read, lines_file(records, KEYS), examples=150)


def test_any_ledger_is_read_or_our_error(fuzz, tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = [{"unit": f"u{i}", "value": [i, None]} for i in range(4)]

    def read(content):
        path.write_bytes(content)
        ledger = Ledger(path)
        assert len(ledger.records) == len(ledger)
        ledger.record("one more", {"value": 1})
        assert "one more" in Ledger(path)

    fuzz(read, lines_file(lines, ("unit",)), examples=200)
