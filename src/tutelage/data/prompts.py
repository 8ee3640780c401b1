"""Prompts from files and generators, in the layouts people have."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

from tutelage.errors import DataError, MachineError, UsageError, did_you_mean
from tutelage.types import Message, Prompt

REASONING_GYM = "reasoning_gym:"
_QUESTIONS = ("prompt", "question", "problem", "messages")
_ANSWERS = ("answer", "ground_truth", "final_answer")


def load_prompts(source: str) -> list[Prompt]:
    """Prompts of a .jsonl, .json or .parquet file, or of `reasoning_gym:NAME?size=..&seed=..`.

    A row has `prompt` (text, or a list of chat turns), `question`, `problem` or
    `messages`; the answer stands in `answer`, `ground_truth` or, as verl writes
    it, `reward_model.ground_truth`; the id in `id` or `extra_info.index`.

    Raises:
        DataError: a file that is missing, empty or damaged, or a row without a prompt.
        UsageError: a form of file that is not read.
        MachineError: reasoning-gym is asked for and not installed.
    """
    if source.startswith(REASONING_GYM):
        return _from_reasoning_gym(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"there is no prompts file {source}")
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"prompts file {source} has no rows")
    prompts = [_prompt(row, where, number) for number, (where, row) in enumerate(rows)]
    _refuse_duplicate_ids(prompts, source)
    return prompts


def split_held_out(prompts: Sequence[Prompt], count: int) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts; equal questions are never on both sides.

    The held-out ones are spread evenly over the file.
    """
    count = min(count, len(prompts) // 2)
    if not count:
        return list(prompts), []
    places = {(2 * i + 1) * len(prompts) // (2 * count) for i in range(count)}
    held_out = [prompts[i] for i in sorted(places)]
    return without(prompts, held_out), held_out


def without(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[Prompt]:
    """The prompts whose question is none of the held-out ones, white space aside."""
    questions = {_normalised(p) for p in held_out}
    return [p for p in prompts if _normalised(p) not in questions]


def _normalised(prompt: Prompt) -> str:
    return " ".join(prompt.question.split())


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) of each row of a file."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    if kind not in (".json", ".jsonl"):
        raise UsageError(
            f"{path} is {kind or 'a file without an ending'}; give .jsonl, .json or .parquet"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read prompts file {path}: {error}") from None
    if kind == ".json":
        try:
            rows = json.loads(text) if text.strip() else []
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {error}") from None
        if not isinstance(rows, list):
            raise DataError(f"{path} holds one {type(rows).__name__}; a list of rows is needed")
        yield from ((f"{path}, row {i}", row) for i, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read prompts file {path}: {error}") from None
    yield from ((f"{path}, row {i}", row) for i, row in enumerate(table.to_pylist(), 1))


def _prompt(row: Any, where: str, number: int) -> Prompt:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {type(row).__name__}; a row is an object with a prompt")
    row = cast(Mapping[str, Any], row)
    column = next((name for name in _QUESTIONS if row.get(name)), None)
    if column is None:
        has = ", ".join(sorted(map(str, row))) or "nothing"
        raise DataError(
            f"{where} has no prompt: it holds {has}; one of {', '.join(_QUESTIONS)} is needed"
        )
    value = row[column]
    messages: tuple[Message, ...] = ()
    text = ""
    if isinstance(value, str):
        text = value
        if not text.strip():
            raise DataError(f"{where} has an empty {column}")
    else:
        messages = _messages(value, f"{where}, {column}")
    prompt_id, answer = _id(row, number), _answer(row)
    roles = " ".join(turn.role for turn in messages)
    contents = " ".join(turn.content for turn in messages)
    for name, part in (
        ("id", prompt_id),
        ("answer", answer or ""),
        (column, f"{text} {roles} {contents}"),
    ):
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: its {name} holds half a character (the lone surrogate "
                f"{error.object[error.start]!a}), which no file or tokenizer can take; mend it"
            ) from None
    return Prompt(
        id=prompt_id,
        messages=messages,
        text=text,
        answer=answer,
        metadata={k: v for k, v in row.items() if k not in (*_QUESTIONS, *_ANSWERS, "id")},
    )


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(
            f"{where} is {type(value).__name__}; text or a list of chat turns is needed"
        )
    turns: list[Message] = []
    for turn in value:
        match turn:
            case {"role": str(role), "content": str(content)}:
                turns.append(Message(role, content))
            case _:
                raise DataError(f"{where} has a turn that is not a role and a text: {turn!r:.80}")
    while turns and turns[-1].role == "assistant":  # the reference answer, not part of the prompt
        turns.pop()
    if not turns:
        raise DataError(f"{where} has no turn of a user")
    return tuple(turns)


def _answer(row: Mapping[str, Any]) -> str | None:
    nested = row.get("reward_model")
    candidates = [row.get(name) for name in _ANSWERS]
    if isinstance(nested, Mapping):
        candidates.append(cast(Mapping[str, Any], nested).get("ground_truth"))
    found = next((value for value in candidates if value is not None), None)
    if isinstance(found, list | dict):
        return json.dumps(found, ensure_ascii=False, default=str)
    return None if found is None else str(found)


def _id(row: Mapping[str, Any], number: int) -> str:
    if row.get("id") is not None:
        return str(row["id"])
    extra = row.get("extra_info")
    index = cast(Mapping[str, Any], extra).get("index") if isinstance(extra, Mapping) else None
    return str(index) if index is not None else f"row-{number}"


def _refuse_duplicate_ids(prompts: Sequence[Prompt], source: str) -> None:
    seen: dict[str, int] = {}
    for number, prompt in enumerate(prompts, 1):
        if prompt.id in seen:
            raise DataError(
                f"{source}: rows {seen[prompt.id]} and {number} share the id {prompt.id!r}; "
                "samples are keyed by it, so ids must differ (or leave the column out)"
            )
        seen[prompt.id] = number


def _from_reasoning_gym(source: str) -> list[Prompt]:
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
        Prompt(
            id=f"{name}-{options['seed']}-{i}",
            text=entry["question"],
            answer=None if entry["answer"] is None else str(entry["answer"]),
            metadata={"reasoning_gym": name, "entry": entry},
        )
        for i, entry in enumerate(entries)
    ]
