"""plan --hosts: what fits, who does what, and scripts that start it."""

import json
import os
import shlex
import stat
import subprocess

import pytest
import yaml

from helpers import sums, write_jsonl
from tutelage.cli import main
from tutelage.config import dump_config, load_config, parse_config
from tutelage.errors import MachineError, UsageError
from tutelage.runs.directory import Run
from tutelage.sizing.cost import Rate, Speeds
from tutelage.sizing.hosts import plan_hosts
from tutelage.sizing.lengths import always
from tutelage.sizing.profiles import Measured, known_hardware, read_profile

H100 = read_profile("h100")
SERVED = {"url": "http://127.0.0.1:8000"}


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(8))

    def make(**sections):
        tree = {
            "student": {"path": str(gpt2_pair[0])},
            "teacher": {"path": str(gpt2_pair[1])},
            "data": {"prompts": str(prompts), "max_prompt_tokens": 20},
            "rollout": {"prompts_per_step": 32, "max_new_tokens": 10},
            "run": {"dir": str(tmp_path / "my run")},
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return parse_config(tree)

    return make


def path_of(config, folder):
    """The settings as a file."""
    (folder / "settings.yaml").write_text(dump_config(config))
    return folder / "settings.yaml"


def words_of(script):
    """The words after `torchrun` in a script."""
    text = script.replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if "torchrun" in line and "srun" in line]
    return shlex.split(line.split("torchrun", 1)[1])


@pytest.mark.parametrize(
    ("hosts", "devices", "served"), [(1, 1, False), (1, 8, False), (4, 8, False), (3, 4, True)]
)
def test_scripts_are_what_their_readers_take(settings, hosts, devices, served, tmp_path):
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.dashboard.modules.job.common import JobSubmitRequest
    from torch.distributed.run import get_args_parser

    config = settings(**({"teacher": {"server": SERVED}} if served else {}))
    found = plan_hosts(config, hosts=hosts, devices_per_host=devices, profile=H100)
    checked = subprocess.run(["bash", "-n"], input=found.sbatch, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert "#SBATCH --signal=TERM@300" in found.sbatch
    cluster = yaml.safe_load(found.ray_cluster)
    assert len(cluster["provider"]["worker_ips"]) == hosts - 1
    validate_config(prepare_config(cluster))
    entry = JobSubmitRequest(**yaml.safe_load(found.ray_job)).entrypoint.split()
    assert entry[:2] == ["tutelage", "train"]
    assert load_config(path_of(config, tmp_path), entry[5:]).engine.workers == found.ranks
    if hosts * devices == 1:
        assert "torchrun --nnodes" not in found.sbatch
        return
    assert found.ranks == (hosts - found.teacher_hosts) * devices
    read = get_args_parser().parse_args(words_of(found.sbatch))
    assert (read.nnodes, read.nproc_per_node) == (str(hosts - served), str(devices))
    assert (read.rdzv_backend, read.module, read.training_script) == ("c10d", True, "tutelage")
    assert read.shutdown_timeout == 120
    rest = read.training_script_args
    assert rest[0] == "train"
    assert rest[rest.index("--distributed") + 1] == "ddp"
    assert "--resume" in rest
    if served:
        assert "vllm serve" in found.sbatch
        assert found.sbatch.count("--teacher.server.url") == 1


STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo host1; else echo "$@" >> "$LOG"; fi',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; "$@"',
    "torchrun": 'cat "$EVENT" >> "$RUN/events.jsonl"; exit "$CODE"',
    "tutelage": 'cat "$EVENT" >> "$RUN/events.jsonl"; exit "$CODE"',
}
ENDS = {
    "preempted": ({"exit": 75}, 1, True),
    "interrupted": ({"exit": 130}, 1, False),
    "guard": ({"exit": 7}, 1, False),
    "bug": ({"exit": 1}, 1, False),
    "finished": (None, 0, False),
    "never began": (None, 1, False),
}


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("end", ENDS)
def test_a_job_is_queued_again_after_exit_75_alone(settings, tmp_path, devices, end):
    """An older sitting that was preempted is no reason."""
    config = settings()
    found = plan_hosts(config, hosts=1, devices_per_host=devices, profile=H100)
    stopped, code, again = ENDS[end]
    run, told = Run(tmp_path / "my run"), Run(tmp_path / "told")
    for folder in (run, told):
        folder.path.mkdir()
    run.log_event("stopped", error="Preempted", exit=75, text="an older one")
    if stopped is not None:
        told.log_event("stopped", error="x", text="y", **stopped)
    (told.path / "events.jsonl").touch()
    for name, body in STUBS.items():
        stub = tmp_path / name
        stub.write_text(f"#!/bin/bash\n{body}\n")
        stub.chmod(stub.stat().st_mode | stat.S_IEXEC)
    own = code if devices > 1 or stopped is None else stopped["exit"]
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "EVENT": str(told.path / "events.jsonl"),
        "RUN": str(run.path),
        "CODE": str(own),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "host1",
    }
    done = subprocess.run(
        ["bash"], input=found.sbatch, text=True, env=environment, capture_output=True
    )
    asked = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    assert asked == ("requeue 17\n" if again else ""), done.stderr
    assert done.returncode == (75 if again else own)


