"""Units that workers of other processes do, small enough to do hundreds of them."""

import os
import tempfile
import time
from pathlib import Path


def load() -> int:
    return 2


def load_and_mark(folder: str) -> int:
    """Leaves a file each time it is called."""
    tempfile.mkstemp(dir=folder)
    return 2


def power(held: int, unit: int) -> tuple[int, int]:
    """The unit's power, and who found it."""
    return unit**held, os.getpid()


def takes_a_while(held: int, unit: int) -> int:
    time.sleep(0.1)
    return unit


def deadly(held: int, unit: int) -> int:
    """Ends its process where the unit is 3."""
    if unit == 3:
        os._exit(1)
    return unit


def hangs_once(held: int, marker: str) -> str:
    """Sleeps the first time it is asked."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        time.sleep(600)
    return "done"


def dies_once(held: int, marker: str) -> str:
    """Ends its process the first time it is asked."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os._exit(1)
    return "done"


def refuses(held: int, unit: int) -> int:
    from tutelage.errors import DataError

    raise DataError(f"unit {unit} cannot be read")


def started(folder: str, post) -> str:
    """Leaves a file, which bears this rank's number."""
    tempfile.mkstemp(dir=folder, prefix=os.environ["RANK"])
    return os.environ["RANK"]


def second_fails(folder: str, post) -> None:
    """The second rank fails, and the first one ends because of it, as ranks of a run do."""
    from tutelage.errors import MachineError

    if started(folder, post) == "1":
        raise MachineError("the disk is full; free some space")
    time.sleep(2)
    os._exit(5)


def dies(folder: str, post) -> None:
    started(folder, post)
    os._exit(1)


def has_a_bug(folder: str, post) -> None:
    started(folder, post)
    raise ZeroDivisionError("one by nothing")


def works_until_asked(folder: str, post) -> None:
    """Records something, and saves when it is asked to stop."""
    from tutelage.errors import Stop

    started(folder, post)
    try:
        with post.interrupts.abandoning():
            post.record({"kind": "train", "step": 1})
            time.sleep(60)
    except Stop:
        post.interrupts.heed(" at step 1, state saved")


def hears_of_another(folder: str, post) -> None:
    """Ends as a rank does that learns why another one has ended."""
    from tutelage.ranks.watch import Cause, OtherRankFailed

    started(folder, post)
    raise OtherRankFailed(Cause(1, "here", "here", 5, "rank 2 ended without a word"), told=True)
