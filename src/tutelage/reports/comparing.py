"""Two or more runs side by side: settings that differ, and where they ended."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tutelage.ops.intervals import difference_interval, independent_difference_interval
from tutelage.reports.records import Notes, number, rows
from tutelage.reports.story import Story, last_of

MOST_SETTINGS = 200

NUMBERS: tuple[tuple[str, str, str], ...] = (
    ("accuracy", "accuracy", "percent"),
    ("kl/reverse", "reverse KL, nats per token", "number"),
    ("overlap/ratio", "overlap ratio", "percent"),
    ("overlap/mass_student", "shared mass, student", "percent"),
    ("entropy/gap", "entropy gap, nats", "number"),
    ("rollout/length", "length, tokens", "number"),
    ("rollout/truncated", "cut off", "percent"),
    ("rollout/repetition", "repetition", "percent"),
    ("sequence_reward/auroc", "AUROC of the sequence reward", "number"),
    ("perf/step_s", "seconds per step", "number"),
)
"""Key, name and form of the numbers in tables."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A number with what is known of its error."""

    value: float | None
    interval: tuple[float, float] | None = None
    difference: float | None = None
    """From the first run."""
    difference_interval: tuple[float, float] | None = None
    paired: bool = False
    """Whether both runs answered the same questions."""


def differing_settings(stories: Sequence[Story]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, by dotted name, without `run.dir`."""
    flat = [dict(_flat(story.settings)) for story in stories]
    names = sorted({name for settings in flat for name in settings} - {"run.dir"})
    found = [(name, [settings.get(name, "–") for settings in flat]) for name in names]
    return [(name, values) for name, values in found if len(set(values)) > 1][:MOST_SETTINGS]


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping) and tree and name.count(".") < 8:
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree if isinstance(tree, str) else json.dumps(tree, default=str)


def final_numbers(stories: Sequence[Story]) -> list[tuple[str, str, list[Cell]]]:
    """(name, form, a cell a run) of what the last evaluation found, else of the last five steps.

    Five generations, where steps share one: those that sample take longer, the others are staler.
    """
    answers = [_answers(story) for story in stories]
    table = []
    for key, name, form in NUMBERS:
        cells = []
        for story, own in zip(stories, answers, strict=True):
            value = number(story.last.get(key))
            if value is None:
                together = story.config.rollout.steps_per_generation if story.config else 1
                value = last_of(story.train, key, 5 * together)
            low, high = (number(story.last.get(f"{key}/{end}")) for end in ("low", "high"))
            interval = None if low is None or high is None else (low, high)
            if key == "accuracy" and story is not stories[0]:
                cells.append(Cell(value, interval, *_difference(own, answers[0])))
            else:
                cells.append(Cell(value, interval))
        if any(cell.value is not None for cell in cells):
            table.append((name, form, cells))
    return table


def _answers(story: Story) -> dict[str, float]:
    """Accuracy of each held-out question at the last evaluation."""
    step = number(story.last.get("step"))
    if step is None:
        return {}
    path = story.path / "eval" / f"step-{int(step)}.jsonl"
    judged = ((r.get("id"), number(r.get("accuracy"))) for r in rows(path, Notes(), wanted=False))
    return {
        name: right
        for name, right in judged
        if isinstance(name, str) and right is not None and 0 <= right <= 1
    }


def _difference(
    own: Mapping[str, float], first: Mapping[str, float]
) -> tuple[float | None, tuple[float, float] | None, bool]:
    """Mean accuracy minus the first run's, with its interval: paired on questions of both."""
    both = [name for name in own if name in first]
    if both:
        ours, theirs = [own[name] for name in both], [first[name] for name in both]
        return fmean(ours) - fmean(theirs), difference_interval(ours, theirs), True
    if own and first:
        ours, theirs = list(own.values()), list(first.values())
        interval = independent_difference_interval(ours, theirs)
        return fmean(ours) - fmean(theirs), interval, False
    return None, None, False
