"""What the page tells of one run: read once, row by row, whatever state the run is in."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tutelage.config import Config, parse_config
from tutelage.diagnose.explaining import Explanation, explain
from tutelage.errors import TutelageError
from tutelage.reports.heat import Heat
from tutelage.reports.records import Notes, document, number, pick, rows
from tutelage.reports.series import Columns, evenly
from tutelage.reports.text import visible

SHOWN_ROLLOUTS = 5
SHOWN_TEXT = 2000
"""Characters of a rollout in the table of samples."""
LONGEST_CONFIG = 200_000
MOST_POINTS = 20_000
"""Rollouts kept for sequence reward against correctness."""


@dataclass(kw_only=True)
class Story:
    """One run."""

    path: Path
    """Its directory."""
    name: str
    """What it is called on the page; different from every other run's."""
    pair: str
    """Student and teacher."""
    config: Config | None
    """The settings, where they can be read."""
    settings: dict[str, Any]
    """The same as a tree."""
    config_text: str
    """The file."""
    environment: dict[str, Any]
    """Versions and machine."""
    train: Columns
    """Steps."""
    held_out: Columns
    """Evaluations."""
    probes: Columns
    """Probes of the teacher."""
    validation: Columns
    """Losses of a cold start."""
    heat: Heat
    """Metrics by place and step."""
    check: dict[str, Any]
    """What `check` found before."""
    signals: list[dict[str, Any]]
    """Guards and warnings."""
    notes: Notes
    """What is missing or damaged."""
    first: dict[str, Any] = field(default_factory=dict)
    """The first evaluation."""
    last: dict[str, Any] = field(default_factory=dict)
    """The last evaluation."""
    steps: int = 0
    """Optimizer steps recorded."""
    ended: str | None = None
    """How it ended; None where it goes on or was killed."""
    explanation: Explanation | None = None
    """Why it did what it did."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """The same questions at the first and the last evaluation."""
    points: list[tuple[float, float, bool]] = field(default_factory=list)
    """(step, sequence reward, right) of recorded rollouts."""

    @property
    def planned(self) -> int | None:
        """Steps that were wanted."""
        return self.config.run.steps if self.config else None

    @property
    def outcome(self) -> str:
        """What became of the student."""
        return self.explanation.history.outcome if self.explanation else "unknown"

    @property
    def state(self) -> str:
        """Where the run stands, in words."""
        done = f"{self.steps:,}" + (f" of {self.planned:,}" if self.planned else "") + " steps"
        if self.ended == "finished":
            return f"finished, {done}"
        if self.ended is not None:
            return f"ended early ({self.ended}), {done}"
        return f"not ended: still running, or killed; {done}"


def read_story(path: Path, name: str, *, whole: bool = False) -> Story:
    """Everything that the page tells of a run; what is missing or damaged is noted.

    `whole` keeps every step of the metrics by position, not only as many as a page shows.
    """
    notes = Notes()
    config, settings, text = _settings(path / "config.yaml", notes)
    story = Story(
        path=path,
        name=name,
        pair=_pair(settings),
        config=config,
        settings=settings,
        config_text=text,
        environment=document(path / "environment.json", notes, wanted=True),
        train=Columns(),
        held_out=Columns(),
        probes=Columns(),
        validation=Columns(),
        heat=Heat(most=None) if whole else Heat(),
        check=document(path / "check.json", notes),
        signals=[],
        notes=notes,
    )
    _metrics(story)
    _events(story)
    for record in rows(path / "positions.jsonl", notes, wanted=story.steps > 0):
        story.heat.add(record)
    steps = sorted(_rollout_files(path))
    _samples(story, steps)
    for step in steps:
        story.points += _points(path, step, notes)
    story.points = evenly(story.points, MOST_POINTS)
    story.explanation = _explained(path, notes)
    return story


def _settings(path: Path, notes: Notes) -> tuple[Config | None, dict[str, Any], str]:
    if not path.is_file():
        notes.add(f"{path.name} is not there")
        return None, {}, ""
    text = path.read_bytes()[:LONGEST_CONFIG].decode("utf-8", "replace")
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        notes.add(f"{path.name} is damaged, and only shown as it is")
        return None, {}, text
    try:
        return parse_config(tree), tree, text
    except TutelageError as error:
        notes.add(f"{path.name} holds settings that this version does not know ({error})")
    return None, tree, text


def _pair(settings: Mapping[str, Any]) -> str:
    def named(side: str) -> str | None:
        path = pick(settings, side, "path")
        return visible(Path(path).name, 80) if isinstance(path, str) else None

    student, teacher = named("student") or "student", named("teacher")
    return f"{student} ← {teacher or pick(settings, 'teacher', 'type') or 'teacher'}"


def _metrics(story: Story) -> None:
    kinds = {
        "train": story.train,
        "eval": story.held_out,
        "probe": story.probes,
        "validation": story.validation,
    }
    for record in rows(story.path / "metrics.jsonl", story.notes):
        kind = record.get("kind")
        columns = kinds.get(kind) if isinstance(kind, str) else None
        if columns is None or number(record.get("step")) is None:
            continue
        columns.add(record)
        if kind == "train":
            story.steps += 1
        elif kind == "eval":
            numbers = {k: v for k, v in record.items() if number(v) is not None}
            story.first = story.first or numbers
            story.last = numbers


def _events(story: Story) -> None:
    for event in rows(story.path / "events.jsonl", story.notes):
        if event.get("event") == "signal":
            story.signals.append(event)
        elif event.get("event") == "end":
            story.ended = str(event.get("outcome"))
        elif event.get("event") == "resume":
            story.ended = None


def _rollout_files(path: Path) -> Iterator[int]:
    for file in path.glob("rollouts/step-*.jsonl"):
        digits = file.stem.removeprefix("step-")
        if digits.isascii() and digits.isdigit() and len(digits) < 12 and file.is_file():
            yield int(digits)


def _samples(story: Story, steps: list[int]) -> None:
    """The same questions before and after, by the first rollouts that both files hold."""
    if not steps:
        return
    sides: list[dict[str, dict[str, Any]]] = []
    for step in (steps[0], steps[-1]):
        file = story.path / f"rollouts/step-{step}.jsonl"
        found = ({k: r.get(k) for k in _SHOWN} for r in rows(file, story.notes))
        sides.append({f"{r['id']}/{r['index']}": r for r in islice(found, 50 * SHOWN_ROLLOUTS)})
    first, last = sides
    both = [key for key in first if key in last][:SHOWN_ROLLOUTS]
    story.samples = [{"before": first[key], "after": last[key]} for key in both]


_SHOWN = ("id", "index", "question", "answer", "text", "reward")


def _points(path: Path, step: int, notes: Notes) -> Iterator[tuple[float, float, bool]]:
    for record in rows(path / f"rollouts/step-{step}.jsonl", notes):
        reward, tokens = number(record.get("reward")), pick(record, "scores", "reward/mean")
        known = [
            v for v in map(number, tokens if isinstance(tokens, list) else ()) if v is not None
        ]
        if reward is not None and known:
            yield float(step), math.fsum(known) / len(known), reward >= 0.5


def _explained(path: Path, notes: Notes) -> Explanation | None:
    try:
        return explain(path)
    except TutelageError as error:
        notes.add(f"why it went so cannot be said: {error}")
        return None


def last_of(columns: Columns, key: str, window: int = 5) -> float | None:
    """Mean of the last values of a key."""
    series = columns.get(key)
    if series is None:
        return None
    values = deque(series.values, maxlen=window)
    return math.fsum(values) / len(values)
