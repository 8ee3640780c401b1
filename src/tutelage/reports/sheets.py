"""Recorded rollouts as arrays, for the per-token view; whatever is not there is left out."""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.reports.packing import Floats, Ids, Lists
from tutelage.reports.records import Notes, number, pick, rows
from tutelage.reports.text import visible

MOST_ROLLOUTS = 200
MOST_TOKENS = 400_000
MOST_CHECKPOINTS = 12
LISTED = 5  # tokens of a side at every state
WORST = 50  # tokens of a rollout with everything that was recorded
_LONGEST_TOKEN = 200  # characters
_LONGEST_QUESTION = 4_000
_TEXT, _SPECIAL, _BYTES = 0, 1, 2
_STEP = re.compile(r"step-(\d{1,12})\.jsonl")
# Columns of a record, by the key of the signal they are.
_COLUMNS = {
    "kl/reverse": "kl/reverse",
    "reward/mean": "log_ratio",
    "entropy/student": "entropy/student",
    "entropy/teacher": "entropy/teacher",
    "overlap/ratio": "overlap/ratio",
    "overlap/advantage": "overlap/advantage",
    "weight": "weight",
    "student_logprob": "student_logprob",
}


class Glossary:
    """Every token that is shown, once; the same token of two runs is one entry."""

    def __init__(self) -> None:
        # Entry 0 is an empty place in a list.
        self.texts, self.ids, self.kinds = [""], [-1], [_TEXT]
        self._places: dict[tuple[int, str, bool, str], int] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, token_id: int, text: str, *, special: bool = False, part: str = "") -> int:
        """The entry of a token; `part` are its bytes in hexadecimal where it is no whole text."""
        key = (token_id, text, special, part)
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = len(self.texts)
            self.texts.append(part if part else shown_token(text))
            self.ids.append(token_id)
            self.kinds.append(_BYTES if part else _SPECIAL if special else _TEXT)
        return found


def shown_token(text: str) -> str:
    """A token that can be seen: controls spelled out, a lone combining mark on a circle."""
    shown = visible(text, _LONGEST_TOKEN)
    if shown and all(unicodedata.category(c) == "Cf" for c in shown):
        return "".join(f"⟨U+{ord(c):04X}⟩" for c in shown)
    return "◌" + shown if shown and unicodedata.combining(shown[0]) else shown


@dataclass(frozen=True, slots=True)
class View:
    """What the reader chooses from: a checkpoint of a run, or a teacher of an alignment."""

    run: str
    """Name of the directory."""
    step: int | None
    """Optimizer steps; None for an alignment."""
    teacher: str | None = None
    """Whose scores these are, in an alignment."""

    @property
    def label(self) -> str:
        """As the menus show it."""
        if self.step is None:
            return f"{self.run} · teacher {self.teacher}"
        return f"{self.run} · step {self.step:,}"


@dataclass(slots=True)
class Sheet:
    """One rollout, T tokens."""

    view: int
    """Place of its view."""
    question: str
    """Id of the question."""
    index: int
    """Which sample of it."""
    text: str
    """The question."""
    answer: str
    """The right answer, empty where there is none."""
    right: bool | None
    """Its verdict; None: not judged."""
    finish: str
    """`stop`, `length`, or empty where that is not known."""
    tokens: Ids
    """[T] places in the glossary."""
    signals: dict[str, Floats] = field(default_factory=dict)
    """[T] each; NaN where undefined."""
    lists: Lists | None = None
    """The first few of both sides at every token."""
    places: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """[W] tokens whose numbers and lists are kept whole, in order."""
    whole: Lists | None = None
    """[W] all that was recorded of them."""
    success: Floats | None = None
    """[W, k] share of right rollouts after each of the student's tokens, in an alignment."""


def read_sheets(
    runs: Sequence[tuple[str, Path]], glossary: Glossary, notes: Notes
) -> tuple[list[View], list[Sheet]]:
    """The rollouts to show of some directories, checkpoint by checkpoint.

    Directories share the room evenly, and so do the checkpoints of a run; the first and the last
    checkpoint are always among them, and every one shows the same questions.
    """
    views: list[View] = []
    sheets: list[Sheet] = []
    files = [(name, step, file) for name, path in runs for step, file in _chosen(path, len(runs))]
    aligned = [(name, path) for name, path in runs if (path / "tokens.jsonl").is_file()]
    parts = max(1, len(files) + len(aligned))
    for name, step, file in files:
        views.append(View(name, step))
        records = (
            _of_rollout(record, len(views) - 1, glossary)
            for record in rows(file, notes, wanted=False)
        )
        sheets += _within(records, parts, file.name, notes)
    for name, path in aligned:
        teachers: dict[str, int] = {}
        records = (
            _of_spine(
                record, teacher, teachers.setdefault(teacher, len(views) + len(teachers)), glossary
            )
            for record in rows(path / "tokens.jsonl", notes)
            for teacher in _names(record)
        )
        sheets += _within(records, parts, "tokens.jsonl", notes)
        views += [View(name, None, teacher) for teacher in teachers]
    return views, sheets


