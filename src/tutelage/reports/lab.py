"""Suites of the lab: a verdict and a figure each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.reports.records import Notes, document, listing, mapping, number
from tutelage.reports.results import Cells, Result, Table, dots, estimate


def read_lab(path: Path, name: str, place: str) -> list[Result]:
    """The suites of a folder, one result each; a single empty one where nothing can be read."""
    notes = Notes()
    found = document(path / "lab.json", notes, wanted=True)
    suites = [suite for suite in listing(found, "suites") if isinstance(suite, dict)]
    if suites:
        places = [f"{place}-{i}" for i in range(1, len(suites) + 1)]
        return [
            _suite(suite, found, name, at, notes) for suite, at in zip(suites, places, strict=True)
        ]
    lead = ["No suite is judged yet."]
    return [Result(name=name, kind="lab", lead=lead, heading="Suites of the lab", notes=notes)]


def _suite(
    suite: Mapping[str, Any], lab: Mapping[str, Any], name: str, place: str, notes: Notes
) -> Result:
    seeds = number(lab.get("seeds"))
    lead = [
        f"{suite.get('claim', '')} Verdict: {suite.get('verdict', 'none')}.",
        f"Task {lab.get('task')}, {seeds or 0:.0f} seeds. Mirrors {suite.get('mirrors', '')}.",
    ]
    if lab.get("short"):
        lead.append("A short run: models of three steps prove that everything runs, nothing else.")
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
        lead=lead,
        heading=str(suite.get("suite", "suite")),
        figures=[figure] if figure else [],
        tables=[table] if parts else [],
        notes=notes,
    )


def _row(part: Mapping[str, Any]) -> Cells:
    above, below = number(part.get("above")), number(part.get("below"))
    threshold = f"above {above:g}" if above is not None else f"below {below or 0:g}"
    return [str(part.get("says", "")), threshold, estimate(part), str(part.get("state", ""))]
