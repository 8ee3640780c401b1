"""Processes that have imported everything, and start the command line without delay."""

import json
import subprocess
import sys
import time
from pathlib import Path

DRIVER = Path(__file__).parent / "reliability" / "zygote.py"


class Zygote:
    """Starts `tutelage` words in a process of their own, one at a time."""

    def __init__(self, folder):
        self.output = folder / "output.txt"
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, *words, faults=(), env=None):
        self.output.write_text("")
        job = {
            "words": [str(word) for word in words],
            "output": str(self.output),
            "folder": str(self.folder),
            "faults": list(faults),
            "env": env or {},
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