def _chosen(path: Path, runs: int) -> list[tuple[int, Path]]:
    """Files of rollouts to show: the first, the last and some between, evenly."""
    found = sorted(
        (int(match[1]), file)
        for file in (path / "rollouts").glob("step-*.jsonl")
        if (match := _STEP.fullmatch(file.name))
    )
    most = max(2, MOST_CHECKPOINTS // max(1, runs))
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def _within(sheets: Iterable[Sheet | None], parts: int, file: str, notes: Notes) -> Iterator[Sheet]:
    """As many as this part may show; the rest is told."""
    rollouts, tokens = MOST_ROLLOUTS // parts, MOST_TOKENS // parts
    damaged = shown = 0
    for sheet in sheets:
        if sheet is None:
            damaged += 1
            continue
        if shown == rollouts or (shown and tokens < len(sheet.tokens)):
            notes.add(f"{file}: the first {shown} rollouts are shown, the others left out")
            break
        shown += 1
        tokens -= len(sheet.tokens)
        yield sheet
    if damaged:
        notes.add(f"{file}: {damaged} rollouts are damaged, and left out")


def _of_rollout(record: Mapping[str, Any], view: int, glossary: Glossary) -> Sheet | None:
    """A line of rollouts/step-N.jsonl, with or without lists; None where it is damaged."""
    try:
        texts, ids = record["tokens"], record["completion_ids"]
        names = _Names(record, glossary)
        tokens = [names.place(int(i), str(t)) for i, t in zip(ids, texts, strict=True)]
        reward = number(record.get("reward"))
        sheet = Sheet(
            view=view,
            question=str(record["id"]),
            index=int(record.get("index", 0)),
            text=visible(str(record.get("question") or ""), _LONGEST_QUESTION),
            answer=visible("" if record.get("answer") is None else str(record["answer"]), 500),
            right=None if reward is None else reward >= 0.5,
            finish=str(record.get("finish_reason") or ""),
            tokens=np.array(tokens, np.uint32),
        )
        for column, key in _COLUMNS.items():
            values = _floats(pick(record, "scores", column), len(tokens))
            if values is not None and np.isfinite(values).any():
                sheet.signals[key] = values
        _keep_lists(sheet, record.get("likely"), names)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    return sheet


class _Names:
    """How a record names token ids."""

    def __init__(self, record: Mapping[str, Any], glossary: Glossary) -> None:
        self.glossary = glossary
        self.vocabulary = record.get("vocabulary") or {}
        self.parts = record.get("bytes") or {}
        self.special = frozenset(record.get("special") or ())
        self.known: dict[int, int] = {}

    def place(self, token_id: int, text: str | None = None) -> int:
        """Its entry in the glossary."""
        found = self.known.get(token_id)
        if found is None:
            if text is None:
                text = str(self.vocabulary.get(str(token_id), f"⟨{token_id}⟩"))
            part = bytes.fromhex(self.parts.get(str(token_id), ""))[:_LONGEST_TOKEN].hex()
            found = self.known[token_id] = self.glossary.place(
                token_id, text, special=token_id in self.special, part=part
            )
        return found


def _keep_lists(sheet: Sheet, likely: Any, names: _Names) -> None:
    """All that was recorded of the worst tokens, and the first few of both sides elsewhere."""
    by = next((s for s in ("kl/reverse", "log_ratio") if s in sheet.signals), None)
    if by is not None:
        badness = sheet.signals[by] if by == "kl/reverse" else -sheet.signals[by]
        order = np.argsort(np.where(np.isfinite(badness), -badness, np.inf), kind="stable")
        sheet.places = np.sort(order[:WORST])
    count = len(sheet.tokens)
    if not isinstance(likely, dict) or not likely or not count:
        return
    first: list[Any] = []
    whole: list[Any] = []
    for side in ("student", "teacher"):
        ids = np.array(likely[side]["ids"], np.int64).reshape(count, -1)
        logprobs = np.array(likely[side]["logprobs"], np.float32).reshape(count, -1)
        if ids.shape != logprobs.shape:
            raise ValueError("ids and log-probabilities differ in number")
        for kept, rows_ in ((first, np.s_[:, :LISTED]), (whole, sheet.places)):
            distinct, inverse = np.unique(ids[rows_], return_inverse=True)
            entries = np.array([names.place(int(i)) for i in distinct], np.uint32)
            kept += [entries[inverse].reshape(ids[rows_].shape), logprobs[rows_]]
    sheet.lists, sheet.whole = Lists(*first), Lists(*whole)


def _names(record: Mapping[str, Any]) -> list[str]:
    moves = record.get("moves")
    return [str(name) for name in moves] if isinstance(moves, dict) else []


def _of_spine(
    record: Mapping[str, Any], teacher: str, view: int, glossary: Glossary
) -> Sheet | None:
    """A line of tokens.jsonl under one teacher; None where it is damaged."""
    try:
        tokens = [glossary.place(-1, str(text)) for text in record["tokens"]]
        right, count = record.get("right"), len(tokens)
        sheet = Sheet(
            view=view,
            question=str(record["question"]),
            index=int(record.get("index", 0)),
            text=visible(str(record.get("prompt") or ""), _LONGEST_QUESTION),
            answer="",
            right=None if right is None else bool(right),
            finish="",
            tokens=np.array(tokens, np.uint32),
        )
        moves = _floats(pick(record, "moves", teacher), count)
        if moves is not None:
            sheet.signals["alignment/move"] = moves
        nodes = {
            int(node["depth"]): node
            for node in record["nodes"]
            if 0 <= node["depth"] < count and teacher in node["teachers"]
        }
        _keep_nodes(sheet, dict(sorted(nodes.items())), teacher, glossary)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    return sheet


def _keep_nodes(sheet: Sheet, nodes: Mapping[int, Any], teacher: str, glossary: Glossary) -> None:
    """What rollouts from forced next tokens said at the nodes of a spine."""
    if not nodes:
        return
    sheet.places = np.array(list(nodes), np.int64)
    for key, name in (("alignment/dot", "dot"), ("alignment/advantage", "advantage")):
        column = np.full(len(sheet.tokens), np.nan, np.float32)
        for depth, node in nodes.items():
            value = number(pick(node, "teachers", teacher, "objective", name))
            column[depth] = math.nan if value is None else value
        if np.isfinite(column).any():
            sheet.signals[key] = column
    column = np.full(len(sheet.tokens), np.nan, np.float32)
    column[sheet.places] = [_or_nan(node.get("entropy")) for node in nodes.values()]
    if np.isfinite(column).any():
        sheet.signals["entropy/student"] = column
    width = min(32, max(len(node["children"]) for node in nodes.values()))
    shape = (len(nodes), width)
    ids = [np.zeros(shape, np.uint32) for _ in range(2)]
    logprobs = [np.full(shape, np.nan, np.float32) for _ in range(2)]
    success = np.full(shape, np.nan, np.float32)
    for row, node in enumerate(nodes.values()):
        children = [
            glossary.place(int(i), str(text), special=int(i) < 0)
            for i, text in zip(node["ids"], node["children"], strict=True)
        ]
        sides = (node["student"], node["teachers"][teacher]["probabilities"])
        for side, probabilities in enumerate(sides):
            p = np.array([_or_nan(x) for x in probabilities])
            order = np.argsort(-p, kind="stable")[:width]
            ids[side][row, : len(order)] = np.array(children, np.uint32)[order]
            with np.errstate(divide="ignore"):
                logprobs[side][row, : len(order)] = np.log(p[order]).clip(-99)
            if side == 0:
                found = np.array([_or_nan(x) for x in node["success"]])
                success[row, : len(order)] = found[order]
    sheet.whole = Lists(ids[0], logprobs[0], ids[1], logprobs[1])
    sheet.success = success


def _or_nan(value: Any) -> float:
    found = number(value)
    return math.nan if found is None else found


def _floats(values: Any, count: int) -> Floats | None:
    """A column of a record; None where it is absent or of another length."""
    if not isinstance(values, list) or len(values) != count:
        return None
    try:
        column = np.array(values, np.float32)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        column = np.array([_or_nan(value) for value in values], np.float32)
    if column.ndim != 1:
        return None
    column[~np.isfinite(column)] = np.nan
    return column
