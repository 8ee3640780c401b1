"""Heatmaps: metrics by place in the completion and step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.reports.figures import Figure, Row
from tutelage.reports.heat import Heat, outliers
from tutelage.reports.story import Story

MOST_RUNS = 4

_MAPS = {
    "overlap/ratio": ("Overlap ratio", "shared share of the k likeliest tokens", "Bright: both "
        "sides consider the same tokens. A dark band that stays is a place where they part."),
    "kl/reverse": ("Reverse KL", "nats", "Bright: the student is far from the teacher there. "
        "Training works where it darkens from left to right."),
    "entropy/student": ("Entropy of the student", "nats", "Bright: unsure of the next token."),
    "entropy/teacher": ("Entropy of the teacher", "nats", "Bright: the teacher itself is unsure; "
        "far from the beginning it may have lost the thread of the student's answer."),
    "entropy/gap": ("Entropy gap", "nats", "Bright: one side is sure where the other is not."),
    "reward/mean": ("Token reward", "log q − log p, nats", "Neutral: the teacher finds the "
        "sampled tokens as likely as the student does; orange: less likely; blue: likelier."),
}  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """Rows of the CSV file, made when they are asked for."""

    run: str
    heat: Heat
    cells: list[list[float | None]]

    def __iter__(self) -> Iterator[Row]:
        edges = self.heat.edges
        for j, (first, last) in enumerate(self.heat.spans):
            for i, row in enumerate(self.cells):
                if row[j] is not None:
                    yield self.run, first, last, edges[i], edges[i + 1], row[j]


def heatmaps(stories: Sequence[Story]) -> Iterator[Figure]:
    """A map a metric and run, where positions were recorded."""
    for key, (title, unit, note) in _MAPS.items():
        for place, story in enumerate(stories[:MOST_RUNS]):
            heat = story.heat
            cells = heat.cells(key)
            if cells is None:
                continue
            low, high, cut = outliers(cells)
            diverging = key == "reward/mean"
            if diverging:
                high = max(abs(low), abs(high)) or 1.0
                low = -high
            body: dict[str, Any] = {
                "run": story.name,
                "steps": _edges(heat.spans),
                "spans": [list(span) for span in heat.spans],
                "places": heat.edges,
                "cells": [[None if v is None else float(f"{v:.4g}") for v in row] for row in cells],
                "low": low,
                "high": high,
                "diverging": diverging,
                "unit": unit,
                "thinned": _told(heat, cut),
            }
            yield Figure(
                id=f"depth-{key.replace('/', '-')}" + (f"-{place + 1}" if place else ""),
                title=title if len(stories) == 1 else f"{title}: {story.name}",
                note=note,
                kind="heat",
                x="optimizer step",
                y="place in the completion, tokens",
                columns=("run", "first step", "last step", "from token", "to token", "value"),
                body=body,
                data=_Rows(story.name, heat, cells),
            )


def _edges(spans: list[tuple[float, float]]) -> list[float]:
    """Where columns begin, and where the last one ends."""
    starts = [first for first, _ in spans]
    return [*starts, spans[-1][1] + 1]


def _told(heat: Heat, cut: bool) -> str:
    told = []
    if heat.stretch > 1:
        told.append(
            f"A column is the mean over the tokens of {heat.stretch} steps; single steps are in "
            "the CSV of `tutelage report --csv`."
        )
    if cut:
        told.append("Cells beyond the ends of the scale have the colour of its end.")
    return " ".join(told)
