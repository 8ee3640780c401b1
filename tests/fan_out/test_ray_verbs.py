"""Verbs that fan out: two workers give what this process gives, to the bit."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from helpers import read_jsonl
from tutelage import align, check, cold_start
from tutelage.cli import main
from tutelage.config import parse_config
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path

RAY = {"type": "ray", "workers": 2}


@pytest.fixture
def tree(tmp_path):
    """Settings of the embedded pair, in batches so small that there are many."""
    rows = [
        {"id": p.id, "messages": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(32, seed=3)
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "student": {"path": str(model_path("student"))},
        "teacher": {"path": str(model_path("compatible"))},
        "data": {"prompts": str(prompts), "held_out": 8, "verifier": VERIFIER.model_dump()},
        "rollout": {"max_new_tokens": 28, "batch_size": 16, "prompts_per_step": 8},
        "align": {"questions": 4, "spines": 2, "samples": 6, "budget": 3000, "rollouts": 4},
        "check": {"samples": 2, "budget": 1500, "continued": 4, "continuations": 2},
        "cold_start": {"check": False, "steps": 2, "batch_size": 4, "rollouts": 2},
    }


def on_ray(tree, **sections):
    return parse_config({**tree, **sections, "engine": RAY})


def kill_a_worker(dice):
    """SIGKILL to one of Ray's workers."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::Worker")
    ]
    os.kill(dice.choice(found).pid, signal.SIGKILL)


