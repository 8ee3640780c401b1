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


def refuses(held: int, unit: int) -> int:
    from tutelage.errors import DataError

    raise DataError(f"unit {unit} cannot be read")
