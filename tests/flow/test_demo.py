"""The main job: what the README promises of `tutelage demo`, and the shipped models."""

import json
import re
from pathlib import Path

import pytest

import tutelage
from helpers import read_jsonl
from tutelage.cli import main
from tutelage.config import ModelConfig, PromptFormat
from tutelage.data.render import render
from tutelage.data.verify import make_verifier
from tutelage.evaluation import evaluate
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, ZOO, model_path
from tutelage.models.loading import load_model
from tutelage.types import SamplingParams

# Sampled accuracies as the table of docs/lab.md states them.
CLAIMED = {
    name: float(accuracy)
    for name, accuracy in re.findall(
        r"^\| `(\w+)` \|.*\| ([\d.]+) \| [\d.]+ \|$",
        (Path(__file__).parents[2] / "docs" / "lab.md").read_text(),
        re.M,
    )
}


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return tutelage.demo(seed=11, output=folder)


def test_the_demo_distils_the_student(demo_run):
    summary = demo_run.summary
    assert summary["accuracy_before"] < 0.4
    assert summary["accuracy_after"] >= 0.75
    assert summary["teacher_accuracy"] > 0.95
    assert summary["reverse_kl_after"] < 0.2 * summary["reverse_kl_before"]
    assert summary["overlap_mass_student_after"] > summary["overlap_mass_student_before"]
    recovered = (summary["accuracy_after"] - summary["accuracy_before"]) / (
        summary["teacher_accuracy"] - summary["accuracy_before"]
    )
    assert summary["gap_recovery"] == pytest.approx(recovered)
    low, high = summary["gap_recovery_interval"]
    assert low <= summary["gap_recovery"] <= high
    assert high - low < 0.1
    assert summary["verdicts"] == {"teacher": "go", "incompatible": "cold-start"}


def test_training_prompts_hold_no_held_out_problem(demo_run):
    folder = Path(demo_run.summary["run_dir"]).parent
    train, held_out = (
        {row["prompt"][0]["content"] for row in read_jsonl(folder / name)}
        for name in ("prompts.jsonl", "held_out.jsonl")
    )
    assert len(held_out) == 1000
    assert not train & held_out


def test_the_reports_numbers_equal_the_recorded_ones(demo_run):
    page = Path(demo_run.summary["report"]).read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    figures = json.loads(data.group(1))
    records = [
        r
        for r in read_jsonl(Path(demo_run.summary["run_dir"]) / "metrics.jsonl")
        if r["kind"] == "eval"
    ]
    by_id = {figure["id"]: figure for figure in figures}
    for name, key in {
        "accuracy": "accuracy",
        "kl": "kl/reverse",
        "mass": "overlap/mass_student",
        "entropy-gap": "entropy/gap",
        "length": "rollout/length",
    }.items():
        trace = next(t for t in by_id[name]["traces"] if t["style"] == "line")
        assert trace["x"] == [r["step"] for r in records]
        assert trace["y"] == [r[key] for r in records]
    assert page.count('class="text"') == 5 * 4  # question, answer, before and after
    assert "http-equiv" in page
    assert "<script src" not in page


def test_the_page_treats_model_text_as_data(demo_run, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(demo_run.summary["run_dir"], run)
    last = max((run / "rollouts").iterdir(), key=lambda p: int(p.stem.split("-")[1]))
    rows = read_jsonl(last)
    rows[0]["text"] = "<script>alert(1)</script>\" onmouseover='x' </td>"
    last.write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = Path(tutelage.report([run])).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_docs_claim_an_accuracy_of_every_shipped_model():
    assert (
        CLAIMED.keys() == {folder.name for folder in ZOO.iterdir()} == EMBEDDED_SPEC.models.keys()
    )


@pytest.mark.parametrize("name", list(CLAIMED))
def test_shipped_models_have_the_claimed_accuracies(name):
    """Within four standard errors and a point of the claim: problem sets differ a little too."""
    model = load_model(ModelConfig(path=str(model_path(name))), name)
    rendered, _ = render(
        EMBEDDED_SPEC.task.eval_prompts(1000, seed=9), model.tokenizer, PromptFormat(), 100
    )
    params = SamplingParams(max_new_tokens=28)
    result = evaluate(model, rendered, make_verifier(VERIFIER), params, seed=5)
    claim = CLAIMED[name]
    error = (claim * (1 - claim) / 1000) ** 0.5
    assert result.record()["accuracy"] == pytest.approx(claim, abs=4 * error + 0.01)


def test_shipped_models_take_at_most_three_megabytes():
    assert sum(f.stat().st_size for f in ZOO.rglob("*") if f.is_file()) <= 3e6


def test_a_larger_teacher_of_the_students_data_is_larger():
    from tutelage.models.checkpoints import open_folder

    student = open_folder(str(model_path("student")), "student").parameters
    assert open_folder(str(model_path("same_data")), "teacher").parameters > 2 * student


def test_the_verifier_accepts_the_solutions_of_both_patterns_and_no_other_digit():
    import numpy as np

    from tutelage.lab.models import make_tokenizer
    from tutelage.lab.tasks import SolutionStyle
    from tutelage.types import Prompt

    verify, tokenizer = make_verifier(VERIFIER), make_tokenizer()
    rng = np.random.default_rng(0)
    for pattern in ("forward", "backward"):
        ids, length = EMBEDDED_SPEC.task.sequences(rng, 50, 5, SolutionStyle(pattern=pattern))
        for row in ids:
            text = tokenizer.decode(row[length:], skip_special_tokens=True)
            operands = tokenizer.decode(row[2:length])[1::2]
            right = sum(map(int, operands)) % 10
            for answer in range(10):
                prompt = Prompt(id="p", text="p", answer=str(answer))
                assert verify(prompt, text) == (answer == right)
        assert not EMBEDDED_SPEC.task.is_held_out(ids[:, 3:length:2] - 7).any()


def test_lab_models_are_reproducible_from_their_seed():
    import torch

    from tutelage.lab.models import Training
    from tutelage.lab.pairs import PairSpec, make_pair

    spec = PairSpec(
        models={
            "student": Training(steps=4),
            "teacher": Training(start="student", steps=3, curriculum=False),
        }
    )
    one, two, other = make_pair(spec, 1), make_pair(spec, 1), make_pair(spec, 2)
    for name in ("student", "teacher"):
        first = torch.cat([p.flatten() for p in one[name].parameters()])
        assert torch.equal(first, torch.cat([p.flatten() for p in two[name].parameters()]))
        assert not torch.equal(first, torch.cat([p.flatten() for p in other[name].parameters()]))
    with pytest.raises(ValueError, match="starts from 'ghost'"):
        make_pair(PairSpec(models={"a": Training(start="ghost")}), 0)


def test_demo_json_is_one_object_with_the_promised_keys(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tutelage.demonstration.STEPS", 2)
    monkeypatch.setattr("tutelage.demonstration.HELD_OUT", 200)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a second run finds a folder of its own
        assert main(["demo", "--seed", "3", "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary.keys() >= {
            "accuracy_before",
            "accuracy_after",
            "teacher_accuracy",
            "gap_recovery",
            "overlap_mass_student_before",
            "overlap_mass_student_after",
            "reverse_kl_before",
            "reverse_kl_after",
            "seconds",
            "run_dir",
            "report",
        }
    assert summary["run_dir"] == "runs/demo-seed3-1/run"
