"""Processes that fail on purpose, and the run they belong to."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import tiny_run
from tutelage.config import dump_config

DRIVER = Path(__file__).parent / "zygote.py"


class Zygote:
    """Starts `tutelage` words in a process of their own, one at a time."""

    def __init__(self, folder):
        self.output = folder / "output.txt"
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, *words, faults=()):
        self.output.write_text("")
        job = {
            "words": [str(word) for word in words],
            "output": str(self.output),
            "folder": str(self.folder),
            "faults": list(faults),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        """Exit status, that of a signal below 0, and what was printed."""
        status = int(self.process.stdout.readline())
        self.ended = time.monotonic()
        return status, self.output.read_text()

    @property
    def seconds_from_signal_to_end(self):
        return self.ended - float(Path(f"{self.output}.signalled").read_text())

    def run(self, *words, faults=()):
        self.start(*words, faults=faults)
        return self.wait()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    with made.process:  # closes its pipes, at which it ends
        pass


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    return tiny_run(tmp_path, *gpt2_pair, lr=3e-3)


@pytest.fixture
def written(settings, tmp_path):
    """The settings as a YAML file, changed as `settings` changes them."""

    def write(name="run.yaml", **changes):
        path = tmp_path / name
        path.write_text(dump_config(settings(**changes)))
        return path

    return write
