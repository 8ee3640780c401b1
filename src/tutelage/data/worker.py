"""The inside of a process that works for us; the pool in `worker_pool.py` starts and kills it.

It reads jobs from stdin and answers each with a word of JSON on stdout: what the job gives, null
for unknown, or a fault. It imports nothing heavy, so it is quick to replace.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

READY = b'"ready"'

Judge = Callable[[bytes], Any]
"""What becomes of a job: any value of JSON but an object."""


class Refused(Exception):
    """What the pool is to tell the user: the work, or one job, cannot be done."""


def serve(prepare: Callable[[], Judge]) -> None:
    """Answer jobs until stdin is closed.

    Args:
        prepare: imports and compiles everything, before any clock runs, and gives the function
            that does a job. Both may raise `Refused`.
    """
    jobs = Connection(os.dup(0), writable=False)
    words = Connection(os.dup(1), readable=False)
    # Whatever a job prints must not be taken for a word, nor jobs for its input.
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # line by line, so that a process that is killed has told
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        judge = prepare()
    except Refused as refusal:
        words.send_bytes(_fault(refusal))
        return
    deadline_s = float(sys.argv[1])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process
    words.send_bytes(READY)
    while True:
        try:
            job = jobs.recv_bytes()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, deadline_s)
        try:
            word = json.dumps(judge(job)).encode()
        except Refused as refusal:
            word = _fault(refusal)
        signal.setitimer(signal.ITIMER_PROF, 0)
        words.send_bytes(word)


def limit_memory(size: int) -> None:
    """Let this process hold at most so many bytes of its own; more is a `MemoryError`."""
    with contextlib.suppress(OSError, ValueError):  # a system may refuse; the deadline holds
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _fault(refusal: Refused) -> bytes:
    return json.dumps({"fault": str(refusal)}).encode()
