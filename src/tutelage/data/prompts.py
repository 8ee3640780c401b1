"""Prompts in the layouts people have."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Literal, NamedTuple, cast

from tutelage.data.sources import REASONING_GYM, read_rows, stream_rows
from tutelage.errors import DataError
from tutelage.types import Message, Prompt

# In each list the first column that a row fills is taken.
_QUESTIONS = ("prompt", "question", "problem", "messages")
_ANSWERS = ("answer", "ground_truth", "final_answer", "reward_model.ground_truth", "solution")
_IDS = ("id", "unique_id", "uuid", "extra_info.index")
_SOURCES = ("data_source", "source")

LayoutName = Literal["verl", "TRL", "question/answer", "reasoning-gym"]


class _Columns(NamedTuple):
    """Which columns of one row were read; None for what it lacks."""

    prompt: str
    answer: str | None
    id: str | None
    source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the rows of a source were read."""

    name: LayoutName
    """verl: a chat with `reward_model`; TRL: `prompt` or `messages`; question/answer:
    `question` or `problem`."""
    rows: int
    """How many rows there are."""
    prompt: Mapping[str, int]
    """Rows by the column that their prompt stands in."""
    answer: Mapping[str, int]
    """Rows by the column of their answer; rows without one are not counted."""
    id: Mapping[str, int]
    """Rows by the column of their id; the others are named by their place."""
    source: Mapping[str, int]
    """Rows by the column that names where they come from."""

    def __str__(self) -> str:
        """One line for a reader."""
        parts = {name: getattr(self, name) for name in ("prompt", "answer", "id", "source")}
        told = "; ".join(f"{name}: {self._told(counts)}" for name, counts in parts.items())
        return f"{self.name} layout, {self.rows} rows; {told}"

    def _told(self, counts: Mapping[str, int]) -> str:
        missing = self.rows - sum(counts.values())
        found = {**counts, **({"none": missing} if missing else {})}
        if len(found) == 1:
            return next(iter(found))
        return ", ".join(f"{column} ({count})" for column, count in found.items())


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """Prompts, and how they were read."""

    prompts: list[Prompt]
    """One a row, in order."""
    layout: Layout
    """The columns they came from."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row of a source, and the prompt in it."""

    row: Mapping[str, Any]
    """All of its columns."""
    prompt: Prompt
    """What was read of them."""
    column: str
    """The one that holds the prompt."""
    has_id: bool
    """Whether the row names itself; its place names it otherwise."""


def stream_prompts(source: str) -> Iterator[PromptRow]:
    """The prompts of a source row by row, of which no more than a batch is held.

    Raises:
        TutelageError: as `read_prompts`.
    """
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(stream_rows(source)):
        prompt, columns = _prompt(row, where, number)
        _refuse_known_id(prompt.id, where, places)
        yield PromptRow(row, prompt, columns.prompt, columns.id is not None)
    if not places:
        raise DataError(f"{source} has no rows")


def load_prompts(source: str) -> list[Prompt]:
    """The prompts of a source; `read_prompts` also says which layout it has."""
    return read_prompts(source).prompts


def read_prompts(source: str) -> LoadedPrompts:
    """Prompts of a .jsonl, .json, .csv or .parquet file, of a hub dataset or of reasoning-gym.

    The forms of `source` are those of `sources.read_rows`. A row has `prompt`
    (text, or a list of chat turns), `question`, `problem` or `messages`; the
    answer stands in `answer`, `ground_truth`, `final_answer`, `solution` or, as
    verl writes it, `reward_model.ground_truth`; the id in `id`, `unique_id`,
    `uuid` or `extra_info.index`. Every other column becomes metadata.

    Raises:
        DataError: a source that is missing, empty or damaged, or a row that is no prompt.
        UsageError: a form that is not read.
        MachineError: a package is needed and not installed.
        ServerError: the hub cannot be reached.
    """
    rows = read_rows(source)
    read = [_prompt(row, where, number) for number, (where, row) in enumerate(rows)]
    prompts = [prompt for prompt, _ in read]
    places: dict[str, str] = {}
    for prompt, (where, _) in zip(prompts, rows, strict=True):
        _refuse_known_id(prompt.id, where, places)
    return LoadedPrompts(prompts, _layout(source, [columns for _, columns in read]))


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


def _layout(source: str, rows: Sequence[_Columns]) -> Layout:
    prompt, answer, ids, sources = (
        Counter(column for column in columns if column is not None)
        for columns in zip(*rows, strict=True)
    )
    name: LayoutName
    if source.startswith(REASONING_GYM):
        name = "reasoning-gym"
    elif answer["reward_model.ground_truth"] > 0:
        name = "verl"
    elif prompt["prompt"] + prompt["messages"] > 0:
        name = "TRL"
    else:
        name = "question/answer"
    return Layout(
        name=name,
        rows=len(rows),
        prompt=dict(prompt),
        answer={column: count for column, count in answer.items() if count},
        id=dict(ids),
        source=dict(sources),
    )