@pytest.mark.usefixtures("ray_here")
def test_align_on_two_workers_is_align_here(tree, tmp_path):
    here = align(parse_config(tree), tmp_path / "here")
    there = align(on_ray(tree), tmp_path / "there")
    assert there.to_dict() == here.to_dict()
    for name in ("alignment.json", "tokens.jsonl", "reliability.json"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    lines = [
        (tmp_path / side / "rollouts.jsonl").read_text().splitlines() for side in ("here", "there")
    ]
    assert sorted(lines[0]) == sorted(lines[1])


@pytest.mark.usefixtures("ray_here")
def test_cold_start_on_two_workers_is_cold_start_here(tree, tmp_path):
    here = cold_start(parse_config(tree), tmp_path / "here")
    there = cold_start(on_ray(tree), tmp_path / "there")
    assert there.answers == here.answers
    assert there.imitation["validation"] == here.imitation["validation"]
    weights = [s.student / "model.safetensors" for s in (here, there)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.usefixtures("ray_here")
def test_check_on_two_workers_is_check_here(tree):
    here, there = (c.to_dict() for c in (check(parse_config(tree)), check(on_ray(tree))))
    for found in (here, there):
        del found["seconds"]
    assert there == here


@pytest.mark.usefixtures("ray_here")
def test_evaluation_on_two_workers_is_evaluation_here(tree, tmp_path, capsys):
    command = [
        "eval", tree["teacher"]["path"], "--prompts", tree["data"]["prompts"], "--verifier",
        f"pattern:{VERIFIER.pattern}", "--max-new-tokens", "28", "--samples", "12", "--json",
    ]  # fmt: skip
    told = []
    for engine in ("local", "ray"):
        output = tmp_path / f"{engine}.jsonl"
        assert main([*command, "--engine", engine, "--output", str(output)]) == 0
        told.append((json.loads(capsys.readouterr().out), output.read_text()))
    assert told[0] == told[1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.usefixtures("ray_here")
def test_two_thousand_units_with_workers_killed_at_random_are_counted_once_each(tree, tmp_path):
    tree["rollout"]["batch_size"] = 4  # every branch is a batch
    tree["align"] |= {"questions": 32, "spines": 3, "budget": 85_000, "floor": 4, "cap": 4}
    here = align(parse_config(tree), tmp_path / "here")
    dice = random.Random(1)
    due, notes, kills = sorted(dice.sample(range(50, 1900), 6)), [], []

    def watch(record):
        if record["kind"] == "note":
            notes.append(record["text"])
        elif record["kind"] == "progress" and due and record["done"] >= due[0]:
            kill_a_worker(dice)
            kills.append(due.pop(0))

    there = align(on_ray(tree), tmp_path / "there", observer=watch)
    assert len(kills) == 6
    assert len(notes) >= 5
    units = [record["unit"] for record in read_jsonl(tmp_path / "there" / "rollouts.jsonl")]
    assert len(units) == len(set(units)) >= 2000
    assert there.to_dict() == here.to_dict()
    print(f"{len(units)} units, {len(kills)} kills, {len(notes)} deaths noticed")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(mark):
    """Processes that were started with this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append((int(folder.name), (folder / "cmdline").read_bytes()))
        except OSError:
            continue
    return found


def test_sigterm_ends_with_75_keeps_the_ledger_and_leaves_no_process(tree, tmp_path):
    tree["align"] |= {"questions": 16, "budget": 20_000}
    file, out, mark = tmp_path / "run.yaml", tmp_path / "out", f"{os.getpid()}-{time.time()}"
    file.write_text(json.dumps(tree))
    command = [sys.executable, "-m", "tutelage", "align", "-c", str(file), "-o", str(out), "--json"]
    job = subprocess.Popen(
        [*command, "--engine", "ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TEST_MARK": mark},
    )
    ledger = out / "rollouts.jsonl"
    while not (ledger.exists() and ledger.stat().st_size):
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGTERM)
    printed, told = job.communicate(timeout=60)
    assert job.returncode == 75, told
    assert "stopped by SIGTERM; every finished rollout is kept" in told
    assert printed == ""
    deadline = time.monotonic() + 20
    while (left := started(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    units = [record["unit"] for record in read_jsonl(ledger)]
    assert len(units) == len(set(units)) > 0
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)  # and here now
    assert again.returncode == 0, again.stderr
    after = [record["unit"] for record in read_jsonl(ledger)]
    assert after[: len(units)] == units
    assert len(after) == len(set(after)) > len(units)


LOSES_A_WORKER = """
import sys, time, ray_units
from tutelage.config import RayEngine, Resources
from tutelage.scale.ray import RayWorkers
from tutelage.scale.units import Job

say = lambda text: print(text, file=sys.stderr)
with RayWorkers(RayEngine(workers=1), Resources(), say) as map_units:
    job = Job(prepare=ray_units.load, work=ray_units.dies_once)
    print(*map_units(job, {"one": sys.argv[1]}))
    time.sleep(3)  # what Ray has to say of it comes later
"""


def test_a_death_is_told_on_stderr_and_nothing_of_ray_s_comes_to_stdout(tmp_path):
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", LOSES_A_WORKER, str(tmp_path / "asked")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
    )
    assert done.returncode == 0, done.stderr
    assert "another one takes its place" in done.stderr
    assert done.stdout == "('one', 'done')\n"


@pytest.fixture
def cluster():
    """What a cluster of its own, started by hand and with a token, is reached by: two addresses
    and the environment."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # Ray's sockets need a short path
    ports = {flag: free_port() for flag in ("--port", "--ray-client-server-port")}
    keys = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(32).hex()}
    words = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus", 3]
    words += ["--include-dashboard=false", "--disable-usage-stats", "--temp-dir", folder]
    words += [word for pair in ports.items() for word in pair]
    with (folder / "told").open("w") as stream:
        head = subprocess.Popen(
            list(map(str, words)),
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **keys, "RAY_worker_niceness": "0"},
        )
    try:
        until = time.monotonic() + 120
        while "will now block" not in (told := (folder / "told").read_text()):
            assert head.poll() is None, told
            assert time.monotonic() < until, told
            time.sleep(0.5)
        host = re.search(r"Local node IP: (\S+)", told)[1]
        there, client = (f"{host}:{port}" for port in ports.values())
        yield (there, f"ray://{client}"), keys
    finally:
        family = [head, *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_at_its_address_gives_what_is_given_here(tree, tmp_path, cluster):
    addresses, keys = cluster
    bare = {name: value for name, value in os.environ.items() if name not in keys}
    words = [sys.executable, "-m", "tutelage", "eval", tree["teacher"]["path"], "--prompts"]
    words += [tree["data"]["prompts"], "--verifier", f"pattern:{VERIFIER.pattern}"]
    words += ["--max-new-tokens", "28", "--samples", "4", "--output"]

    def run(name, *flags, environment):
        done = subprocess.run(
            [*words, tmp_path / name, *flags], capture_output=True, text=True, env=environment
        )
        return done.returncode, done.stderr

    assert run("here", environment=bare)[0] == 0
    for place, address in enumerate(addresses):
        flags = ("--engine", "ray", "--address", address)
        code, told = run(f"there-{place}", *flags, environment={**bare, **keys})
        assert code == 0, told
        assert (tmp_path / f"there-{place}").read_bytes() == (tmp_path / "here").read_bytes()
    code, told = run("without", "--engine", "ray", "--address", addresses[0], environment=bare)
    assert code == 6, told
    assert "RAY_AUTH_MODE=token" in told


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--gpus", "1"], 5, "2 workers with 1 GPU each need 2, and this machine has 0"),
        (["--address", "127.0.0.1:1"], 6, "Ray cannot be reached at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_had_ends_with_its_exit_code(tree, flags, code, told):
    command = ["eval", tree["student"]["path"], "--prompts", tree["data"]["prompts"]]
    command += ["--verifier", "exact", "--max-new-tokens", "28", "--engine", "ray"]
    done = subprocess.run(
        [sys.executable, "-m", "tutelage", *command, *flags],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
