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


# Below these a published fault is open (shown with it); one below each, and the floor itself.
VERSIONS = {
    "torch": ("2.9.1", "2.10.0", "CVE-2026-24747"),
    "transformers": ("5.4.9", "5.5.0", "CVE-2026-4372"),
    "jinja2": ("3.1.5", "3.1.6", "CVE-2025-27516"),
    "ray": ("2.51.2", "2.52.0", "CVE-2025-62593"),
    "vllm": ("0.29.9", "0.30.0", "CVE-2026-105754"),
}


def test_there_is_a_floor_for_every_package_with_a_known_fault():
    assert machine.FLOORS.keys() == VERSIONS.keys()


@pytest.mark.parametrize("package", VERSIONS)
def test_each_floor_is_kept(monkeypatch, capsys, package):
    below, floor, fault = VERSIONS[package]
    found = machine.version

    def installed(version):
        return lambda name: version if name == package else found(name)

    monkeypatch.setattr(machine, "version", installed(below))
    assert main(["doctor", "--json"]) == 5
    told = findings(capsys)[package]
    assert told["status"] == "fault"
    assert fault in told["found"]
    monkeypatch.setattr(machine, "version", installed(f"{floor}+local"))
    assert main(["doctor", "--json"]) == 0
    assert findings(capsys)[package]["status"] == "ok"


def test_a_version_that_is_none_is_told_and_no_crash(run_yaml, serve, gpt2_pair, capsys):
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    words = run_yaml(teacher={"path": str(gpt2_pair[1]), "server": {"url": fake.url}})
    fake.faults["/version"] = [lambda good: (200, {}, {"version": "\x1b[2Jlatest"})]
    assert main([*words, "--json"]) == 0
    told = findings(capsys)["teacher's server: vllm"]
    assert told["status"] == "note"
    assert "no version" in told["found"]
    assert "\x1b" not in told["found"]


def test_plain_http_to_another_machine_is_told_by_doctor_and_run(settings, monkeypatch):
    from tutelage.models.served.server import Capabilities, Server
    from tutelage.session import _notes_on_servers

    can = Capabilities(
        version="0.32.0",
        model="served",
        root=None,
        max_model_len=64,
        max_logprobs=20,
        token_ids=False,
        weight_sync=False,
    )
    monkeypatch.setattr(Server, "_choose_model", lambda self: ("served", None, 64))
    monkeypatch.setattr(Server, "capabilities", lambda self: can)
    for url, told in (
        ("http://models.example:8000", True),
        ("https://models.example", False),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]:8000", False),
    ):
        config = settings(teacher={"path": "t", "server": {"url": url}})
        names = [finding.name for finding in machine._servers(config)]
        assert ("teacher's server: plain http" in names) == told, url
        kinds = [note["kind"] for note in _notes_on_servers(config)]
        assert ("plain_http" in kinds) == told, url


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
