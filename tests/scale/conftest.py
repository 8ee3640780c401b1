"""Two ranks of one run, each in a process that has imported everything before."""

import socket

import pytest

from helpers import tiny_run
from tutelage.config import dump_config
from zygotes import Zygote


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launched(rank, port, size=2):
    """What a launcher sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Pair:
    """Starts the same words as two ranks, and waits for both."""

    def __init__(self, zygotes):
        self.zygotes = zygotes

    def start(self, *words, faults=((), ()), only=(0, 1), more=((), ())):
        port = free_port()
        self.running = [self.zygotes[rank] for rank in only]
        return [
            self.zygotes[rank].start(
                *words, *more[rank], faults=faults[rank], env=launched(rank, port)
            )
            for rank in only
        ]

    def wait(self):
        """Exit status and output of each rank."""
        return [zygote.wait() for zygote in self.running]

    def run(self, *words, **how):
        self.start(*words, **how)
        return self.wait()

    def good(self, *words, **how):
        for status, told in self.run(*words, **how):
            assert status == 0, told


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    made = [Zygote(tmp_path_factory.mktemp(f"rank{rank}")) for rank in range(2)]
    yield Pair(made)
    for zygote in made:
        with zygote.process as process:
            process.kill()  # it waits for work, and a pipe that another process holds would hold it


@pytest.fixture(scope="module")
def written(tmp_path_factory, gpt2_pair):
    """Settings as a YAML file in a folder of their own; the run is in its `run`."""

    def write(**changes):
        folder = tmp_path_factory.mktemp("run")
        changes = {"distributed": {"type": "ddp", "silence_s": 20}, **changes}
        path = folder / "run.yaml"
        path.write_text(dump_config(tiny_run(folder, *gpt2_pair, lr=3e-3)(**changes)))
        return path

    return write
