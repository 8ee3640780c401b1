"""plan, eval, report and help as a user calls them."""

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tutelage
from helpers import read_jsonl, sums, write_jsonl
from tutelage.cli import VERBS, main
from tutelage.cli.arguments import SETTINGS_HELP, write_settings_help
from tutelage.config import config_keys, dump_config, load_config, parse_config


@pytest.fixture
def run_yaml(gpt2_pair, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(30))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"student: {{path: {gpt2_pair[0]}}}\nteacher: {{path: {gpt2_pair[1]}}}\n"
        f"data: {{prompts: {prompts}, held_out: 4, verifier: numeric}}\n"
        "rollout: {prompts_per_step: 4, max_new_tokens: 6}\n"
        f"run: {{dir: {tmp_path / 'run'}, steps: 2}}\n"
    )
    return path


def test_plan_counts_parameters_bytes_and_tokens(run_yaml, capsys, gpt2_pair):
    from transformers import AutoModelForCausalLM

    assert main(["plan", "-c", str(run_yaml), "--rollout.group_size", "3", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    counted = AutoModelForCausalLM.from_pretrained(gpt2_pair[0]).num_parameters()
    assert plan["student_parameters"] == counted
    assert plan["optimizer_bytes"] == 8 * counted
    assert plan["tokens"] == 4 * 3 * 6 * 2
    assert plan["config"]["rollout"]["group_size"] == 3
    assert main(["plan", "-c", str(run_yaml)]) == 0
    assert "student parameters" in capsys.readouterr().out


def test_plan_counts_weights_alone_and_not_what_a_checkpoint_keeps_beside_them(run_yaml, capsys):
    assert main(["train", "-c", str(run_yaml)]) == 0
    config = load_config(run_yaml)
    counts = []
    for path in (config.student.path, f"{config.run.dir}/checkpoints/step-2"):
        capsys.readouterr()
        assert main(["plan", "-c", str(run_yaml), "--student.path", path, "--json"]) == 0
        counts.append(json.loads(capsys.readouterr().out)["student_parameters"])
    assert counts[0] == counts[1]


def test_plan_holds_the_logits_of_one_chunk(run_yaml):
    from tutelage.ops.projection import chunk_rows
    from tutelage.planning import CHUNK_ELEMENTS, CHUNK_ELEMENTS_ELSEWHERE, plan

    for vocabulary in (100, 32_000, 151_936, 10**7):
        assert chunk_rows(vocabulary, "cpu") == max(16, CHUNK_ELEMENTS["cpu"] // vocabulary)
        assert chunk_rows(vocabulary, "cuda") == max(16, CHUNK_ELEMENTS_ELSEWHERE // vocabulary)
    small = plan(load_config(run_yaml))
    sizes = ["--rollout.prompts_per_step", "4096", "--optimizer.micro_batch_size", "4096"]
    large = plan(load_config(run_yaml, [*sizes, "--rollout.max_new_tokens", "4000"]))
    assert small.hidden_bytes == 4 * (4 * 6) * (2 * 16 + 24)
    assert large.hidden_bytes > 100_000 * small.hidden_bytes
    assert small.logits_bytes < large.logits_bytes < 10 * 4 * CHUNK_ELEMENTS_ELSEWHERE


def test_plan_reads_the_text_part_of_a_model_of_several_modalities(gpt2_pair, tmp_path):
    from tutelage.models.checkpoints import open_folder

    shutil.copytree(gpt2_pair[0], tmp_path / "both")
    text = {"vocab_size": 77, "hidden_size": 5}
    (tmp_path / "both" / "config.json").write_text(json.dumps({"text_config": text}))
    folder = open_folder(str(tmp_path / "both"), "student")
    assert (folder.vocabulary, folder.width) == (77, 5)


def test_plan_never_imports_torch(run_yaml):
    code = (
        "import sys; from tutelage.cli import main; "
        f"main(['plan', '-c', {str(run_yaml)!r}]); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def _processor_seconds() -> float:
    """Of all finished children: unlike the clock, the same on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_instant_and_goes_to_stdout(verb):
    words = [sys.executable, "-m", "tutelage", *([verb] if verb else []), "--help"]
    times = []
    for _ in range(3):
        started = _processor_seconds()
        result = subprocess.run(words, capture_output=True, text=True)
        times.append(_processor_seconds() - started)
        assert result.returncode == 0
        assert "usage" in result.stdout
        assert result.stderr == ""
    assert min(times) < 0.6


def test_settings_of_the_help_pages_are_those_of_the_config():
    """`make settings-help` writes them anew."""
    assert SETTINGS_HELP.read_text(encoding="utf-8") == write_settings_help()


def test_train_help_names_every_setting():
    result = subprocess.run(
        [sys.executable, "-m", "tutelage", "train", "--help"], capture_output=True, text=True
    )
    page = result.stdout.replace(".NAME", "")
    named = set(re.findall(r"^  --(\S+)  ", page, re.M))
    told_elsewhere = {flag.removesuffix("*") for flag in named if flag.endswith(".*")}
    for key in config_keys():
        assert key.removesuffix(".type") in named or key.startswith(tuple(told_elsewhere)), key
    assert {f"{flag}*" for flag in told_elsewhere} < named
    for place in set(re.findall(r"As --(\S+?)\.\*", " ".join(page.split()))):
        assert place in ("student", "student.server", "objective", "engine.student")
    assert len(page.splitlines()) < 390
    undocumented = [key for key, text in config_keys().items() if not text]
    assert undocumented == [k for k in undocumented if k.endswith(".type")]


def test_flags_win_over_the_file_and_the_resolved_config_reads_back(run_yaml):
    config = load_config(run_yaml, ["--optimizer.lr=2e-5", "--objective", "full"])
    assert config.optimizer.lr == 2e-5
    assert config.objective.type == "full"
    for text in (r"#(\d)$", r"Answer # (\d)"):  # no comments
        flags = ["--data.verifier.type", "pattern", "--data.verifier.pattern", text]
        assert load_config(run_yaml, flags).data.verifier.pattern == text
    import yaml

    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_eval_writes_every_question_and_agrees_with_its_samples(run_yaml, capsys, tmp_path):
    config = load_config(run_yaml)
    output = tmp_path / "questions.jsonl"
    words = ["eval", config.student.path, "--prompts", config.data.prompts, "--verifier", "numeric"]
    words += ["--samples", "4", "--k", "1", "4", "--max-new-tokens", "6", "--output", str(output)]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    questions = read_jsonl(output)
    assert len(questions) == 30
    means = [sum(s["reward"] for s in q["samples"]) / 4 for q in questions]
    assert record["accuracy/avg@4"] == pytest.approx(sum(means) / 30)
    assert record["accuracy/pass@1"] == pytest.approx(record["accuracy/avg@4"])
    solved = [any(s["reward"] for s in q["samples"]) for q in questions]
    assert record["accuracy/pass@4"] == pytest.approx(sum(solved) / 30)
    assert record["accuracy/pass@4/low"] <= record["accuracy/pass@4"]
    assert record["accuracy/pass@4"] <= record["accuracy/pass@4/high"]


def test_eval_takes_a_pattern(run_yaml, capsys):
    config = load_config(run_yaml)
    words = ["eval", config.student.path, "--prompts", config.data.prompts, "--samples", "1"]
    assert main([*words, "--verifier", r"pattern:(\d+)", "--max-new-tokens", "3"]) == 0
    assert "accuracy/avg@1" in capsys.readouterr().out


@pytest.mark.parametrize("verifier", ["math", "function:{folder}/judge.py:judge"])
def test_eval_takes_mathematics_and_a_function(run_yaml, capsys, tmp_path, verifier):
    (tmp_path / "judge.py").write_text(
        "def judge(prompt, text): return None if prompt.id == 'sum-0' else prompt.answer in text"
    )
    config = load_config(run_yaml)
    words = ["eval", config.student.path, "--prompts", config.data.prompts, "--samples", "2"]
    words += ["--verifier", verifier.format(folder=tmp_path), "--max-new-tokens", "3", "--json"]
    assert main(words) == 0
    record = json.loads(capsys.readouterr().out)
    unjudged = verifier != "math"
    assert record["accuracy/questions"] == 30 - unjudged
    assert record.get("accuracy/unknown", 0) == 2 * unjudged


def test_report_overlays_runs(run_yaml, capsys, tmp_path):
    for name in ("one", "two"):
        assert main(["train", "-c", str(run_yaml), "--run.dir", str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "one" / "report.html"
    page = path.read_text()
    assert '"run":"one"' in page
    assert '"run":"two"' in page


def test_report_of_a_run_that_measured_little(run_yaml, capsys, tmp_path):
    words = ["train", "-c", str(run_yaml), "--run.dir"]
    for name in ("early", "undefined"):
        assert main([*words, str(tmp_path / name)]) == 0
    (tmp_path / "early" / "metrics.jsonl").unlink()
    metrics = tmp_path / "undefined" / "metrics.jsonl"
    wanted = {"kind", "step", "accuracy", "accuracy/low", "accuracy/high", "accuracy/questions"}
    records = [{k: v for k, v in r.items() if k in wanted} for r in read_jsonl(metrics)]
    write_jsonl(metrics, [{**r, "accuracy": 0.0} if "accuracy" in r else r for r in records])
    capsys.readouterr()
    assert main(["report", str(tmp_path / "early"), str(tmp_path / "undefined")]) == 0
    page = (tmp_path / "early" / "report.html").read_text()
    assert "metrics.jsonl is not there" in page
    assert "0.0 % → 0.0 %" in page  # a measured zero
    assert "<dt>reverse KL, nats per token</dt><dd>not measured</dd>" in page


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_report_of_a_damaged_run_names_the_file_and_shows_the_rest(run_yaml, capsys, name):
    assert main(["train", "-c", str(run_yaml)]) == 0
    run = Path(load_config(run_yaml).run.dir)
    (run / name).write_text("a: [\n")
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert f"{name} is damaged" in page
    assert "Divergence from the teacher" in page


def test_report_of_something_else_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err


def test_every_verb_is_a_function_of_the_same_name():
    for verb in VERBS:
        assert verb in ("lab", "rescue", "export") or callable(getattr(tutelage, verb))
    assert sorted(tutelage.__all__) == tutelage.__all__
    with pytest.raises(AttributeError):
        _ = tutelage.trian


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, tutelage; sys.exit(any(m in sys.modules for m in ('torch', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_reader_that_closes_the_pipe_is_no_error(run_yaml):
    command = f"{sys.executable} -m tutelage train --help | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
