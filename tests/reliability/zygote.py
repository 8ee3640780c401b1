"""Runs the command line in forked processes that fail on purpose.

A process that has imported everything reads jobs, a JSON line each, from stdin, and answers with
the pid of the process that does it and, when that has ended, with its exit status. So a run
that is killed twenty times is not imported twenty times.

    {"words": [...], "output": PATH, "folder": PATH, "faults": [{...}], "env": {...}}

A fault happens at the `call`-th call (from 1) of `where`, "module:name" or "module:class.name":

    {"where": "tutelage.runs.checkpoints:_sync", "call": 2, "do": "SIGKILL"}

`do` is a signal to itself, the name of an exception of `FAULTS`, or "wait SECONDS". `after` lets
the call end first.
"""

import errno
import importlib
import json
import os
import signal
import sys
import time

import torch

from tutelage.cli import main

FAULTS = {
    "disk full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "out of memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "host memory": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
}


def plant(fault, said):
    module, _, path = fault["where"].partition(":")
    *outer, name = path.split(".")
    owner = importlib.import_module(module)
    for part in outer:
        owner = getattr(owner, part)
    whole, calls = getattr(owner, name), 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        hit = calls == fault["call"]
        if hit and not fault.get("after"):
            happen(fault["do"], said)
        result = whole(*args, **kwargs)
        if hit and fault.get("after"):
            happen(fault["do"], said)
        return result

    setattr(owner, name, wrapped)


def happen(what, said):
    if what in FAULTS:
        raise FAULTS[what]()
    if what.startswith("wait "):
        return time.sleep(float(what.removeprefix("wait ")))
    with open(said, "w") as stream:
        stream.write(str(time.monotonic()))
    os.kill(os.getpid(), getattr(signal, what))


def serve():
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(job["output"], "a") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            os.chdir(job["folder"])
            os.environ.update(job["env"])
            for fault in job["faults"]:
                plant(fault, job["output"] + ".signalled")
            sys.exit(main(job["words"]))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
