"""What the page and the CSV files say is what was recorded, whatever state the directory is in."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hostile import MARKUP, write_hostile_run
from hypothesis import given
from hypothesis import strategies as st

import tutelage
from helpers import read_jsonl, write_jsonl
from tutelage.cli import main
from tutelage.errors import UsageError
from tutelage.ops.intervals import difference_interval
from tutelage.reports.gather import gather, kind_of
from tutelage.reports.heat import Heat
from tutelage.reports.series import thin


def drawn(page: Path) -> dict[str, dict]:
    """The figures that a page holds, by their ids."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S
    )
    return {figure["id"]: figure for figure in json.loads(found.group(1))}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def records(run: Path, kind: str) -> list[dict]:
    return [r for r in read_jsonl(run / "metrics.jsonl") if r["kind"] == kind]


@pytest.fixture
def copy(runs, tmp_path):
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


def test_curves_and_csv_files_hold_the_recorded_numbers(runs, tmp_path):
    page = tutelage.report([runs[0]], output=tmp_path / "page.html", csv_folder=tmp_path / "csv")
    assert page == tmp_path / "page.html"
    figures = drawn(page)
    evaluated, trained = records(runs[0], "eval"), records(runs[0], "train")
    for name, key in (
        ("kl", "kl/reverse"),
        ("overlap", "overlap/ratio"),
        ("length", "rollout/length"),
    ):
        held_out = next(t for t in figures[name]["traces"] if t["style"] == "line")
        steps = next(t for t in figures[name]["traces"] if t["style"] == "faint")
        assert held_out["x"] == [r["step"] for r in evaluated]
        assert held_out["y"] == [r[key] for r in evaluated]
        assert steps["y"] == [r[key] for r in trained]
    rows = [r for r in table(tmp_path / "csv" / "accuracy.csv") if not r["series"]]
    assert [float(r["value"]) for r in rows] == [r["accuracy"] for r in evaluated]
    assert [float(r["low"]) for r in rows] == [r["accuracy/low"] for r in evaluated]
    assert {path.stem for path in (tmp_path / "csv").iterdir()} == set(figures)


def test_seconds_a_step_are_a_mean_over_whole_generations(copy):
    """One step of a generation samples for all, and the last five may miss it."""
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["rollout"]["steps_per_generation"] = 8
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    kept = read_jsonl(copy / "metrics.jsonl")
    last = max(records(copy, "train"), key=lambda record: record["step"])
    more = range(last["step"] + 1, last["step"] + 81)
    seconds = {step: 8.0 if step % 8 == 1 else 0.0 for step in more}
    kept += [{**last, "step": step, "perf/step_s": seconds[step]} for step in more]
    write_jsonl(copy / "metrics.jsonl", kept)
    (cell,) = next(cells for name, _, cells in gather([copy]).numbers if name == "seconds per step")
    assert cell.value == pytest.approx(1.0)


def test_heatmaps_hold_the_recorded_means_by_position(runs, tmp_path):
    tutelage.report([runs[0]], output=tmp_path / "page.html", csv_folder=tmp_path / "csv")
    first = read_jsonl(runs[0] / "positions.jsonl")[0]
    rows = [r for r in table(tmp_path / "csv" / "depth-kl-reverse.csv") if r["first step"] == "1.0"]
    known = [v for v in first["bins"]["kl/reverse"] if v is not None]
    assert [float(r["value"]) for r in rows] == pytest.approx(known)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 60))
def test_thinned_curves_keep_their_ends_and_extremes(values, most):
    kept = thin(values, most)
    shown = [values[i] for i in kept]
    assert len(kept) <= max(most, 4)
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    assert (min(shown), max(shown)) == (min(values), max(values))
    assert kept == sorted(set(kept))


@given(st.integers(1, 70), st.integers(2, 9), st.randoms(use_true_random=False))
def test_columns_of_a_heatmap_are_means_over_the_tokens_of_their_steps(steps, most, draw):
    heat = Heat(most=most)
    cells = [(draw.uniform(-1, 1), draw.randrange(4)) for _ in range(steps)]
    for step, (value, tokens) in enumerate(cells, 1):
        bins = {"tokens": [tokens], "kl/reverse": [value if tokens else None]}
        heat.add({"step": step, "edges": [0, 8], "bins": bins})
    found = heat.cells("kl/reverse")
    if not any(tokens for _, tokens in cells):
        assert found is None
        return
    assert len(found[0]) == len(heat.spans) <= most
    covered = []
    for (first, last), mean in zip(heat.spans, found[0], strict=True):
        inside = cells[int(first) - 1 : int(last)]
        covered += inside
        count = sum(tokens for _, tokens in inside)
        expected = sum(v * t for v, t in inside) / count if count else None
        assert mean == (expected if expected is None else pytest.approx(expected))
    assert covered == cells


def test_runs_side_by_side_name_what_differs_and_by_how_much(runs, tmp_path):
    report = gather(runs)
    differ = dict(report.settings)
    assert differ["optimizer.lr"] == ["0.0001", "0.003"]
    assert "run.dir" not in differ
    cells = next(cells for name, _, cells in report.numbers if name == "accuracy")
    answers = [
        {r["id"]: r["accuracy"] for r in read_jsonl(run / "eval" / "step-6.jsonl")} for run in runs
    ]
    pairs = [(answers[1][name], answers[0][name]) for name in answers[0]]
    assert cells[1].paired
    assert cells[1].difference_interval == pytest.approx(
        difference_interval(*zip(*pairs, strict=True))
    )
    page = tutelage.report(runs, output=tmp_path / "page.html")
    assert {t["run"] for t in drawn(page)["kl"]["traces"]} == {"slow", "fast"}


