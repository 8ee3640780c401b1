"""The run directory: JSON lines are the source of truth."""

import errno
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tutelage.errors import DataError, MachineError, UsageError
from tutelage.paths import usable_path
from tutelage.runs.lock import LOCK
from tutelage.secrets import redacted

_PACKAGES = (
    "tutelage",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "peft",
)


@dataclass(frozen=True)
class Run:
    """A directory that belongs to one run."""

    path: Path
    waiting: list[tuple[Path, str]] = field(default_factory=list)
    """Lines that a full disk did not take yet, and their files."""
    writes: bool = True
    """False: another process of the run writes it, and this one only reads."""

    @property
    def metrics(self) -> Path:
        """One record a line: of each step, and of each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One event a line: guards, notes, resumes."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """step-N directories."""
        return self.path / "checkpoints"

    def log_metrics(self, record: Mapping[str, Any]) -> None:
        """Append a record to metrics.jsonl."""
        self.append(self.metrics, record)

    def log_event(self, kind: str, **details: Any) -> None:
        """Append an event to events.jsonl; what it says may repeat a message from outside."""
        told = {k: redacted(v) if isinstance(v, str) else v for k, v in details.items()}
        self.append(self.events, {"time": round(time.time(), 3), "event": kind, **told})

    def append(self, path: Path, record: Mapping[str, Any]) -> None:
        """Append a JSON line; while the disk is full, lines wait in memory, in their order."""
        if not self.writes:
            return
        self.waiting.append((path, to_json(record) + "\n"))
        try:
            self.write_waiting()
        except OSError as error:
            if not says_full(error):
                raise

    def write_waiting(self) -> None:
        """Write the lines that wait.

        Raises:
            OSError: the disk takes none, and they go on waiting.
        """
        while self.waiting:
            append_text(*self.waiting[0])
            del self.waiting[0]

    def write_lines(self, name: str, records: Sequence[Mapping[str, Any]]) -> Path:
        """A file of JSON lines at `name`, written whole."""
        path = self.path / name
        if self.writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, "".join(to_json(record) + "\n" for record in records))
        return path

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """A JSON file at `name`, written whole."""
        self.write_text(name, to_json(record))

    def write_text(self, name: str, text: str) -> None:
        """A file at `name`, written whole."""
        if self.writes:
            replace_text(self.path / name, text)

    def cut_torn_lines(self) -> None:
        """Drop what a kill left unfinished, before anything is appended to it."""
        for path in self.path.glob("*.jsonl") if self.writes else ():
            cut_torn_line(path)

    def truncate_after(self, step: int) -> int:
        """Drop metric records of later steps, so that a resumed run writes them once."""
        dropped = 0
        if not self.writes:
            return dropped
        for path in (self.metrics, self.path / "positions.jsonl"):
            if path.exists():
                kept: list[bytes] = []
                lines = path.read_bytes().split(b"\n")
                for number, record in enumerate(read_lines(path)):
                    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                        raise DataError(f"{path}, line {number + 1} is damaged: it names no step")
                    if record["step"] <= step:
                        kept.append(lines[number] + b"\n")
                    else:
                        dropped += 1
                replace_text(path, b"".join(kept).decode())
        return dropped


def reserve_run(path: str | Path, *, overwrite: bool = False) -> Run:
    """The run directory that `create_run` would make, with nothing written yet.

    Raises:
        UsageError: the directory exists and must not be replaced.
    """
    folder = usable_path(path, "run directory")
    if folder.is_symlink():
        raise UsageError(
            f"run directory {folder} is a symbolic link, and a new run would replace what it "
            "points to; give the directory itself, or another name"
        )
    if folder.exists() and (not folder.is_dir() or _contents(folder)):
        if not folder.is_dir() or not (folder / "config.yaml").exists():
            what = "is no run directory (it has no config.yaml)" if folder.is_dir() else "is a file"
            raise UsageError(
                f"{folder} exists and {what}, so no run may replace it; choose another directory"
            )
        if not overwrite:
            raise UsageError(
                f"run directory {folder} exists; continue it with --resume, replace it with "
                "--overwrite, or choose another directory"
            )
    return Run(folder)


def is_empty(path: str | Path) -> bool:
    """Whether no run was ever begun at a place."""
    folder = usable_path(path, "run directory")
    return not folder.exists() or (folder.is_dir() and not _contents(folder))


def create_run(path: str | Path, *, overwrite: bool = False) -> Run:
    """A new run directory, readable by its owner alone, with nothing in it but its lock.

    Raises:
        UsageError: the directory exists, or cannot be made.
    """
    run = reserve_run(path, overwrite=overwrite)
    try:
        with full_disk_told(run.path):
            run.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            run.path.chmod(0o700)
            for old in _contents(run.path):
                if old.is_dir() and not old.is_symlink():
                    shutil.rmtree(old)
                else:
                    old.unlink()
    except OSError as error:
        raise UsageError(f"run directory {run.path} cannot be made: {error.strerror}") from None
    return run


def _contents(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != LOCK]


def open_run(path: str | Path) -> Run:
    """An existing run directory.

    Raises:
        UsageError: there is none at `path`.
    """
    folder = usable_path(path, "run directory")
    if not (folder / "config.yaml").is_file():
        why = "it has no config.yaml" if folder.exists() else "nothing is there"
        raise UsageError(f"{folder} is no run directory: {why}; {where_runs_are(folder)}")
    return Run(folder)


def where_runs_are(folder: Path) -> str:
    """What to give in place of a folder that is no run: those inside it or beside it."""
    for place in (folder, folder.parent):
        names = sorted(path.parent.name for path in place.glob("*/config.yaml"))
        if close := get_close_matches(folder.name, names, 1):
            return f"did you mean {place / close[0]}?"
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            return f"runs in {place}: {', '.join(names[:4])}{more}"
    return "give the run.dir that `tutelage train` wrote"


def output_file(output: str | Path, *suffixes: str) -> Path:
    """A file that can be written, known before hours of work; `suffixes` are those it may have.

    Raises:
        UsageError: it cannot.
    """
    path = usable_path(output, "output")
    if suffixes and path.suffix not in suffixes:
        raise UsageError(f"output {path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"output {path} is a directory; give the name of a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output {path} cannot be written: {error.strerror}") from None
    return path


def environment() -> dict[str, Any]:
    """Machine and versions, as kept beside the results."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
    }


