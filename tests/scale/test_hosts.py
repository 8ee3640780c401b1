"""Two hosts, each a network namespace, train through torchrun's rendezvous until one is cut off."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import read_jsonl

TORCHRUN = Path(sys.executable).with_name("torchrun")
WITHIN_S = 60


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Names of two namespaces with a cable between them; their addresses end in 1 and 2."""
    names = [f"tutelage-{os.getpid()}-{side}" for side in "ab"]
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "v0", "netns", names[0], "type", "veth", "peer", "v0", "netns", names[1])
        for last, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{last}/24", "dev", "v0")
            ip("-n", name, "link", "set", "v0", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    else:
        yield names
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def start(name, last, path, output):
    words = [
        *("ip", "netns", "exec", name, TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "two"),
        *("--rdzv-conf", f"is_host={int(last == 1)},join_timeout=60"),
        *("--local-addr", f"10.77.0.{last}", "--shutdown-timeout", "5"),
        *("-m", "tutelage", "train", "-c", path),
    ]
    with output.open("w") as stream:
        return subprocess.Popen(
            list(map(str, words)),
            env={**os.environ, "GLOO_SOCKET_IFNAME": "v0", "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def until(true, seconds):
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def test_two_hosts_train_together_and_both_say_so_when_one_is_cut_off(hosts, written, tmp_path):
    path = written(
        distributed={"type": "ddp", "silence_s": 20},
        run={"steps": 5000, "save_every": 2},
        evaluation={"every": 0},
    )
    metrics = path.parent / "run" / "metrics.jsonl"
    outputs = [tmp_path / f"{name}.txt" for name in hosts]
    running = [
        start(name, last, path, output)
        for last, (name, output) in enumerate(zip(hosts, outputs, strict=True), 1)
    ]
    try:
        trained = until(lambda: metrics.exists() and len(read_jsonl(metrics)) > 4, 150)
        assert trained, "\n".join(output.read_text() for output in outputs)
        ip("-n", hosts[1], "link", "set", "v0", "down")
        cut = time.monotonic()
        told = until(
            lambda: all("tutelage: " in output.read_text() for output in outputs), WITHIN_S
        )
        assert told, "\n".join(output.read_text() for output in outputs)
        assert time.monotonic() - cut < WITHIN_S
        here, there = (output.read_text() for output in outputs)
        assert "rank 1 has not been heard of for 20 s" in here
        assert "the host of the first rank has not answered for 20 s" in there
        assert "--resume" in here
        assert "--resume" in there
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
