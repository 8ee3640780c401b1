"""Suites of the lab: a verdict and a figure each."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tutelage.reports.figures import Figure, Trace
from tutelage.reports.records import Notes, document, listing, mapping, number, span
from tutelage.reports.results import Cells, Result, Table, dots, estimate


def read_lab(path: Path, name: str, place: str) -> list[Result]:
    """The suites of a folder, one result each; a single empty one where nothing can be read."""
    notes = Notes()
    found = document(path / "lab.json", notes, wanted=True)
    suites = [suite for suite in listing(found, "suites") if isinstance(suite, dict)]
    machine = document(path / "environment.json", notes)
    if suites:
        places = [f"{place}-{i}" for i in range(1, len(suites) + 1)]
        told = [
            _suite(suite, found, name, at, notes) for suite, at in zip(suites, places, strict=True)
        ]
        return [replace(told[0], environment=machine), *told[1:]]
    lead = ["No suite is judged yet."]
    return [Result(name=name, kind="lab", lead=lead, heading="Suites of the lab", notes=notes)]


def _suite(
    suite: Mapping[str, Any], lab: Mapping[str, Any], name: str, place: str, notes: Notes
) -> Result:
    seeds, first = number(lab.get("seeds")), number(lab.get("first_seed"))
    lead = [
        f"{suite.get('claim', '')} Verdict: {suite.get('verdict', 'none')}.",
        f"Task {lab.get('task')}, {seeds or 0:.0f} seeds from {first or 0:.0f} on. "
        f"Mirrors {suite.get('mirrors', '')}.",
    ]
    if seconds := number(suite.get("cpu_s")):
        lead[1] += f" It took {seconds:,.0f} seconds of one processor."
    if lab.get("short"):
        lead.append("A short run: models of three steps prove that everything runs, nothing else.")
    elif lab.get("judged_size") is False:
        lead.append(
            f"{number(lab.get('steps')) or 0:.0f} steps of distillation: not the size that the "
            "thresholds were chosen for."
        )
    if caution := suite.get("caution"):
        lead.append(str(caution))
    lead += [f"Seed {seed} is left out: {why}." for seed, why in mapping(suite, "left_out").items()]
    parts = [part for part in listing(suite, "parts") if isinstance(part, dict)]
    unit = str(suite.get("unit", ""))
    shown = {label: estimate(value) for label, value in mapping(suite, "shown").items()}
    figure = dots(
        place,
        f"{suite.get('suite')}: {suite.get('verdict')}",
        "Mean over seeds with Student's 95 % interval; every seed has models, prompts and samples "
        "of its own.",
        unit,
        {unit: shown},
    )
    table = Table(
        "Parts of the claim",
        ("number", "threshold", "mean over seeds", "so it"),
        [_row(part) for part in parts],
        "All must hold for the phenomenon to appear. Thresholds are older than the runs.",
    )
    return Result(
        name=name,
        kind="lab",
        lead=[sentence.replace("`", "") for sentence in lead],  # words of a terminal
        heading=str(suite.get("suite", "suite")),
        figures=[*([figure] if figure else []), *_curves(suite, place)],
        tables=[table] if parts else [],
        notes=notes,
    )


_UNITS = {
    "accuracy": ("Accuracy", "share of right held-out answers"),
    "overlap/mass_student": ("Shared mass", "student's probability of the shared tokens"),
    "overlap/advantage": ("Overlap advantage", "nats"),
    "entropy/gap": ("Entropy gap", "nats"),
    "entropy/student": ("Entropy of the student", "nats"),
    "entropy/teacher": ("Entropy of the teacher", "nats"),
    "reward/mean": ("Teacher's reward", "mean log-ratio of the sampled tokens, nats"),
}


def _curves(suite: Mapping[str, Any], place: str) -> Iterator[Figure]:
    """Each metric by step, a line an arm, and by place in the answer, a line an arm and when."""
    yield from _lines(suite, "curves", "steps", place, "", "step of distillation")
    yield from _lines(
        suite, "profiles", "places", f"{place}-place", " by place", "token of the answer"
    )


def _lines(
    suite: Mapping[str, Any], kept: str, along: str, place: str, by: str, axis: str
) -> Iterator[Figure]:
    for key, (title, unit) in _UNITS.items():
        traces = []
        for colour, (arm, curve) in enumerate(mapping(mapping(suite, kept), key).items()):
            x = [number(v) for v in listing(curve, along)]
            means = [number(v) for v in listing(curve, "mean")]
            if not x or len(x) != len(means) or None in x or None in means:
                continue
            ends = [span(v) for v in listing(curve, "interval")]
            low, high = zip(*ends, strict=True) if ends and None not in ends else ((), ())
            drawn = {"low": low, "high": high} if len(low) == len(x) else {}
            traces.append(
                Trace(run=arm, name="", x=x, y=means, colour=colour, **drawn)  # type: ignore[arg-type]
            )
        if traces:
            yield Figure(
                id=f"{place}-{key.replace('/', '-')}",
                title=f"{title}{by}",
                note="Mean over seeds with 95 % intervals where there are two seeds or more.",
                kind="lines",
                x=axis,
                y=unit,
                traces=tuple(traces),
            )


def _row(part: Mapping[str, Any]) -> Cells:
    above, below = number(part.get("above")), number(part.get("below"))
    threshold = f"above {above:g}" if above is not None else f"below {below or 0:g}"
    return [str(part.get("says", "")), threshold, estimate(part), str(part.get("state", ""))]