def other_versions(path: Path) -> list[str]:
    """What `environment.json` at `path` says that is other now, a phrase a package.

    The same numbers to the bit are promised under the same versions alone.
    """
    if not path.is_file():
        return []
    began, now = read_json(path), environment()["versions"]
    before = began.get("versions") if isinstance(began, dict) else None
    if not isinstance(before, dict):
        return []
    return [
        f"{package} was {version} and is {now.get(package, 'not installed')}"
        for package, version in sorted(before.items())
        if now.get(package) != version
    ]


def to_json(record: Mapping[str, Any]) -> str:
    """One JSON line; a number that is not finite is an error, since JSON has no such number."""
    return json.dumps(record, allow_nan=False, ensure_ascii=False)


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without undefined numbers: undefined is absent, and null inside a list."""
    return {
        key: [defined(item) for item in value] if isinstance(value, list) else value
        for key, value in record.items()
        if defined(value) is not None
    }


def defined(value: Any) -> Any:
    """The value, or None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line in a single write."""
    append_text(path, to_json(record) + "\n")


def append_text(path: Path, text: str) -> None:
    """Append all of a text, or nothing of it.

    Raises:
        OSError: it cannot be written.
    """
    content = text.encode()
    with path.open("ab", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        if stream.write(content) != len(content):  # as much as the disk had room for
            stream.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a JSON-lines file; an unterminated last line is left out.

    Raises:
        DataError: any other line that is not JSON, with its number.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is damaged: {error}") from None


def read_json(path: Path) -> Any:
    """A JSON file of a run directory.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}); the run directory is damaged") from None


def cut_torn_line(path: Path) -> None:
    """Cut off an unterminated last line: whoever wrote it was killed."""
    with path.open("rb+") as stream:
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            stream.truncate(whole)


@contextmanager
def full_disk_told(path: str | Path) -> Iterator[None]:
    """Inside, a full disk is an error that names `path`.

    Raises:
        MachineError: there is no space left.
    """
    try:
        yield
    except Exception as error:
        if not says_full(error):
            raise
        raise MachineError(
            f"the disk of {path} is full; free some space. What was saved before is whole, and a "
            "run continues with --resume"
        ) from None


def says_full(error: Exception) -> bool:
    """Whether an error is that of a full disk, a quota or a limit on the size of files."""
    # safetensors and tokenizers wrap the system's error in their own.
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in codes or any(
        f"(os error {code})" in str(error) for code in codes
    )


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old or the new one, never half."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
