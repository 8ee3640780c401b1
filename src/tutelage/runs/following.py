"""Reading a file of JSON lines while somebody writes it."""

import json
import os
from pathlib import Path
from typing import IO, Any


class Tail:
    """The records of a file that grows, each given once.

    What is half written waits for its end. A file that was replaced, as a resumed run does, or
    that became shorter, is read again from its beginning: whoever adds up records has to tell a
    record of an earlier step from one more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        """Whole lines that were no JSON object, and were passed over."""
        self._offset, self._file = 0, 0

    def read(self) -> list[dict[str, Any]]:
        """Records whose lines were finished since the last call; none where there is no file."""
        try:
            with self.path.open("rb") as stream:
                return self._new_records(stream)
        except OSError:
            return []

    def _new_records(self, stream: IO[bytes]) -> list[dict[str, Any]]:
        found = os.fstat(stream.fileno())
        if found.st_ino != self._file or found.st_size < self._offset:
            self._offset, self._file = 0, found.st_ino
        if found.st_size == self._offset:
            return []
        stream.seek(self._offset)
        records = []
        for line in stream:
            if not line.endswith(b"\n"):
                break
            self._offset += len(line)
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                records.append(record)
            else:
                self.damaged += 1
        return records
