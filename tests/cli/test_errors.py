"""Bad input gives one clear message, the documented exit code and no traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import sums, write_jsonl
from tutelage.cli import main


@pytest.fixture
def base(gpt2_pair, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(30))
    return {
        "student.path": str(gpt2_pair[0]),
        "teacher.path": str(gpt2_pair[1]),
        "data.prompts": str(prompts),
        "data.held_out": "4",
        "rollout.prompts_per_step": "4",
        "rollout.max_new_tokens": "6",
        "run.steps": "1",
        "run.dir": str(tmp_path / "run"),
    }


def train(settings, *flags):
    words = [w for key, value in settings.items() for w in (f"--{key}", value)]
    return main(["train", *words, *flags])


def refused(capsys, code, expected, returned):
    out, err = capsys.readouterr()
    assert returned == code, err
    assert err.startswith("tutelage: ")
    assert "Traceback" not in err
    assert out == ""
    for part in expected:
        assert part in err


def test_missing_prompts_file(base, capsys):
    returned = train(base | {"data.prompts": "nowhere.jsonl"})
    refused(capsys, 4, ["nowhere.jsonl"], returned)


def test_empty_prompts_file(base, capsys, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    returned = train(base | {"data.prompts": str(tmp_path / "empty.jsonl")})
    refused(capsys, 4, ["empty.jsonl has no rows"], returned)


def test_a_row_without_a_prompt_is_named_by_its_line(base, capsys, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "1"}, {"text": "2", "id": 7}])
    returned = train(base | {"data.prompts": str(path)})
    refused(capsys, 4, ["line 2", "it holds id, text", "question"], returned)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "1"}\n{"prompt": ', "line 2 is not JSON"),
        ('{"prompt": "1"}\n[1]\n', "line 2 is list"),
        ('{"prompt": "1"}\n{"prompt": "   "}\n', "line 2 has an empty prompt"),
        ('{"prompt": "1"}\n{"prompt": 3}\n', "line 2, prompt is int"),
        ('{"prompt": [{"role": "user"}]}\n', "line 1, prompt has a turn"),
        ('{"prompt": "1", "id": 5}\n{"prompt": "2", "id": 5}\n', "rows 1 and 2 share the id '5'"),
    ],
)
def test_damaged_rows_are_named(base, capsys, tmp_path, content, expected):
    (tmp_path / "rows.jsonl").write_text(content)
    refused(capsys, 4, [expected], train(base | {"data.prompts": str(tmp_path / "rows.jsonl")}))


def test_unknown_kind_of_prompts_file(base, capsys, tmp_path):
    (tmp_path / "rows.txt").write_text("hello")
    returned = train(base | {"data.prompts": str(tmp_path / "rows.txt")})
    refused(capsys, 2, [".jsonl, .json or .parquet"], returned)


def test_a_parquet_file_that_is_none(base, capsys, tmp_path):
    (tmp_path / "rows.parquet").write_text("hello")
    returned = train(base | {"data.prompts": str(tmp_path / "rows.parquet")})
    refused(capsys, 4, ["cannot read prompts file"], returned)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rollout.group_sise", "2", "Did you mean 'group_size'?"),
        ("rolout.group_size", "2", "Did you mean 'rollout'?"),
        ("optimizer.lr", "-1", "optimizer.lr: input should be greater than 0"),
        ("objective.k", "0", "objective.k: input should be greater than 0"),
        ("objective.divergence.type", "revrse_kl", "Did you mean 'reverse_kl'?"),
        ("objective.divergence", "{type: jsd, beta: 1}", "objective.divergence.beta"),
        ("rollout.temperature", "0", "rollout.temperature"),
        ("objective", "{type: top_k, k: 1, tail: renormalise}", "k >= 2"),
        ("objective.tail.beta", "2", "objective.tail.beta does not exist"),
        ("optimizer.lr", ".nan", "finite number"),
        ("data.verifier", "{type: pattern, pattern: '(a)(b)'}", "2 groups"),
        ("data.verifier", "{type: pattern, pattern: '('}", "no regular expression"),
    ],
)
def test_bad_settings_name_the_field(base, capsys, key, value, expected):
    refused(capsys, 2, [expected], train(base | {key: value}))


def test_a_key_that_stands_twice(base, capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("run:\n  steps: 1\n  steps: 2\n")
    returned = train(base, "-c", str(tmp_path / "run.yaml"))
    refused(capsys, 2, ["'steps' stands twice", "line 2"], returned)


def test_yaml_cannot_make_objects(base, capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("run: !!python/object/apply:os.system ['true']\n")
    refused(capsys, 2, ["is not YAML"], train(base, "-c", str(tmp_path / "run.yaml")))


def test_a_missing_config_file(base, capsys):
    refused(capsys, 2, ["cannot read config nowhere.yaml"], train(base, "-c", "nowhere.yaml"))


def test_a_flag_without_a_value(base, capsys):
    refused(capsys, 2, ["--run.steps lacks a value"], train(base, "--run.steps"))


def test_tokenizers_that_differ(base, capsys):
    from tutelage.lab.embedded import model_path

    returned = train(base | {"teacher.path": str(model_path("compatible"))})
    refused(capsys, 2, ["disagree on", "first: ", "same family"], returned)


def test_a_model_directory_that_is_not_there(base, capsys):
    refused(capsys, 2, ["no directory nowhere"], train(base | {"teacher.path": "nowhere"}))


def test_a_model_folder_without_weights(base, capsys, gpt2_pair, tmp_path):
    for file in gpt2_pair[1].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    returned = train(base | {"teacher.path": str(tmp_path)})
    refused(capsys, 2, ["has no weights", "safetensors"], returned)


def test_pickled_weights_are_never_opened(base, capsys, gpt2_pair, tmp_path):
    (tmp_path / "config.json").write_bytes((gpt2_pair[1] / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    returned = train(base | {"teacher.path": str(tmp_path)})
    refused(capsys, 2, ["pickled weights", "convert them to safetensors"], returned)


def test_damaged_weights(base, capsys, gpt2_pair, tmp_path):
    for file in gpt2_pair[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(capsys, 2, ["teacher"], train(base | {"teacher.path": str(tmp_path)}))


def test_weights_that_lack_a_tensor_are_never_filled_in(base, capsys, gpt2_pair, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in gpt2_pair[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    returned = train(base | {"teacher.path": str(tmp_path)})
    refused(capsys, 2, ["lacks 1 weights", "h.1.mlp.c_fc.weight"], returned)


def test_a_model_without_a_tokenizer(base, capsys, gpt2_pair, tmp_path):
    for file in gpt2_pair[1].iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    refused(capsys, 2, ["tokenizer"], train(base | {"teacher.path": str(tmp_path)}))


def test_a_run_directory_that_exists(base, capsys):
    assert train(base) == 0
    capsys.readouterr()
    refused(capsys, 2, ["--resume", "--overwrite"], train(base))


def test_resume_where_there_is_no_run(base, capsys):
    refused(capsys, 2, ["no run directory"], train(base, "--resume"))


def test_resume_without_a_valid_checkpoint(base, capsys):
    assert train(base) == 0
    capsys.readouterr()
    for manifest in Path(base["run.dir"]).glob("checkpoints/*/MANIFEST.json"):
        manifest.write_text("{")
    refused(capsys, 8, ["no valid checkpoint", "step-1"], train(base, "--resume"))


def test_an_answer_column_that_a_verifier_needs(base, capsys, tmp_path):
    rows = [{"prompt": f"What is {i}?"} for i in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    returned = train(base | {"data.prompts": str(path), "data.verifier": "numeric"})
    refused(capsys, 4, ["needs an answer column", "20 of 20"], returned)


def test_an_answer_that_is_no_number(base, capsys, tmp_path):
    rows = [{"prompt": f"What is {i}?", "answer": "blue"} for i in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    returned = train(base | {"data.prompts": str(path), "data.verifier": "numeric"})
    refused(capsys, 4, ["'blue'", "no number"], returned)


def test_accuracy_without_a_verifier(base, capsys):
    returned = train(base | {"evaluation.metric": "accuracy"})
    refused(capsys, 2, ["needs data.verifier"], returned)


def test_an_unknown_reasoning_gym_dataset(base, capsys):
    returned = train(base | {"data.prompts": "reasoning_gym:chain_summ"})
    refused(capsys, 2, ["Did you mean 'chain_sum'?"], returned)


def test_an_unknown_verb(capsys):
    refused(capsys, 2, ["Did you mean 'train'?"], main(["trian"]))


def test_an_unknown_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--sed", "1"])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_device_that_is_not_there(base, capsys):
    refused(capsys, 5, ["sees no GPU"], train(base | {"student.device": "cuda"}))


def test_eval_without_a_verifier(base, capsys):
    returned = main(["eval", base["student.path"], "--prompts", base["data.prompts"]])
    refused(capsys, 2, ["needs a verifier"], returned)


def test_ctrl_c_says_how_to_go_on(base):
    words = [
        w for key, value in (base | {"run.steps": "100000"}).items() for w in (f"--{key}", value)
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tutelage", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = Path(base["run.dir"]) / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert out == ""


def test_json_goes_to_stdout_alone(base, capsys):
    assert train(base, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["step"] == 1
    assert summary["reverse_kl_after"] > 0
