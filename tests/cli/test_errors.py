"""Bad input gives one clear message, the documented exit code and no traceback."""

import json
import os
import shutil
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
    returned = train(base | {"data.prompts": str(tmp_path)})
    refused(capsys, 4, ["is a directory"], returned)


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
        ('{"prompt": ""}\n', "line 1 has an empty prompt"),
        ('{"messages": []}\n', "line 1 has an empty messages"),
        ('{"prompt": [{"role": "user", "content": " "}]}\n', "prompt has no text in any turn"),
        (
            '{"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}\n',
            "line 1, prompt has a turn that is not a role and a text",
        ),
        ('{"prompt": "1", "id": 5}\n{"prompt": "2", "id": 5}\n', "line 2 share the id '5'"),
        ('{"prompt": "1"}\n{"prompt": ' + "1" * 5000 + "}\n", "line 2 is not JSON"),
        ('{"prompt": "1", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1 is not JSON"),
        ('{"prompt": "\\ud800 hi"}\n', "line 1: its prompt holds half a character"),
        ('{"prompt": [{"role": "user", "content": "\\ud800"}]}\n', "line 1: its prompt holds half"),
        ('{"prompt": "1"}\n{"prompt": "2", "id": "\\udfff"}\n', "line 2: its id holds half"),
        ('{"prompt": "1", "answer": "\\ud800"}\n', "line 1: its answer holds half"),
    ],
)
def test_damaged_rows_are_named(base, capsys, tmp_path, content, expected):
    (tmp_path / "rows.jsonl").write_text(content)
    refused(capsys, 4, [expected], train(base | {"data.prompts": str(tmp_path / "rows.jsonl")}))


def test_unknown_kind_of_prompts_file(base, capsys, tmp_path):
    (tmp_path / "rows.txt").write_text("hello")
    returned = train(base | {"data.prompts": str(tmp_path / "rows.txt")})
    refused(capsys, 4, [".jsonl, .json, .csv or .parquet", '{"prompt": "...",'], returned)


def test_a_csv_file_with_semicolons(base, capsys, tmp_path):
    (tmp_path / "rows.csv").write_text("question;answer\nWhat?;1\n")
    returned = train(base | {"data.prompts": str(tmp_path / "rows.csv")})
    refused(capsys, 4, ["one column, 'question;answer'", "commas"], returned)


def test_held_out_questions_that_leave_none_to_train_on_are_the_reason_given(base, capsys):
    returned = train(base | {"data.eval_prompts": base["data.prompts"]})
    refused(capsys, 4, ["leaves 0 training prompts (", "ask a question of"], returned)


def test_a_folder_that_is_no_run_says_where_runs_are(capsys, tmp_path):
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("{}")
    for verb in ("watch", "explain", "report", "push"):
        words = [verb, str(tmp_path / "runs/secnd"), *(["a/b"] if verb == "push" else [])]
        refused(capsys, 2, [f"did you mean {tmp_path}/runs/second?"], main(words))
    words = ["watch", f"{tmp_path}/runs"]
    refused(capsys, 2, [f"runs in {tmp_path}/runs: first, second"], main(words))
    refused(capsys, 2, ["give the run.dir that"], main(["watch", f"{tmp_path}/runs/first/none"]))


def test_a_model_that_is_not_there_says_what_is(base, capsys, gpt2_pair):
    folder = Path(gpt2_pair[0]).parent
    names = {Path(path).name for path in gpt2_pair}
    for role in ("student", "teacher"):
        returned = train(base | {f"{role}.path": f"{folder}/nothing"})
        refused(capsys, 2, [f"models in {folder}: ", *names], returned)
    words = ["eval", str(folder), "--prompts", base["data.prompts"], "--verifier", "numeric"]
    refused(capsys, 2, ["no config.json", "did you mean", *names], main(words))


