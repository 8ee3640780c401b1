"""tutelage doctor: what is wrong with the machine is exit 5, with a server exit 6."""

import json
import shutil
from collections import namedtuple

import pytest

from tutelage.cli import main
from tutelage.config import dump_config
from tutelage.diagnose import machine


@pytest.fixture
def run_yaml(settings, tmp_path):
    def write(**sections):
        path = tmp_path / "run.yaml"
        path.write_text(dump_config(settings(**sections)))
        return ["doctor", "-c", str(path)]

    return write


def findings(capsys):
    return {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}


def test_this_machine_is_fit_and_every_part_is_told(run_yaml, capsys):
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
    assert main([*run_yaml(), "--json"]) == 0
    told = findings(capsys)
    assert told["python"]["status"] == "ok"
    assert "GiB" in told["memory of the run"]["found"]
    assert told["extra verify"]["status"] in ("ok", "note")
    assert not [name for name in told if "server" in name]


def test_a_version_below_its_floor_is_a_fault_of_the_environment(monkeypatch, capsys):
    found = machine.version
    monkeypatch.setattr(machine, "version", lambda p: "2.9.1" if p == "torch" else found(p))
    assert main(["doctor"]) == 5
    out, err = capsys.readouterr()
    assert "pip install 'torch>=2.10'" in out
    assert "CVE-2026-24747" in err


def test_too_little_memory_or_disk_is_a_fault_before_anything_starts(run_yaml, monkeypatch, capsys):
    monkeypatch.setattr(machine, "memory", lambda: (1000, 500))
    assert main([*run_yaml(), "--json"]) == 5
    assert findings(capsys)["memory of the run"]["status"] == "fault"
    monkeypatch.undo()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(1000))
    assert main([*run_yaml(), "--json"]) == 5
    assert findings(capsys)["disk of the run"]["status"] == "fault"


def test_a_missing_model_is_told(run_yaml, capsys):
    assert main([*run_yaml(student={"path": "nowhere"}), "--json"]) == 5
    assert "no directory nowhere" in findings(capsys)["models"]["found"]


def test_servers_are_probed_for_what_the_run_asks_of_them(
    run_yaml, serve, gpt2_pair, tmp_path, capsys
):
    teacher = serve(gpt2_pair[1], max_logprobs=20)
    copy = shutil.copytree(gpt2_pair[0], tmp_path / "copy")
    student = serve(copy, dev_mode=False)
    sections = {
        "teacher": {"path": str(gpt2_pair[1]), "server": {"url": teacher.url}},
        "student": {
            "path": str(gpt2_pair[0]),
            "server": {"url": student.url, "weights": str(copy)},
        },
    }
    assert main([*run_yaml(**sections, objective={"type": "full"}), "--json"]) == 6
    told = findings(capsys)
    assert told["teacher's server: log-probabilities"]["found"] == "20 a token at most"
    assert "--max-logprobs 312" in told["teacher's server: this objective"]["found"]
    assert "VLLM_SERVER_DEV_MODE=1" in told["student's server: this run"]["found"]
    student.dev_mode = True
    good = run_yaml(**sections, objective={"type": "sampled"})
    assert main([*good, "--json"]) == 0
    told = findings(capsys)
    assert told["teacher's server: this objective"]["found"].startswith("served")
    assert told["student's server: this run"]["found"] == "weights can be synced"


def test_an_old_vllm_and_a_dead_server_are_faults_of_the_server(run_yaml, serve, gpt2_pair, capsys):
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    server = {"url": fake.url, "retries": 0}
    words = run_yaml(teacher={"path": str(gpt2_pair[1]), "server": server})
    fake.faults["/version"] = [lambda good: (200, {}, {"version": "0.29.4"})]
    assert main([*words, "--json"]) == 6
    assert "CVE-2026-105754" in findings(capsys)["teacher's server: vllm"]["found"]
    fake.close()
    assert main(words) == 6
    assert "ConnectError" in capsys.readouterr().err


def test_a_key_variable_that_is_not_set_is_a_fault_of_the_environment(
    run_yaml, serve, gpt2_pair, capsys
):
    server = {"url": serve(gpt2_pair[1]).url, "key_env": "NO_SUCH_KEY"}
    assert main(run_yaml(teacher={"path": str(gpt2_pair[1]), "server": server})) == 5
    assert "NO_SUCH_KEY" in capsys.readouterr().err
