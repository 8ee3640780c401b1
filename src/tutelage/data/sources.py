"""Where prompts come from: files, the Hugging Face hub, generators. Rows out, nothing judged."""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tutelage.errors import (
    DataError,
    MachineError,
    ServerError,
    UsageError,
    did_you_mean,
    first_line,
)
from tutelage.paths import usable_path

REASONING_GYM = "reasoning_gym:"
HUB = "hub:"
_FILES = ".jsonl, .json, .csv or .parquet"
_BATCH = 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")

Row = tuple[str, Any]
"""(where it stands, its content), the place for messages."""


def read_rows(source: str) -> list[Row]:
    """The rows of a file, of `hub:OWNER/NAME@COMMIT?split=..` or of `reasoning_gym:NAME?size=..`.

    Raises:
        DataError: a source that is missing, empty or damaged.
        UsageError: a form that is not read.
        MachineError: a package is needed and not installed.
        ServerError: the hub cannot be reached.
    """
    rows = list(stream_rows(source))
    if not rows:
        raise DataError(f"{source} has no rows")
    return rows


def stream_rows(source: str) -> Iterator[Row]:
    """The same rows one by one; a .jsonl or .parquet file is never held whole.

    Raises:
        TutelageError: as `read_rows`, but for a source without rows, which gives none.
    """
    if source.startswith(REASONING_GYM):
        yield from _generated(source)
    elif source.startswith(HUB):
        yield from _from_hub(source)
    else:
        path = usable_path(source, "prompts file", DataError)
        if path.is_dir():
            raise DataError(f"prompts {source} is a directory; give the file in it")
        if not path.is_file():
            raise DataError(f"there is no prompts file {source}{_meant_for_the_hub(source)}")
        yield from _from_file(path)


# --- files -----------------------------------------------------------------------------------


def _from_file(path: Path) -> Iterator[Row]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    if kind == ".jsonl":
        return _jsonl(path)
    if kind not in (".json", ".csv"):
        raise DataError(
            f"{path} is {kind or 'a file without an ending'}, which says nothing of its columns; "
            f'give {_FILES}, such as a .jsonl file with {{"prompt": "...", "answer": "..."}} a line'
        )
    with _readable(path):
        text = path.read_text(encoding="utf-8-sig")
    return _json(path, text) if kind == ".json" else _csv(path, text)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"prompts file {path} is not UTF-8 ({error}); save it as such") from None
    except OSError as error:
        raise DataError(f"cannot read prompts file {path}: {error}") from None


def _json(path: Path, text: str) -> Iterator[Row]:
    try:
        rows = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        lines = (
            "; a file with one row a line is called .jsonl" if "Extra data" in str(error) else ""
        )
        raise DataError(f"{path} is not JSON: {error}{lines}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds one {type(rows).__name__}; a list of rows is needed")
    yield from ((f"{path}, row {i}", row) for i, row in enumerate(rows, 1))


def _jsonl(path: Path) -> Iterator[Row]:
    with _readable(path), path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}, line {number} is not JSON: {error}") from None
                yield f"{path}, line {number}", row


def _csv(path: Path, text: str) -> Iterator[Row]:
    """Rows of text; an empty cell is one that the row lacks."""
    # csv refuses cells above 128 KiB, for the whole process, unless told otherwise.
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        reader = csv.reader(io.StringIO(text), strict=True)
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    if not lines:
        return
    (_, names), *rest = lines
    if len(names) == 1 and ";" in names[0]:
        raise DataError(
            f"{path}: its first line names one column, {names[0]!r}; a .csv file has commas "
            "between its columns, so save it with them"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: its first line names the column {twice!r} twice; rename one")
    for number, cells in rest:
        if len(cells) != len(names):
            raise DataError(
                f"{path}, line {number} has {len(cells)} cells, but the first line names "
                f"{len(names)} columns; a text with commas or line breaks stands in double quotes"
            )
        yield (
            f"{path}, line {number}",
            {name: cell for name, cell in zip(names, cells, strict=True) if cell},
        )


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    # The others come of values that Python has none for, such as days after the year 9999.
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read prompts file {path}: {error}") from None


# --- the hub ---------------------------------------------------------------------------------


def _from_hub(source: str) -> list[Row]:
    address, _, query = source.removeprefix(HUB).partition("?")
    name, _, commit = address.partition("@")
    options = dict(parse_qsl(query, keep_blank_values=True))
    split, config = options.pop("split", "train"), options.pop("config", None)
    if options:
        raise UsageError(
            f"{source}: {next(iter(options))!r} is no option of a hub dataset; there are "
            "split and config"
        )
    if not _COMMIT.fullmatch(commit):
        raise UsageError(
            f"{source}: a branch or tag can move, so a hub dataset is pinned to a commit, as in "
            f"{HUB}{name or 'OWNER/NAME'}@COMMIT; COMMIT is the 40 hexadecimal digits that the "
            "dataset's page shows under Files, History"
        )
    if usable_path(name, "prompts", DataError).exists():
        raise UsageError(
            f"{source}: there is a local {name} here, which would be read in place of the hub's; "
            f"give a {_FILES} file in it, or start elsewhere"
        )
    try:
        import datasets
    except ImportError:
        raise MachineError(
            "hub: prompts need the package datasets; pip install 'tutelage[hub]'"
        ) from None
    try:
        dataset = datasets.load_dataset(name, config, split=split, revision=commit)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(
            f"{source}: the hub shows no such dataset ({first_line(error)}); check its name and "
            "commit, and for a gated one accept its terms and log in with `hf auth login`"
        ) from None
    except OSError as error:  # no network, time-outs, answers of the server
        raise ServerError(
            f"{source}: the hub cannot be reached ({first_line(error)}); go online, or give a "
            f"downloaded {_FILES} file"
        ) from None
    except (ValueError, datasets.exceptions.DatasetsError) as error:  # split, config, contents
        raise DataError(f"{source} cannot be loaded: {first_line(error)}") from None
    return [(f"{source}, row {i}", row) for i, row in enumerate(dataset, 1)]


def _meant_for_the_hub(source: str) -> str:
    looks_like_one = re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?(\?.*)?", source)
    return f"; a dataset of the hub is written {HUB}{source}" if looks_like_one else ""


# --- generators ------------------------------------------------------------------------------


def _generated(source: str) -> list[Row]:
    name, _, query = source.removeprefix(REASONING_GYM).partition("?")
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise MachineError(
            "reasoning_gym: prompts need the package; pip install 'tutelage[verify]'"
        ) from None
    if name not in DATASETS:
        raise UsageError(f"reasoning-gym has no dataset {name!r}. {did_you_mean(name, DATASETS)}")
    options: dict[str, Any] = {"size": 1000, "seed": 0}
    for key, value in parse_qsl(query, keep_blank_values=True):
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    try:
        dataset = reasoning_gym.create_dataset(name, **options)
        entries = [dataset[i] for i in range(len(dataset))]
    except Exception as error:  # generators trip over options in every way
        raise UsageError(f"{source}: reasoning-gym refuses these options: {error}") from None
    return [
        (
            f"{source}, entry {i}",
            {
                "id": f"{name}-{options['seed']}-{i}",
                "question": entry["question"],
                "answer": entry["answer"],
                "reasoning_gym": name,
                "entry": entry,
            },
        )
        for i, entry in enumerate(entries)
    ]