def test_the_student_is_sharded_where_a_device_does_not_hold_it_and_lora_says_why_not(settings):
    config = settings(rollout={"batch_size": 1}, optimizer={"micro_batch_size": 1})
    whole = plan_hosts(config, hosts=1, devices_per_host=4, device_memory_gb=1)
    assert whole.kind == "ddp"
    tight = (whole.memory.most * 0.999) / 0.92 / 1e9
    parts = plan_hosts(config, hosts=1, devices_per_host=4, device_memory_gb=tight)
    assert parts.kind == "fsdp2"
    assert parts.memory.optimizer == pytest.approx(whole.memory.optimizer / 4, abs=1)
    assert parts.memory.whole == whole.memory.student
    with pytest.raises(MachineError, match=r"does not fit.*holds? .*GB") as caught:
        plan_hosts(config, hosts=1, devices_per_host=4, device_memory_gb=tight / 1000)
    assert caught.value.exit_code == 5
    lora = settings(
        student={"lora": {"rank": 2}},
        rollout={"batch_size": 1},
        optimizer={"micro_batch_size": 1},
    )
    with pytest.raises(MachineError, match="fsdp2 shards weights that learn"):
        plan_hosts(lora, hosts=1, devices_per_host=4, device_memory_gb=tight / 1000)


FAULTS = {
    "not dealt": ({}, {"hosts": 3}, UsageError, "--hosts 1, 2, 4"),
    "none": ({}, {"hosts": 0}, UsageError, "at least one host"),
    "served on one host": ({"teacher": {"server": SERVED}}, {"hosts": 1}, UsageError, "--hosts 2"),
    "teacher hosts without a server": (
        {},
        {"hosts": 2, "teacher_hosts": 1},
        UsageError,
        "set teacher.server",
    ),
    "a served student": (
        {"student": {"server": SERVED}},
        {"hosts": 2},
        UsageError,
        "leave student.server out",
    ),
    "a mean beyond the limit": ({}, {"hosts": 1, "mean_tokens": 11}, UsageError, "--mean-tokens"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_is_refused_with_what_would_do(settings, name):
    sections, asked, kind, told = FAULTS[name]
    with pytest.raises(kind, match=told):
        plan_hosts(settings(**sections), **{"devices_per_host": 1, "profile": H100, **asked})


def test_the_memory_of_a_device_must_be_told(settings):
    with pytest.raises(UsageError, match="--device-memory-gb"):
        plan_hosts(settings(), hosts=1)


def test_the_command_prints_all_of_it_and_calls_a_projection_one(settings, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(settings()))
    assert main(["plan", "-c", str(path), "--hosts", "2", "--profile", "h100"]) == 0
    text = capsys.readouterr().out
    for part in ("PROJECTION", "takes most", "#SBATCH", "cluster_name", "entrypoint"):
        assert part in text
    assert main(["plan", "-c", str(path), "--hosts", "2", "--profile", "h100", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["hosts"]
    assert told["projection"] is True
    assert told["step_s"] == pytest.approx(sum(told["phase_s"].values()))
    assert main(["plan", "-c", str(path), "--profile", "h100"]) == 2
    assert "--hosts is missing" in capsys.readouterr().err
    assert main(["plan", "-c", str(path), "--hosts", "1", "--profile", "h1000"]) == 2
    assert "h100" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("name: x\nmemory_gb: -1\nflops: 3\n")
    assert main(["plan", "-c", str(path), "--hosts", "1", "--profile", f"{tmp_path}/bad.yaml"]) == 2
    assert "memory_gb" in capsys.readouterr().err


def test_a_teacher_that_no_host_holds_is_refused(settings, gpt2_pair, tmp_path):
    """Its weights are at a server, so its config alone is here."""
    shape = {**json.loads((gpt2_pair[1] / "config.json").read_text()), "n_embd": 8192}
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(json.dumps({**shape, "n_layer": 80}))
    config = settings(teacher={"path": str(tmp_path / "large"), "server": SERVED})
    asked = {"hosts": 2, "profile": H100}
    assert plan_hosts(config, devices_per_host=8, **asked).teacher_devices > 1
    with pytest.raises(MachineError, match=r"teacher's weights take \d+ GB"):
        plan_hosts(config, devices_per_host=1, **asked)


def test_a_profile_of_other_models_or_without_a_link_is_refused(settings):
    config, rate = settings(), Rate(1e-3, 1e-6)
    names = ("prefill", "decode", "teacher", "student", "head", "look", "optimizer", "record")
    seconds = dict.fromkeys(("rollout_s", "answer_s", "disk_byte_s"), 1e-9)
    measured = Measured(
        name="this machine",
        device="cpu",
        student=config.student.path,
        teacher=config.teacher_model.path,
        speeds=Speeds(**dict.fromkeys(names, rate), **seconds),
        lengths=always(10),
        prompt_tokens=8,
        seconds=1,
    )

    def planned(hosts, **changes):
        known = measured.model_copy(update=changes)
        return plan_hosts(config, hosts=hosts, device_memory_gb=1, profile=known)

    assert planned(1).cost is not None
    with pytest.raises(UsageError, match="was measured with elsewhere and"):
        planned(1, student="elsewhere")
    with pytest.raises(UsageError, match="the profile knows no link"):
        planned(2)


def test_every_profile_that_comes_along_can_be_read_and_no_other(tmp_path):
    for name in known_hardware():
        assert read_profile(name).memory_gb > 0
    with pytest.raises(UsageError, match="cannot read profile"):
        read_profile(tmp_path / "nothing.json")