# --- one row ---------------------------------------------------------------------------------


def _prompt(row: Any, where: str, number: int) -> tuple[Prompt, _Columns]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {type(row).__name__}; a row is an object with a prompt")
    row = cast(Mapping[str, Any], row)
    column = next((name for name in _QUESTIONS if row.get(name)), None)
    if column is None:
        empty = next((name for name in _QUESTIONS if row.get(name) in ("", [])), None)
        if empty is not None:
            raise DataError(f"{where} has an empty {empty}; give it some text")
        has = ", ".join(sorted(map(str, row))) or "nothing"
        raise DataError(
            f"{where} has no prompt: it holds {has}; one of the columns {', '.join(_QUESTIONS)} is "
            "needed, so rename one"
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
    answer_column, answer = _answer(row, where)
    id_column, prompt_id = _id(row, where)
    prompt = Prompt(
        id=f"row-{number}" if prompt_id is None else prompt_id,
        messages=messages,
        text=text,
        answer=answer,
        metadata={k: v for k, v in row.items() if k not in (column, answer_column, id_column)},
    )
    _refuse_half_characters(prompt, column, where)
    source, _ = _first(row, _SOURCES)
    return prompt, _Columns(column, answer_column, id_column, source)


def _first(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[str | None, Any]:
    """The first column that the row fills, and its value; `a.b` is b inside of a."""
    for column in columns:
        outer, _, inner = column.partition(".")
        value = row.get(outer)
        if inner:
            value = (
                cast(Mapping[str, Any], value).get(inner) if isinstance(value, Mapping) else None
            )
        if value is not None and not (isinstance(value, float) and math.isnan(value)):
            return column, value
    return None, None


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(
            f"{where} is {type(value).__name__}; text or a list of chat turns is needed"
        )
    turns: list[Message] = []
    for turn in value:
        match turn:
            case {"role": str(role), "content": str(content)}:
                turns.append(Message(role, content))
            case {"role": str(role), "content": [*parts]} if all(map(_is_text, parts)):
                turns.append(Message(role, "".join(part["text"] for part in parts)))
            case _:
                raise DataError(f"{where} has a turn that is not a role and a text: {turn!r:.80}")
    while turns and turns[-1].role == "assistant":  # the reference answer, not part of the prompt
        turns.pop()
    if not turns:
        raise DataError(f"{where} has no turn of a user")
    if not any(turn.content.strip() for turn in turns):
        raise DataError(f"{where} has no text in any turn")
    return tuple(turns)


def _is_text(part: object) -> bool:
    """Whether a part of a turn's content is text, as chats with pictures write it."""
    return isinstance(part, Mapping) and isinstance(cast(Mapping[str, Any], part).get("text"), str)


def _answer(row: Mapping[str, Any], where: str) -> tuple[str | None, str | None]:
    column, value = _first(row, _ANSWERS)
    match value:
        case None:
            return None, None
        case float() if value.is_integer():  # a table with gaps keeps its integers so
            return column, str(int(value))
        case str() | bool() | int() | float() | Decimal() | date():
            return column, str(value)
        case list() | dict():
            return column, json.dumps(value, ensure_ascii=False, default=str)
        case _:
            raise DataError(
                f"{where}: its {column} is {type(value).__name__}; an answer is text, a number, or "
                "a list or object of them"
            )


def _id(row: Mapping[str, Any], where: str) -> tuple[str | None, str | None]:
    column, value = _first(row, _IDS)
    if isinstance(value, float) and value.is_integer():  # as above
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise DataError(f"{where}: its {column} is {type(value).__name__}; an id is text or an int")
    return column, None if value is None else str(value)


def _refuse_half_characters(prompt: Prompt, column: str, where: str) -> None:
    turns = " ".join(f"{turn.role} {turn.content}" for turn in prompt.messages)
    parts = {"id": prompt.id, "answer": prompt.answer or "", column: f"{prompt.text} {turns}"}
    for name, part in parts.items():
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: its {name} holds half a character (the lone surrogate "
                f"{error.object[error.start]!a}), which no file or tokenizer can take; mend it"
            ) from None


def _refuse_known_id(prompt_id: str, where: str, places: dict[str, str]) -> None:
    if prompt_id in places:
        raise DataError(
            f"{places[prompt_id]} and {where} share the id {prompt_id!r}; "
            "samples are keyed by it, so ids must differ (or leave the column out)"
        )
    places[prompt_id] = where
