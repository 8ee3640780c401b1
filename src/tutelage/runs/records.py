"""The records of a run directory, checked for whoever reads them: nothing is filled in or left out.

What is written here is always so shaped; what is read may have been edited, cut or damaged.
"""

from collections import deque
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from tutelage.errors import DataError
from tutelage.runs.directory import read_json, read_lines

Record = dict[str, Any]
LARGEST = 1e100
"""No metric is larger; sums and squares of larger ones overflow."""
_Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class _Strict(BaseModel):
    """Part of a record: numbers are finite, nothing is converted, what is not known stays."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class _Metrics(_Strict):
    """A line of metrics.jsonl: all values are numbers, but for these."""

    __pydantic_extra__: dict[str, _Number | bool]
    kind: str
    step: NonNegativeInt
    teacher: str | None = Field(None, alias="alignment/teacher")
    next_teacher: str | None = Field(None, alias="alignment/next_teacher")
    note: str | None = Field(None, alias="alignment/note")


class _Bins(_Strict):
    __pydantic_extra__: dict[str, list[_Number | None]]
    tokens: list[Annotated[float, Field(ge=0, le=LARGEST)]]


class _Positions(_Strict):
    step: NonNegativeInt
    bins: _Bins


class _Event(_Strict):
    event: str


class _Scores(_Strict):
    __pydantic_extra__: dict[str, list[_Number | None]]
    teacher_logprob: list[_Number | None]
    student_logprob: list[_Number | None]


class _Rollout(_Strict):
    id: str
    completion_ids: list[int]
    scores: _Scores


class _Reason(_Strict):
    text: str


class _Check(_Strict):
    verdict: str
    reasons: list[_Reason] = []


class _Served(_Strict):
    root: str | None = None


class _Servers(_Strict):
    teacher: _Served | None = None


def metric_records(path: Path) -> list[Record]:
    """The lines of metrics.jsonl; a value with an interval has both of its ends.

    Raises:
        DataError: a line that is no such record, with its number.
    """
    records = _checked(path, _Metrics)
    for number, record in enumerate(records, 1):
        for key in [key.removesuffix("/low") for key in record if key.endswith("/low")]:
            low, high = record[f"{key}/low"], record.get(f"{key}/high")
            if key not in record or high is None or low > high:
                raise DataError(
                    f"{path}, line {number} is damaged: {key} lacks an end of its interval"
                )
    return records


def position_records(path: Path, ends: int | None = None) -> list[Record]:
    """The lines of positions.jsonl; with `ends`, so many of the first and of the last alone.

    Raises:
        DataError: a line that is no such record, with its number.
    """
    return _checked(path, _Positions, ends)


def event_records(path: Path) -> list[Record]:
    """The lines of events.jsonl.

    Raises:
        DataError: a line that is no such record, with its number.
    """
    return _checked(path, _Event)


def rollout_records(path: Path) -> list[Record]:
    """The lines of a file of rollouts.

    Raises:
        DataError: a line that is no such record, with its number.
    """
    return _checked(path, _Rollout)


def check_record(path: Path) -> Record:
    """What `check` found.

    Raises:
        DataError: it is no such record.
        UsageError: it cannot be read.
    """
    return _object(path, _Check)


def server_records(path: Path) -> Record:
    """What the servers of a run said they are.

    Raises:
        DataError: it is no such record.
        UsageError: it cannot be read.
    """
    return _object(path, _Servers)


def _checked(path: Path, kind: type[_Strict], ends: int | None = None) -> list[Record]:
    first: list[Record] = []
    last: deque[Record] = deque(maxlen=ends)
    for number, record in enumerate(read_lines(path), 1):
        _require(kind, record, f"{path}, line {number}")
        (last if len(first) == ends else first).append(record)
    return [*first, *last]


def _object(path: Path, kind: type[_Strict]) -> Record:
    found = read_json(path)
    _require(kind, found, str(path))
    return dict(found)


def _require(kind: type[_Strict], record: object, where: str) -> None:
    try:
        kind.model_validate(record)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        told = f"{place}: {fault['msg']}" if place else fault["msg"]
        raise DataError(f"{where} is damaged: {told}") from None