def test_eval_speaks_of_its_own_flags(base, capsys, tmp_path):
    words = ["eval", base["student.path"], "--prompts", base["data.prompts"], "--verifier"]
    refused(capsys, 2, ["--verifier pattern needs more: 'pattern:"], main([*words, "pattern"]))
    refused(capsys, 2, ["tutelage: --verifier pattern '('"], main([*words, "pattern:("]))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What?"}\n')
    words[3] = str(tmp_path / "rows.jsonl")
    returned = main([*words, "exact"])
    refused(capsys, 4, ["--verifier exact needs an answer column", "add `answer`\n"], returned)


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
        ("align.teachers", "{other: {paht: x}}", "Did you mean 'path'?"),
        ("objective.divergence.type", "revrse_kl", "Did you mean 'reverse_kl'?"),
        ("objective.divergence", "{type: jsd, beta: 1}", "objective.divergence.beta"),
        ("rollout.temperature", "0", "rollout.temperature"),
        ("objective", "{type: top_k, k: 1, tail: renormalise}", "k >= 2"),
        ("objective.tail.beta", "2", "objective.tail.beta does not exist"),
        ("optimizer.lr", ".nan", "finite number"),
        ("data.verifier", "{type: pattern, pattern: '(a)(b)'}", "2 groups"),
        ("data.verifier", "{type: pattern, pattern: '('}", "no regular expression"),
        ("optimizer.betas", "[0.9, 1.5]", "optimizer.betas.1: input should be less than 1"),
        ("optimizer.betas", "[-0.1, 0.9]", "greater than or equal to 0"),
        ("student.device", "gpu", "student.device 'gpu' does not exist"),
        ("run.steps.x", "3", "--run.steps.x sets a part of run.steps, which is 1"),
        ("student.dtype", "bfloat16", "an AdamW step of lr 1e-5 is smaller"),
        ("student.dtype", "float16", "leave it float32"),
        ("teacher.template", "{padding: true}", "teacher.template: padding is set by tutelage"),
        ("student.template", "{tokenize: true}", "student.template: tokenize is set by tutelage"),
        ("student.template", "{add_generation_prompt: false}", "add_generation_prompt"),
        (
            "student.template",
            "{x: .nan}",
            "student.template: its values must be text, finite numbers",
        ),
        ("student.path", "[" * 5000, "--student.path is nested too deeply"),
        ("run.seed", "1" * 5000, "--run.seed is not YAML"),
        ("lr", "1", "lr does not exist. Did you mean optimizer.lr or cold_start.lr?"),
        ("rollouts", "1", "rollouts does not exist. Did you mean 'rollout'?"),
        ("teacher", "me/model", "A model is written teacher: {path: me/model}"),
    ],
)
def test_bad_settings_name_the_field(base, capsys, key, value, expected):
    refused(capsys, 2, [expected], train(base | {key: value}))


