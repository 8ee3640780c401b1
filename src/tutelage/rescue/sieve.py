"""Prompts through the sieve: what repeats an evaluation set, other prompts or an earlier row."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from tutelage.config.rescue import PromptsRescue
from tutelage.data.prompts import PromptRow, stream_prompts
from tutelage.rescue.affixes import Affixes, affixes_of, learn_affixes
from tutelage.rescue.copies import KINDS, Judge, Kind, Known, Match, Question
from tutelage.types import Prompt

LEARN_FROM = 20_000
"""Most rows from which templates are learned."""
_BATCH = 256
_EXCERPT = 300

Part = Literal["evaluation", "training", "same file"]
PARTS: tuple[Part, ...] = ("evaluation", "training", "same file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A row that repeats a known question."""

    origin: str
    """The source of the row."""
    id: str
    """The row's prompt."""
    part: Part
    """What kind of set the known question is in."""
    source: str
    """The set."""
    matched: str
    """Id of the known question."""
    kind: Kind
    """How the two were found to be one; see `Match`."""
    similarity: float
    """See `Match`."""
    dropped: bool
    """Whether the row was dropped for it."""
    answers: tuple[str | None, str | None]
    """Of the row and of the known question."""
    texts: tuple[str, str]
    """Both questions, cut short."""

    @property
    def answers_differ(self) -> bool:
        """Whether both have answers, which are neither written alike nor equal numbers."""
        own, other = self.answers
        return own is not None and other is not None and _plain(own) != _plain(other)

    def to_dict(self) -> dict[str, Any]:
        """A line of the report."""
        return {
            "prompts": self.origin,
            "id": self.id,
            "against": self.part,
            "source": self.source,
            "matched": self.matched,
            "kind": self.kind,
            "similarity": round(self.similarity, 4),
            "dropped": self.dropped,
            **({"answers": list(self.answers)} if self.answers_differ else {}),
            "question": self.texts[0],
            "matched_question": self.texts[1],
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """A row that went through."""

    row: PromptRow
    """As it was read."""
    question: str
    """Its question without the template."""


@dataclass
class KnownSet:
    """The questions of one source, with what a report says of them."""

    source: str
    part: Part
    questions: Known
    ids: list[str] = field(default_factory=list[str])
    answers: list[str | None] = field(default_factory=list[str | None])
    leaked: dict[int, Kind] = field(default_factory=dict[int, Kind])
    """The plainest kind in which each question was met."""

    def add(self, prompt: Prompt, question: Question, vector: Any) -> None:
        """One more question."""
        self.questions.add(question, vector)
        self.ids.append(prompt.id)
        self.answers.append(prompt.answer)

    def hits(self, origin: str, prompt: Prompt, question: Question, match: Match) -> Iterator[Hit]:
        """A hit for each known question of a match."""
        for place in match.places:
            known = self.leaked.get(place)
            if known is None or KINDS.index(match.kind) < KINDS.index(known):
                self.leaked[place] = match.kind
            yield Hit(
                origin=origin,
                id=prompt.id,
                part=self.part,
                source=self.source,
                matched=self.ids[place],
                kind=match.kind,
                similarity=match.similarity,
                dropped=True,
                answers=(prompt.answer, self.answers[place]),
                texts=(
                    question.text[:_EXCERPT],
                    self.questions.text(place)[:_EXCERPT],
                ),
            )


class Sieve:
    """Drops what is known already, row by row, and remembers what went through."""

    def __init__(self, settings: PromptsRescue) -> None:
        """Read the evaluation sets and the other prompts.

        Raises:
            TutelageError: one of them cannot be read, or an encoder or package is missing.
        """
        self.settings = settings
        self.judge = Judge(settings.near)
        self.affixes: dict[str, Affixes] = {}
        if settings.written_in is not None:
            self.affixes[settings.prompts] = affixes_of(settings.written_in)
        self.rows: Counter[str] = Counter()
        self.through: Counter[str] = Counter()
        self.unique: dict[str, int] = {}
        self.known = [
            *(self._read(source, "evaluation") for source in settings.evaluation),
            *(self._read(source, "training") for source in settings.against),
        ]
        self.kept = KnownSet(settings.prompts, "same file", Known(self.judge))
        self.hits: list[Hit] = []

    def pass_through(self, source: str) -> Iterator[Kept]:
        """The rows of a source that repeat nothing, in order."""
        found: set[bytes] = set()
        for batch in _batches(self._questions(source)):
            vectors = self.judge.encode([question for _, question in batch])
            for known in (*self.known, self.kept):
                known.questions.ask(vectors)
            for i, (row, question) in enumerate(batch):
                found.add(question.keys[0])
                hits = self._hits(source, row.prompt, question, i)
                self.hits += hits
                if any(hit.dropped for hit in hits):
                    continue
                self.through[source] += 1
                self.kept.add(row.prompt, question, None if vectors is None else vectors[i])
                yield Kept(row, question.text)
        self.unique[source] = len(found)

    def _hits(self, origin: str, prompt: Prompt, question: Question, i: int) -> list[Hit]:
        """All leaks of a row; else the first other prompt, else the first row, it repeats."""
        found: list[Hit] = []
        for known in (*self.known, self.kept):
            if found and (known.part != "evaluation" and any(hit.dropped for hit in found)):
                break
            match = known.questions.find(question, i)
            if match is None:
                continue
            hits = list(known.hits(origin, prompt, question, match))
            if known.part == "evaluation":
                found += [replace(hit, dropped=not self.settings.keep_leaks) for hit in hits]
            elif known.part == "training":
                found.append(hits[0])
            else:
                found.append(replace(hits[0], dropped=not self.settings.keep_copies))
        return found

    def _read(self, source: str, part: Part) -> KnownSet:
        found = KnownSet(source, part, Known(self.judge))
        for batch in _batches(self._questions(source)):
            vectors = self.judge.encode([question for _, question in batch])
            for i, (row, question) in enumerate(batch):
                found.add(row.prompt, question, None if vectors is None else vectors[i])
        return found

    def _questions(self, source: str) -> Iterator[tuple[PromptRow, Question]]:
        """Rows with their questions, after a first look at the source's templates."""
        if source not in self.affixes:
            self.affixes[source] = learn_affixes(
                _sample(turns_of(row.prompt) for row in stream_prompts(source))
            )
        affixes = self.affixes[source]
        self.rows[source] = 0
        for row in stream_prompts(source):
            self.rows[source] += 1
            yield row, Question(affixes.strip(turns_of(row.prompt)))

    def summary(self) -> dict[str, Any]:
        """Counts of what was read, met and dropped of the prompts themselves."""
        dropped = Counter(self._reason_of_each_row())
        hits = self._own_hits
        return {
            "rows": self.rows[self.settings.prompts],
            "unique_questions": self.unique[self.settings.prompts],
            "kept": self.through[self.settings.prompts],
            "dropped": {part: dropped[part] for part in PARTS},
            "met": {
                part: dict(Counter(hit.kind for hit in hits if hit.part == part)) for part in PARTS
            },
            "leaks": {
                known.source: {
                    "questions": len(known.ids),
                    "leaked": dict(Counter(known.leaked.values())),
                }
                for known in self.known
                if known.part == "evaluation"
            },
            "answers_differ": sum(hit.answers_differ for hit in hits),
            "templates": {source: found.to_dict() for source, found in self.affixes.items()},
        }

    @property
    def _own_hits(self) -> list[Hit]:
        return [hit for hit in self.hits if hit.origin == self.settings.prompts]

    def _reason_of_each_row(self) -> Iterator[Part]:
        told: set[str] = set()
        for hit in self._own_hits:
            if hit.dropped and hit.id not in told:
                told.add(hit.id)
                yield hit.part


def turns_of(prompt: Prompt) -> str:
    """What the user's side of a prompt says, without the system turn."""
    return prompt.text or "\n\n".join(t.content for t in prompt.messages if t.role != "system")


def _plain(answer: str) -> float | str:
    try:
        return float(answer)
    except ValueError:
        return answer.strip()


def _sample(texts: Iterable[str], most: int = LEARN_FROM) -> list[str]:
    """At most so many texts, each with the same chance, in one pass."""
    rng = random.Random(0)  # nosec B311 # for a repeatable sample
    chosen: list[str] = []
    for number, text in enumerate(texts):
        if number < most:
            chosen.append(text)
        elif (place := rng.randrange(number + 1)) < most:
            chosen[place] = text
    return chosen


def _batches(
    rows: Iterator[tuple[PromptRow, Question]],
) -> Iterator[list[tuple[PromptRow, Question]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch
