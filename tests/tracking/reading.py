"""What trackers' own files hold, read back."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Point = tuple[str, int, float]


def tensorboard_points(folder: Path) -> list[Point]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    assert "config/text_summary" in board.Tags()["tensors"]
    return [
        (tag, point.step, point.value)
        for tag in board.Tags()["scalars"]
        for point in board.Scalars(tag)
    ]


def wandb_points(folder: Path) -> tuple[list[Point], list[dict[str, Any]]]:
    """Points, and of each sitting its id and settings."""
    from wandb.proto import wandb_internal_pb2 as proto

    points: list[Point] = []
    runs: list[dict[str, Any]] = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime):
        for payload in _records_of_log(path.read_bytes()):
            record = proto.Record.FromString(payload)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                step = record.history.step.num
                for item in record.history.item:
                    key = item.key or "/".join(item.nested_key)
                    if not key.startswith("_"):
                        points.append((key, step, json.loads(item.value_json)))
            elif kind == "run":
                config = {i.key: json.loads(i.value_json) for i in record.run.config.update}
                runs.append({"id": record.run.run_id, "config": config})
    return points, runs


def trackio_points(folder: Path, project: str, name: str, monkeypatch) -> list[Point]:
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", folder)
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs(project) == [name]
    assert "objective" in SQLiteStorage.get_run_config(project, name)
    return [
        (key, row["step"], value)
        for row in SQLiteStorage.get_logs(project, name)
        for key, value in row.items()
        if "/" in key
    ]


def _records_of_log(data: bytes) -> Iterator[bytes]:
    """Payloads of a LevelDB log, which a .wandb file is after 7 bytes of its own."""
    place, parts = 7, []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield b"".join(parts)
            parts = []