def test_a_key_that_stands_twice(base, capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("run:\n  steps: 1\n  steps: 2\n")
    returned = train(base, "-c", str(tmp_path / "run.yaml"))
    refused(capsys, 2, ["'steps' stands twice", "line 2"], returned)


def test_a_section_that_is_no_mapping(base, capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("data: 3\n")
    returned = train(base, "-c", str(tmp_path / "run.yaml"))
    refused(capsys, 2, ["sets a part of data, which is 3"], returned)
    returned = main(["train", "-c", str(tmp_path / "run.yaml")])
    refused(capsys, 2, ["run.yaml: ", "data: ", "as in {prompts: ...}, got 3"], returned)


def test_dates_and_clock_times_are_text(base, capsys):
    from tutelage.config import load_config

    words = [w for key, value in base.items() for w in (f"--{key}", value)]
    for name in ("2026-30-11", "2026-11-30", "2026-11-30 12:30:00", "12:30", "1:30.5"):
        assert load_config(None, [*words, "--run.dir", name]).run.dir == name
    numbers = ["--optimizer.lr", "1.5e-3", "--run.seed", "0x10", "--run.max_hours", "1_0.5"]
    read = load_config(None, [*words, *numbers])
    assert (read.optimizer.lr, read.run.seed, read.run.max_hours) == (1.5e-3, 16, 10.5)


def test_a_small_number_in_any_spelling_is_that_number(base, capsys):
    for text in ("2e-5", "2.0e-5", "0.00002", "'2e-5'"):
        words = [w for key, value in base.items() for w in (f"--{key}", value)]
        assert main(["plan", *words, "--optimizer.lr", text, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["config"]["optimizer"]["lr"] == 2e-5


BOMB = "student: {path: s, template: {k0: &b0 [x, x, x, x, x, x, x, x, x]" + "".join(
    f", k{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB + "}}", "more than 20,000 values"),
        ("student: &a {path: *a}", "holds itself"),
        ("a: &a [*a]", "holds itself"),
        ("#" * 2**20 + "\n", "characters"),
        ("".join(f"k{i}: 1\n" for i in range(9000)), "faults more"),
        ("run: {steps: .nan}", "run.steps"),
        ("optimizer: {lr: .inf}", "optimizer.lr"),
        ("run: {overwrite: no}", "overwrite does not exist"),
        ("data: {use_chat_template: 'nope'}", "use_chat_template"),
        ("a: !!python/object/apply:os.system ['true']", "not YAML"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_yaml_that_would_grow_or_hang_is_refused_at_once(capsys, tmp_path, text, told):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    started = time.process_time()
    refused(capsys, 2, [str(path), told], main(["plan", "-c", str(path)]))
    assert time.process_time() - started < 5


def test_yaml_cannot_make_objects(base, capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("run: !!python/object/apply:os.system ['true']\n")
    refused(capsys, 2, ["is not YAML"], train(base, "-c", str(tmp_path / "run.yaml")))


def test_a_missing_config_file(base, capsys):
    refused(capsys, 2, ["cannot read config nowhere.yaml"], train(base, "-c", "nowhere.yaml"))


def test_settings_that_were_not_given(capsys):
    refused(capsys, 2, ["-c run.yaml", "tutelage init"], main(["train"]))
    refused(capsys, 2, ["write -c run.yaml"], main(["train", "run.yaml"]))


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


@pytest.fixture
def broken(gpt2_pair, tmp_path):
    """A copy of the teacher in which one file can be changed."""
    shutil.copytree(gpt2_pair[1], tmp_path / "broken")

    def change(name, content):
        (tmp_path / "broken" / name).write_bytes(content)
        return str(tmp_path / "broken")

    return change


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_damaged_model_config(base, capsys, broken, verb, content):
    words = base | {"teacher.path": broken("config.json", content)}
    returned = main([verb, *(w for key, value in words.items() for w in (f"--{key}", value))])
    refused(capsys, 2, ["teacher model", "broken"], returned)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_truncated_weights(base, capsys, broken, gpt2_pair, verb, keep):
    whole = (gpt2_pair[1] / "model.safetensors").read_bytes()
    words = base | {"teacher.path": broken("model.safetensors", whole[:keep])}
    returned = main([verb, *(w for key, value in words.items() for w in (f"--{key}", value))])
    refused(capsys, 2, ["teacher model", "broken"], returned)


def test_a_damaged_generation_config_would_lose_the_stop_ids(base, capsys, broken):
    returned = train(base | {"teacher.path": broken("generation_config.json", b"{")})
    refused(capsys, 2, ["generation_config.json is damaged"], returned)


def test_a_model_without_a_cache_of_keys_and_values(base, capsys, tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    from helpers import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
    MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(
        tmp_path / "m"
    )
    tokenizer.save_pretrained(tmp_path / "m")
    capsys.readouterr()
    returned = train(base | {"teacher.path": str(tmp_path / "m")})
    refused(capsys, 2, ["MambaForCausalLM", "cannot be decoded here"], returned)


def test_a_pair_that_never_stops_by_itself_still_trains(base, capsys, gpt2_pair, tmp_path):
    for name, path in zip(("student", "teacher"), gpt2_pair, strict=True):
        shutil.copytree(path, tmp_path / name)
        for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
            content = json.loads((tmp_path / name / file).read_text())
            for key in ("eos_token_id", "eos_token"):
                content.pop(key, None)
            if file == "config.json":
                content["eos_token_id"] = None
            (tmp_path / name / file).write_text(json.dumps(content))
    paths = {f"{role}.path": str(tmp_path / role) for role in ("student", "teacher")}
    assert train(base | paths) == 0, capsys.readouterr().err


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
    refused(capsys, 2, ["give one of them"], train(base, "--resume", "--overwrite"))


def test_resume_where_something_else_is(base, capsys):
    Path(base["run.dir"]).mkdir()
    (Path(base["run.dir"]) / "thesis.txt").write_text("precious")
    refused(capsys, 2, ["no run directory"], train(base, "--resume"))
    refused(capsys, 2, ["no run directory", "another directory"], train(base, "--overwrite"))
    refused(capsys, 2, ["is a file"], train(base | {"run.dir": base["data.prompts"]}))


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
    rows = [{"prompt": f"What is {i}?", "answer": "blue" if i == 19 else i} for i in range(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    returned = train(base | {"data.prompts": str(path), "data.verifier": "numeric"})
    refused(capsys, 4, ["'row-19'", "'blue'", "no number"], returned)
    assert not Path(base["run.dir"]).exists()  # known before anything starts


def test_accuracy_without_a_verifier(base, capsys):
    returned = train(base | {"evaluation.metric": "accuracy"})
    refused(capsys, 2, ["needs data.verifier"], returned)


def test_an_unknown_reasoning_gym_dataset(base, capsys):
    returned = train(base | {"data.prompts": "reasoning_gym:chain_summ"})
    refused(capsys, 2, ["Did you mean 'chain_sum'?"], returned)


@pytest.mark.parametrize("query", ["size=abc", "size=1.5", "size=0", "size=9&seed=x", "colour=1"])
def test_options_that_reasoning_gym_refuses(base, capsys, query):
    pytest.importorskip("reasoning_gym")
    returned = train(base | {"data.prompts": f"reasoning_gym:chain_sum?{query}"})
    refused(capsys, 2, ["reasoning-gym refuses these options"], returned)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--temperature", "-1"], "temperature: input should be greater than or equal to 0"),
        (["--top-p", "0"], "top_p: input should be greater than 0"),
        (["--top-p", "2"], "top_p: input should be less than or equal to 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens: input should be greater than 0"),
        (["--samples", "0"], "samples: input should be greater than 0"),
        (["--samples", "2", "--k", "3"], "1 <= k <= samples"),
        (["--output", "."], "output . is a directory"),
        (["--output", "/proc/no/x"], "output /proc/no/x cannot be written"),
        (["--max-new-tokens", "60"], "reads 64 tokens"),
    ],
)
def test_eval_flags_out_of_range(base, capsys, flags, expected):
    words = ["eval", base["student.path"], "--prompts", base["data.prompts"]]
    returned = main([*words, "--verifier", "numeric", *flags])
    refused(capsys, 2, [expected], returned)


def test_eval_whose_memory_is_full_names_its_own_flag(base, capsys, monkeypatch):
    import torch

    from tutelage.models.local import LocalModel

    def full(*arguments):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(LocalModel, "draw", full)
    words = ["eval", base["student.path"], "--prompts", base["data.prompts"]]
    returned = main([*words, "--verifier", "numeric", "--max-new-tokens", "4"])
    refused(capsys, 5, ["Lower --max-new-tokens."], returned)


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
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"state saved; continue with tutelage train -c {base['run.dir']}" in err
    assert "--resume" in err
    assert "Traceback" not in err
    assert out == ""
    assert list((Path(base["run.dir"]) / "checkpoints").glob("step-*"))


def test_ctrl_c_outside_a_run_promises_nothing(capsys, monkeypatch):
    def press(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("tutelage.cli.plan.run", press)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "tutelage: interrupted\n"


def test_json_goes_to_stdout_alone(base, capsys):
    assert train(base, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["step"] == 1
    assert summary["reverse_kl_after"] > 0
