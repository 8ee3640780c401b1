"""Curves of the report, as plain data that plotly draws in the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's colours stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True, slots=True)
class Curve:
    """One figure: a quantity of the held-out evaluations against the step."""

    title: str
    """What it shows."""
    note: str
    """How to read it."""
    plot: dict[str, Any]
    """plotly data and layout."""


_FIGURES = (
    (
        "accuracy",
        "Accuracy",
        "share of held-out problems solved",
        "Right answers at the evaluation's sampling settings, with 95 % intervals.",
    ),
    (
        "kl/reverse",
        "Reverse KL",
        "KL(student ‖ teacher), nats per token",
        "How far the student is from the teacher on its own samples; falls when training works.",
    ),
    (
        "overlap/mass_student",
        "Shared mass",
        "student probability on shared top tokens",
        "How much of what the student does the teacher also finds likely.",
    ),
    (
        "entropy/gap",
        "Entropy gap",
        "|H(teacher) − H(student)|, nats",
        "Whether both sides are sure at the same places.",
    ),
    (
        "rollout/length",
        "Length",
        "tokens per rollout",
        "A sudden change is the first sign of trouble with stopping.",
    ),
)


def curves(stories: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The figures for which at least one run has data."""
    made: list[Curve] = []
    for key, title, unit, note in _FIGURES:
        traces = [
            trace
            for story, colour in zip(stories, _cycle(len(stories)), strict=True)
            if (trace := _trace(story, key, colour)) is not None
        ]
        if traces:
            layout = {
                "xaxis": {"title": {"text": "optimizer step"}},
                "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
            }
            made.append(Curve(title, note, {"data": traces, "layout": layout}))
    return made


def _trace(story: Mapping[str, Any], key: str, colour: str) -> dict[str, Any] | None:
    points = [record for record in story["evaluations"] if key in record]
    if not points:
        return None
    trace: dict[str, Any] = {
        "x": [p["step"] for p in points],
        "y": [p[key] for p in points],
        "name": story["name"],
        "mode": "lines+markers",
        "line": {"color": colour},
    }
    if all(f"{key}/low" in p for p in points):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [p[f"{key}/high"] - p[key] for p in points],
            "arrayminus": [p[key] - p[f"{key}/low"] for p in points],
        }
    return trace


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
