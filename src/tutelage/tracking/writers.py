"""Three trackers behind one protocol. Only the mirror's own process imports them."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Numbers = Mapping[str, float]


class Writer(Protocol):
    """What takes numbers of a step; steps never fall."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Numbers of one record."""

    def flush(self) -> None:
        """Have what was logged so far kept."""

    def close(self) -> None:
        """Keep everything, and end."""


def tensorboard(order: Mapping[str, Any], config: Mapping[str, Any]) -> Callable[[], Writer]:
    """Import TensorBoard; what opens a mirror."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    class Board:
        def __init__(self) -> None:
            self.file = EventFileWriter(order["folder"])
            text = "    " + json.dumps(config, indent=2, ensure_ascii=False).replace("\n", "\n    ")
            self._add(
                0,
                Summary.Value(
                    tag="config/text_summary",
                    metadata=create_summary_metadata(None, None),
                    tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
                ),
            )

        def _add(self, step: int, *values: Any) -> None:
            summary = Summary(value=values)
            self.file.add_event(Event(wall_time=time.time(), step=step, summary=summary))

        def log(self, step: int, numbers: Numbers) -> None:
            self._add(step, *(Summary.Value(tag=k, simple_value=v) for k, v in numbers.items()))

        def flush(self) -> None:
            self.file.flush()

        def close(self) -> None:
            self.file.close()

    return Board


def trackio(order: Mapping[str, Any], config: Mapping[str, Any]) -> Callable[[], Writer]:
    """Import trackio; what opens a mirror."""
    os.environ["TRACKIO_DIR"] = order["folder"]
    import trackio

    class Board:
        def __init__(self) -> None:
            self.run = trackio.init(
                project=order["tracker"]["project"],
                name=order["name"],
                config=dict(config),
                resume="allow" if order["continues"] else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

        def log(self, step: int, numbers: Numbers) -> None:
            self.run.log(dict(numbers), step=step)

        def flush(self) -> None:
            pass  # it writes in a thread of its own

        def close(self) -> None:
            self.run.finish()  # type: ignore[no-untyped-call]

    return Board


def wandb(order: Mapping[str, Any], config: Mapping[str, Any]) -> Callable[[], Writer]:
    """Import wandb; what opens a mirror."""
    import wandb

    class Board:
        def __init__(self) -> None:
            # Nothing of the machine, the code or what is printed: numbers and settings alone.
            settings = wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            )
            tracker = order["tracker"]
            self.run = wandb.init(
                project=tracker["project"],
                entity=tracker["entity"],
                name=order["name"],
                id=order["id"],
                dir=order["folder"],
                mode=tracker["mode"],
                resume="allow",  # files of one id are one run once they are uploaded
                config=dict(config),
                settings=settings,
            )

        def log(self, step: int, numbers: Numbers) -> None:
            self.run.log(dict(numbers), step=step)

        def flush(self) -> None:
            pass  # its own process writes

        def close(self) -> None:
            self.run.finish()

    return Board


WRITERS = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb}


def numbers_of(record: Mapping[str, Any]) -> Numbers:
    """The numbers of a record, under its kind: train/kl/reverse beside eval/kl/reverse."""
    return {
        f"{record['kind']}/{key}": float(value)
        for key, value in record.items()
        if isinstance(value, int | float) and key != "step"
    }


def folder_of(run: Path, tracker: Mapping[str, Any], name: str) -> Path:
    """Where a mirror keeps its files."""
    own, kind = tracker["dir"], tracker["type"]
    base = Path(own).expanduser().absolute() if own else run / "trackers"
    match kind:
        case "tensorboard":
            return base / name if own else base / kind
        case "trackio":
            return base if own else base / kind
        case _:
            return base  # wandb makes a folder of that name in it