def test_results_of_every_verb_are_recognised(runs, aligned, tmp_path):
    (tmp_path / "cold").mkdir()
    summary = {
        "answers": {"slots": 8, "kept": 7, "tries": 9, "tokens": 90, "rejected": {"cut": 2}},
        "imitation": {"step": 2, "steps": 2, "planned": 2, "validation": [[0, 2.0], [2, 1.0]]},
    }
    (tmp_path / "cold" / "summary.json").write_text(json.dumps(summary))
    losses = [{"kind": "validation", "step": s, "loss": v} for s, v in ((0, 2.0), (2, 1.0))]
    write_jsonl(tmp_path / "cold" / "metrics.jsonl", losses)
    (tmp_path / "controls").mkdir()
    arm = {"values": {"0": 0.5, "1": 0.7}, "mean": 0.6, "interval": [0.4, 0.8]}
    gain = {"difference": 0.2, "difference_interval": [0.1, 0.3]}
    controls = {"metric": "accuracy", "arms": [{"arm": "sft", **arm, **gain}], "left_out": {}}
    (tmp_path / "controls" / "controls.json").write_text(json.dumps(controls))
    write_jsonl(tmp_path / "clean.jsonl", [])
    counts = {"rows": 9, "written": 7, "leaks": {"test": {"questions": 5, "leaked": {"near": 2}}}}
    (tmp_path / "clean.jsonl.summary.json").write_text(json.dumps(counts))
    paths = [aligned, tmp_path / "cold", tmp_path / "controls"]
    assert [kind_of(p) for p in paths] == ["align", "cold-start", "controls"]
    report = gather([*paths, tmp_path / "clean.jsonl", runs[0]])
    told = {result.kind: " ".join(result.lead) for result in report.results}
    assert "advantage" in told["align"]
    assert "still falling" in told["rescue cold-start"]
    assert told["rescue controls"] == "The run is better than sft."
    assert told["rescue prompts"] == "7 rows written of 9."
    assert len(report.stories) == 1
    found = json.loads((aligned / "alignment.json").read_text())
    dots = {figure.id: figure for figure in report.figures()}["align-1-advantage"]
    values = {label: (value, low, high) for label, _, value, low, high in dots.rows()}
    for teacher, numbers in found["teachers"].items():
        estimate = numbers["objectives"]["objective"]["advantage"]
        assert values[teacher] == (estimate["value"], *estimate.get("interval", (None, None)))


def test_a_folder_of_runs_stands_for_the_runs(runs, tmp_path):
    page = tutelage.report([runs[0].parent], output=tmp_path / "page.html")
    assert {t["run"] for t in drawn(page)["kl"]["traces"]} == {"slow", "fast"}


@pytest.mark.parametrize(
    "missing", ["metrics.jsonl", "config.yaml", "environment.json", "events.jsonl", "rollouts"]
)
def test_a_missing_file_is_told_and_the_rest_is_shown(copy, missing):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = tutelage.report([copy]).read_text()
    assert missing == "rollouts" or f"{missing} is not there" in page
    assert ("Divergence from the teacher" in page) == (missing != "metrics.jsonl")


def test_damaged_lines_are_counted_and_the_others_shown(copy):
    metrics = copy / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:2], "{half\n", *lines[2:], '{"kind": "tr']))
    page = tutelage.report([copy])
    assert "2 lines are damaged or unfinished in metrics.jsonl" in page.read_text()
    trained = next(t for t in drawn(page)["loss"]["traces"])
    assert len(trained["x"]) == 6


def test_a_run_that_goes_on_is_not_called_finished(copy):
    (copy / "events.jsonl").write_text("")
    assert "still running, or killed; 6 of 6 steps" in tutelage.report([copy]).read_text()


def test_a_hostile_directory_is_text(runs, tmp_path):
    hostile = write_hostile_run(tmp_path / "hostile", runs[0])
    page = tutelage.report([hostile, runs[1]], csv_folder=tmp_path / "csv")
    text = page.read_text(encoding="utf-8")
    body = text[text.index("</style>") : text.index('<script type="text/plain" id="library">')]
    assert not re.search(r"<(script|img|b>|i>)", body)
    assert "javascript:" not in re.sub(r"&lt;a href=&#39;javascript:", "", body)
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", body)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "⟨U+202E⟩reversed" in body
    assert len(body) < 500_000
    for figure in drawn(page).values():
        for trace in figure.get("traces", ()):
            assert all(math.isfinite(v) for v in trace["y"])
    cells = [c for p in (tmp_path / "csv").iterdir() for row in table(p) for c in row.values()]
    assert any(MARKUP[0] in cell for cell in cells)
    assert not any(cell.startswith("=") for cell in cells)


def test_what_is_no_run_is_refused(tmp_path, runs):
    with pytest.raises(UsageError, match="no run directory"):
        gather([tmp_path])
    with pytest.raises(UsageError, match="does not exist"):
        gather([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="more than one page"):
        gather([runs[0]] * 17)


def test_the_command_prints_where_the_page_is(runs, tmp_path, capsys):
    words = ["report", str(runs[0]), "-o", str(tmp_path / "x.html"), "--csv", str(tmp_path / "csv")]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"report": str(tmp_path / "x.html"), "csv": str(tmp_path / "csv")}
