"""The inside of the process that mirrors a run: it follows metrics.jsonl into one tracker.

The file is the queue, so nothing is handed over step by step and the run waits for nobody. On
stdout it says, a line of JSON each, what it is at and how many records it has mirrored. It goes
on until stdin is closed, by the run or by the run's death, reads what is left, and ends; a
tracker that does not let it end in time is killed with it.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tutelage.runs.directory import replace_text, to_json
from tutelage.runs.following import Tail
from tutelage.secrets import redacted
from tutelage.terminal import one_line
from tutelage.tracking.writers import WRITERS, Writer, numbers_of

_POLL_S = 0.5


def main() -> None:
    """Mirror what the first line of stdin orders."""
    os.nice(5)  # one that computes without end leaves the processor to the run
    words = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a tracker prints must not be taken for a word
    sys.stdout = sys.stderr
    orders = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    order = json.loads(orders.readline())
    ending = threading.Event()
    threading.Thread(target=_end_in_time, args=(orders, ending, order), daemon=True).start()
    phase = "import"
    try:
        _say(words, phase=phase)
        opened = WRITERS[order["tracker"]["type"]](order, order["config"])
        phase = "init"
        _say(words, phase=phase)
        writer = opened()
        phase = "log"
        _say(words, phase=phase)
        _mirror(order, writer, ending, words)
        phase = "finish"
        _say(words, phase=phase)
        writer.close()
        _say(words, done=True)
    except BaseException as error:
        fault = one_line(f"{type(error).__name__}: {error}")
        _say(words, phase=phase, fault=redacted(fault))
    words.close()
    _vanish()  # what a tracker does at exit has no deadline of its own


def _mirror(order: Mapping[str, Any], writer: Writer, ending: threading.Event, words: Any) -> None:
    """Follow the file until the run has ended and everything was read."""
    tail, state = Tail(Path(order["run"]) / "metrics.jsonl"), Path(order["state"])
    last: dict[str, int] = dict(order["last"])
    count = 0
    while True:
        is_over = ending.is_set()
        records = tail.read()
        for place, record in enumerate(records, 1):
            kind, step = record.get("kind"), record.get("step")
            # A resumed run writes again what was mirrored before it stopped.
            if isinstance(step, int) and isinstance(kind, str) and step > last.get(kind, -1):
                writer.log(step, numbers_of(record))
                last[kind] = step
            count += 1
            if place % 100 == 0:
                _say(words, mirrored=count)
        if records:
            writer.flush()
            replace_text(state, to_json({"id": order["id"], "name": order["name"], "last": last}))
            _say(words, mirrored=count)
        if is_over:
            return
        ending.wait(_POLL_S)


def _end_in_time(orders: IO[bytes], ending: threading.Event, order: Mapping[str, Any]) -> None:
    orders.read()  # until the run closes it or dies
    ending.set()
    time.sleep(order["wait_s"] + 1)
    _vanish()


def _vanish() -> None:
    """End this process and those that the tracker started."""
    os.killpg(0, signal.SIGKILL)


def _say(words: IO[str], **what: Any) -> None:
    try:
        words.write(json.dumps(what) + "\n")
        words.flush()
    except OSError:  # the run died; what is left is mirrored all the same
        pass


if __name__ == "__main__":
    main()
