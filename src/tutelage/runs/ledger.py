"""Units of work done, exactly once each, across kills and restarts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import DataError
from tutelage.runs.directory import append_line, cut_torn_line, read_lines
from tutelage.runs.seals import sealed, unsealed


class Ledger:
    """An append-only file with one JSON line a finished unit.

    A line is written after the unit's work, in one write; a torn last line means
    that the unit was not finished and is cut off when the ledger is opened. Each is
    sealed: one that was changed since is an error, since results would come of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        cut_torn_line(path)
        self._done: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(read_lines(path), 1):
            record = unsealed(line, f"ledger {path}, line {number}")
            if not isinstance(record.get("unit"), str):
                raise DataError(f"ledger {path} has a line without a unit: {record!r:.80}")
            self._done[record["unit"]] = record

    def __contains__(self, unit: str) -> bool:
        return unit in self._done

    def __len__(self) -> int:
        return len(self._done)

    def __getitem__(self, unit: str) -> dict[str, Any]:
        return self._done[unit]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The results of all finished units, each with its name."""
        return list(self._done.values())

    def record(self, unit: str, result: Mapping[str, Any]) -> None:
        """Mark a unit done, with its result.

        Raises:
            ValueError: it is done already; doing a unit twice is a bug of the caller.
        """
        if unit in self._done:
            raise ValueError(f"unit {unit!r} is in the ledger {self.path} already")
        line = {"unit": unit, **result}
        append_line(self.path, sealed(line))
        self._done[unit] = line
