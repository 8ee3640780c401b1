"""The per-token view of the page: what it is given; templates/tokens.js draws it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tutelage.reports.packing import (
    ABSENT,
    LETTERS,
    LOGPROBS,
    SHARES,
    Bytes,
    Scale,
    id_planes,
    list_planes,
    pack,
    sampled_planes,
)
from tutelage.reports.records import Notes
from tutelage.reports.section import Section
from tutelage.reports.sheets import LISTED, WORST, Glossary, Sheet, View, read_sheets

LOGPROB = "student_logprob"
BUDGET = 12_200_000  # characters of the section's data, beside plotly's 2 million


@dataclass(frozen=True, slots=True)
class Signal:
    """A number of each token that texts can be coloured by."""

    key: str
    """Its name in the records."""
    title: str
    """In the menu."""
    unit: str
    """Of its values; empty for none."""
    says: str
    """How to read it."""
    origin: float = 0.0
    """Value without colour."""
    direction: int = 1
    """Where values lie from there: 1 above, -1 below, 0 on both sides."""
    worst: int = 1
    """1: the largest value is the worst, -1: the smallest."""


SIGNALS = (
    Signal(
        "kl/reverse",
        "Reverse KL",
        "nats",
        "How far the student's next-token distribution is from the teacher's at this state.",
    ),
    Signal(
        "log_ratio",
        "Log-ratio of the sampled token",
        "nats",
        "log q − log p of the token that was sampled: below 0 the teacher finds it less likely "
        "than the student does.",
        direction=0,
        worst=-1,
    ),
    Signal("entropy/student", "Student entropy", "nats", "How open the student's choice was."),
    Signal("entropy/teacher", "Teacher entropy", "nats", "How open the teacher's choice was."),
    Signal(
        "overlap/ratio",
        "Overlap",
        "share of the top k",
        "How much of both sides' most likely tokens is the same.",
        origin=1.0,
        direction=-1,
        worst=-1,
    ),
    Signal(
        "overlap/advantage",
        "Overlap advantage",
        "nats",
        "Agreement on the shared likely tokens alone: 0 is perfect, lower is worse.",
        direction=-1,
        worst=-1,
    ),
    Signal(
        "alignment/dot",
        "Alignment with success",
        "dot product",
        "Whether the teacher's move points towards right answers (above 0) or away from them; "
        "known where rollouts were forced.",
        direction=0,
        worst=-1,
    ),
    Signal(
        "alignment/advantage",
        "Teacher advantage",
        "chance of a right answer",
        "How much likelier the answer becomes right if the teacher chooses this token; known "
        "where rollouts were forced.",
        direction=0,
        worst=-1,
    ),
    Signal(
        "alignment/move",
        "Size of the teacher's move",
        "norm in logits",
        "How hard the teacher pulls at this state, whatever the direction.",
    ),
    Signal("weight", "Token weight", "", "How much the token would count in a training step."),
    # Not in the menu: with the log-ratio it gives both sides' probability of the sampled token.
    Signal(LOGPROB, "", "nats", "", direction=-1, worst=-1),
)
_FACTS = 400  # characters of a rollout besides its bytes
# What is left out, in this order, where the data would not fit: tokens listed, least probability.
_RUNGS = (
    (LISTED, 0.0),
    (LISTED, 1e-4),
    (LISTED, 1e-3),
    (LISTED, 1e-2),
    (4, 1e-2),
    (3, 1e-2),
    (2, 1e-2),
    (1, 1e-2),
    (0, 1.0),
)


def token_section(runs: Sequence[tuple[str, Path]], budget: int = BUDGET) -> Section | None:
    """The view of the recorded rollouts of some directories; None where none has any.

    Args:
        runs: name and directory of each; a run, or a result of `align`.
        budget: most characters of its data.
    """
    glossary, notes = Glossary(), Notes()
    views, sheets = read_sheets(runs, glossary, notes)
    if not any(signal.title and signal.key in s.signals for s in sheets for signal in SIGNALS):
        return None
    data = packed(views, sheets, glossary, notes, budget)
    told = (Markup("<p class=hint>{}.</p>").format(text) for text in notes.texts)
    return Section(
        id="tokens",
        title="Token by token",
        html=Markup(_file("tokens.html")) + Markup("").join(told),
        style=_file("tokens.css"),
        data=data,
        script=_file("tokens.js"),
    )


def packed(
    views: Sequence[View],
    sheets: Sequence[Sheet],
    glossary: Glossary,
    notes: Notes,
    budget: int = BUDGET,
) -> dict[str, Any]:
    """Everything that tokens.js reads, in at most about `budget` characters."""
    order = _by_frequency(sheets, len(glossary))
    questions = list({sheet.question: sheet for sheet in sheets}.values())
    numbers = {sheet.question: place for place, sheet in enumerate(questions)}
    signals = [_told(signal, sheets) for signal in SIGNALS]
    known = [signal for signal in signals if signal is not None]
    width = max(1, (len(glossary).bit_length() + 7) // 8)
    told: dict[str, Any] = {
        "views": [
            {"label": v.label, "run": v.run, "step": v.step, "teacher": v.teacher} for v in views
        ],
        "signals": known,
        "questions": [{"id": s.question, "text": s.text, "answer": s.answer} for s in questions],
        "glossary": {
            "text": [glossary.texts[i] for i in order],
            "id": [glossary.ids[i] for i in order],
            "kind": [glossary.kinds[i] for i in order],
        },
        "width": width,
        "floor": LOGPROBS.span,
        "letters": LETTERS,
        "worst": WORST,
    }
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    rest = len(json.dumps(told)) + _FACTS * len(sheets)
    for listed, least in _RUNGS:
        sample = sheets[:: max(1, len(sheets) // 8)]
        size = sum(len(_rollout(s, known, rank, width, listed, least)["data"]) for s in sample)
        every = sum(len(s.tokens) for s in sheets) / max(1, sum(len(s.tokens) for s in sample))
        # A sample may be off by a little, which is worth a try.
        if 0.95 * size * every + rest > budget and (listed, least) != _RUNGS[-1]:
            continue
        rollouts = [_rollout(s, known, rank, width, listed, least) for s in sheets]
        if sum(len(r["data"]) for r in rollouts) + rest <= budget:
            break
    told |= {"listed": listed, "least": least}
    if (listed, least) != _RUNGS[0]:
        notes.add(_left_out(listed, least))
    for sheet, rollout in zip(sheets, rollouts, strict=True):
        rollout |= {"view": sheet.view, "question": numbers[sheet.question]}
    told["rollouts"] = _fitting(rollouts, budget - rest, notes)
    return told


def _rollout(
    sheet: Sheet,
    signals: Sequence[dict[str, Any]],
    rank: Any,
    width: int,
    listed: int,
    least: float,
) -> dict[str, Any]:
    """One rollout: what is known before its bytes are read, and the bytes."""
    planes: list[Bytes] = []
    counts = [0, 0, 0, 0]
    lists = None
    if sheet.lists is not None and listed:
        lists = sheet.lists.first(listed).mapped(rank)
        lists = lists.above(math.log(least)) if least else lists
        counts[:2] = lists.student.shape[1], lists.teacher.shape[1]
        planes += list_planes(lists, width)
    sampled, in_list = sampled_planes(rank[sheet.tokens], lists, width)
    planes += sampled
    has: list[int] = []
    peaks: list[list[float]] = []
    for place, signal in enumerate(signals):
        values = sheet.signals.get(signal["key"])
        if values is None:
            continue
        scale = Scale(signal["origin"], signal["span"], signal["direction"])
        codes = scale.encode(values)
        codes = np.where(in_list, np.uint8(ABSENT), codes) if signal["key"] == LOGPROB else codes
        planes.append(codes)
        at = int(np.nanargmax(values if signal["worst"] > 0 else -values))
        has.append(place)
        peaks.append([at, round(float(values[at]), 6)])
    planes += id_planes(sheet.places.astype(np.uint32), 3)
    for place in has:
        exact = sheet.signals[signals[place]["key"]][sheet.places]
        planes.append(np.frombuffer(exact.astype("<f4").tobytes(), np.uint8))
    if sheet.whole is not None:
        whole = sheet.whole.mapped(rank)
        counts[2:] = whole.student.shape[1], whole.teacher.shape[1]
        planes += list_planes(whole, width, fine=True)
    if sheet.success is not None:
        planes += list(SHARES.encode(sheet.success).T)
    text, size = pack(planes)
    return {
        "index": sheet.index,
        "right": sheet.right,
        "finish": sheet.finish,
        "tokens": len(sheet.tokens),
        "signals": has,
        "peaks": peaks,
        "lists": counts,
        "whole": len(sheet.places),
        "success": sheet.success is not None,
        "bytes": size,
        "data": text,
    }


def _by_frequency(sheets: Sequence[Sheet], size: int) -> Any:
    """Places in the glossary, the most frequent first, so that most take one byte; 0 stays 0."""
    counts = np.zeros(size, np.int64)
    for sheet in sheets:
        parts = [sheet.tokens]
        for lists in (sheet.lists, sheet.whole):
            parts += [] if lists is None else [lists.student.ravel(), lists.teacher.ravel()]
        counts += np.bincount(np.concatenate(parts), minlength=size)
    counts[0] = counts.max() + 1
    return np.argsort(-counts, kind="stable")


def _told(signal: Signal, sheets: Sequence[Sheet]) -> dict[str, Any] | None:
    """A signal with the range of its values over all sheets; None where no sheet has it.

    Colours end at the 99th percentile of the distance from the origin: a few extremes would make
    everything else pale.
    """
    found = [sheet.signals[signal.key] for sheet in sheets if signal.key in sheet.signals]
    if not found:
        return None
    away = np.abs(np.concatenate(found).astype(np.float64) - signal.origin)
    away = away[np.isfinite(away)]
    span = float(away.max())
    if signal.key == LOGPROB:
        span = min(span, LOGPROBS.span)
    end = float(np.quantile(away, 0.99)) or span or 1.0
    if signal.key == "overlap/ratio":
        span, end = 1.0, 1.0
    return {
        "key": signal.key,
        "title": signal.title,
        "unit": signal.unit,
        "says": signal.says,
        "origin": signal.origin,
        "direction": signal.direction,
        "worst": signal.worst,
        "span": span,
        "end": end,
    }


def _left_out(listed: int, least: float) -> str:
    if not listed:
        return f"likely tokens are shown for the {WORST} worst tokens of each rollout alone"
    return (
        f"likely tokens: the first {listed} of each side from {100 * least:g} % on are shown, and "
        f"all that was recorded for the {WORST} worst tokens of each rollout"
    )


def _fitting(rollouts: list[dict[str, Any]], room: int, notes: Notes) -> list[dict[str, Any]]:
    """The rollouts, or as many of each view, in order, as there is room for."""
    kept: list[dict[str, Any]] = []
    left = {rollout["view"]: room / len({r["view"] for r in rollouts}) for rollout in rollouts}
    for rollout in rollouts:
        left[rollout["view"]] -= len(rollout["data"])
        if left[rollout["view"]] >= 0:
            kept.append(rollout)
    if sum(len(rollout["data"]) for rollout in rollouts) <= room:
        return rollouts
    notes.add(f"{len(rollouts) - len(kept)} long rollouts are left out of the per-token view")
    return kept


def _file(name: str) -> str:
    return (files("tutelage.reports") / "templates" / name).read_text(encoding="utf-8")
