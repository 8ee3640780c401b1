"""TRL, PEFT and lm-eval take what we write, and we read what TRL writes."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import read_jsonl, write_jsonl
from tutelage.config import parse_config
from tutelage.data.prompts import read_prompts
from tutelage.diagnose.explaining import explain
from tutelage.errors import DataError
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.lab.tasks import write_prompts
from tutelage.training import train


def settings(folder, **sections):
    prompts = folder / "prompts.jsonl"
    write_prompts(prompts, EMBEDDED_SPEC.task.train_prompts(40, 0))
    tree = {
        "student": {"path": str(model_path("student"))},
        "teacher": {"path": str(model_path("compatible"))},
        "data": {"prompts": str(prompts), "held_out": 8, "verifier": VERIFIER.model_dump()},
        "rollout": {"prompts_per_step": 8, "max_new_tokens": 28},
        "objective": {"k": 4},
        "optimizer": {"lr": 1e-3},
        "run": {"dir": str(folder / "run"), "steps": 2},
    }
    return parse_config({**tree, **{n: {**tree.get(n, {}), **s} for n, s in sections.items()}})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished student of two steps."""
    return train(settings(tmp_path_factory.mktemp("trained"))).student


def test_these_are_tests_of_the_versions_that_docs_name():
    assert (version("trl"), version("lm_eval")) == ("1.16.0", "0.4.13")


# TRL's dataset formats, https://huggingface.co/docs/trl/dataset_formats, by their own checks.
CHAT = [{"role": "user", "content": "a9 b1"}]
ANSWER = [{"role": "assistant", "content": "a9 b0 #0"}]
FORMATS = {
    "prompt-only": {"prompt": "a9 b1"},
    "prompt-only, chat": {"prompt": CHAT},
    "prompt-completion": {"prompt": "a9 b1", "completion": "a9 b0 #0"},
    "prompt-completion, chat": {"prompt": CHAT, "completion": ANSWER},
    "language modeling, chat": {"messages": CHAT + ANSWER},
    "preference": {"prompt": "a9 b1", "chosen": "a9 b0 #0", "rejected": "a9 b0 #1"},
    "preference, chat": {"prompt": CHAT, "chosen": ANSWER, "rejected": ANSWER},
    "unpaired preference, chat": {"prompt": CHAT, "completion": ANSWER, "label": True},
    "with an answer, as GRPO's rewards take it": {"prompt": CHAT, "solution": "0"},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_trls_formats_are_read_as_prompts(tmp_path, name, ending):
    from trl import is_conversational

    row = FORMATS[name]
    dataset = Dataset.from_list([row, row])
    path = tmp_path / f"rows.{ending}"
    (dataset.to_json if ending == "jsonl" else dataset.to_parquet)(str(path))
    read = read_prompts(str(path))
    assert read.layout.name == "TRL"
    for prompt in read.prompts:
        assert [turn.role for turn in prompt.messages] == ["user"] * is_conversational(row)
        assert prompt.question == "a9 b1"
        assert prompt.answer == row.get("solution")


@pytest.mark.parametrize(
    "row", [{"text": "a9 b1 #0"}, {"chosen": CHAT + ANSWER, "rejected": CHAT + ANSWER}]
)
def test_trls_formats_without_a_prompt_are_refused(tmp_path, row):
    with pytest.raises(DataError, match="has no prompt"):
        read_prompts(str(write_jsonl(tmp_path / "rows.jsonl", [row])))


def distil_with_trl(folder, student, teacher, steps):
    from trl import DistillationConfig, DistillationTrainer

    tokenizer = AutoTokenizer.from_pretrained(student)
    rows = [{"prompt": [{"role": "user", "content": f"a{i} b1"}]} for i in range(8)]
    trainer = DistillationTrainer(
        model=str(student),
        teacher_model=str(teacher),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=DistillationConfig(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            max_steps=steps,
            max_completion_length=8,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
    )
    trainer.train()
    return trainer


def test_trl_distils_our_student_on_and_we_distil_trls(trained, tmp_path):
    trainer = distil_with_trl(tmp_path / "trl", trained, model_path("compatible"), steps=2)
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    trainer.save_model(str(tmp_path / "theirs"))
    trainer.state.save_to_json(str(tmp_path / "trainer_state.json"))
    result = train(settings(tmp_path, student={"path": str(tmp_path / "theirs")}))
    assert result.outcome == "finished"
    before, after = (
        torch.cat([p.flatten() for p in AutoModelForCausalLM.from_pretrained(m).parameters()])
        for m in (tmp_path / "theirs", result.student)
    )
    assert not torch.equal(before, after)
    assert explain(tmp_path / "trainer_state.json").to_dict()  # its log too


def test_peft_loads_our_adapter_with_the_same_logits(tmp_path):
    from peft import PeftModel

    lora = {"rank": 4, "alpha": 8}
    unmerged = {"path": str(model_path("student")), "lora": {**lora, "merge": False}}
    adapter = train(settings(tmp_path, student=unmerged)).student
    merged = {**unmerged, "lora": lora}
    whole = train(settings(tmp_path, student=merged, run={"dir": str(tmp_path / "merged")})).student
    base = AutoModelForCausalLM.from_pretrained(model_path("student"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = base(ids).logits
        theirs = PeftModel.from_pretrained(base, adapter)(ids).logits
        ours = AutoModelForCausalLM.from_pretrained(whole)(ids).logits
    assert (theirs - plain).abs().max() > 1e-3  # it has learned something
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


TASK = """
task: tiny_sums
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["#0", "#1", "#2", "#3"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""


def test_lm_eval_measures_our_student_offline(trained, tmp_path):
    rows = [{"question": f"a{i} b1 ", "label": i % 4} for i in range(8)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "task.yaml").write_text(TASK.replace("ROWS", str(tmp_path / "rows.jsonl")))
    words = ["-m", "lm_eval", "--model", "hf", "--tasks", "tiny_sums", "--device", "cpu"]
    words += ["--model_args", f"pretrained={trained},dtype=float32", "--batch_size", "4"]
    words += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    words += ["--log_samples"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "out").rglob("results_*.json")
    assert 0 <= json.loads(found.read_text())["results"]["tiny_sums"]["acc,none"] <= 1
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    model = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    # What it scored is what the student says, token by token.
    sample = read_jsonl(samples)[0]
    request = sample["arguments"]["gen_args_0"]
    context, choice = (
        tokenizer(request[f"arg_{i}"], add_special_tokens=False)["input_ids"] for i in (0, 1)
    )
    with torch.no_grad():
        logp = model(torch.tensor([context + choice])).logits[0].log_softmax(-1)
    expected = sum(logp[len(context) - 1 + i, token] for i, token in enumerate(choice))
    assert float(sample["resps"][0][0][0]) == pytest.approx(float(expected), abs=1e-3)
