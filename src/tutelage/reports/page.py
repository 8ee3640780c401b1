"""The report: one HTML file that opens anywhere and asks nothing of the network."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.config import load_config
from tutelage.reports.figures import Curve, curves
from tutelage.runs.directory import (
    full_disk_told,
    open_run,
    read_json,
    read_lines,
    replace_text,
)

SHOWN_ROLLOUTS = 5


def write_report(runs: Sequence[str | Path]) -> Path:
    """Write `report.html` into the first run directory and return its path.

    Raises:
        UsageError: a path that is no run directory, or a damaged one.
    """
    stories = [read_story(Path(run)) for run in runs]
    path = Path(runs[0]) / "report.html"
    with full_disk_told(path):
        replace_text(path, render_page(stories))
    return path


def read_story(path: Path) -> dict[str, Any]:
    """What the page tells of one run."""
    run = open_run(path)
    # A run that was stopped early has not written all of these.
    records = list(read_lines(run.metrics)) if run.metrics.exists() else []
    check = run.path / "check.json"
    evaluations = [record for record in records if record["kind"] == "eval"]
    config = load_config(run.path / "config.yaml")
    return {
        "name": run.path.name,
        "pair": f"{Path(config.student.path).name} ← {Path(config.teacher_model.path).name}",
        "evaluations": evaluations,
        "training": [record for record in records if record["kind"] == "train"],
        "looks": read_json(check)["looks"] if check.exists() else [],
        "signals": [e for e in read_lines(run.events) if e["event"] == "signal"]
        if run.events.exists()
        else [],
        "rollouts": _before_and_after(run.path, evaluations),
        "config": (run.path / "config.yaml").read_text(encoding="utf-8"),
        "environment": read_json(run.path / "environment.json"),
    }


def render_page(stories: Sequence[Mapping[str, Any]]) -> str:
    """The page of one or more runs; all model text is escaped, all script is hashed."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("tutelage.reports"), autoescape=True, undefined=StrictUndefined
    )
    # What was not measured is an empty cell.
    environment.filters["percent"] = lambda v: "" if v is None else f"{100 * v:.1f} %"
    environment.filters["decimals"] = lambda v, places: "" if v is None else f"{v:.{places}f}"
    figures: list[Curve] = curves(stories)
    library, drawing = get_plotlyjs(), environment.get_template("draw.js").render()
    return environment.get_template("page.html").render(
        stories=stories,
        figures=figures,
        # `<` would let text inside the data end the script element.
        data=json.dumps([figure.plot for figure in figures]).replace("<", "\\u003c"),
        library=library,
        drawing=drawing,
        script_hashes=" ".join(_hash(script) for script in (library, drawing)),
    )


def _before_and_after(path: Path, evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not evaluations:
        return []
    first, last = (_rollouts(path, evaluations[i]["step"]) for i in (0, -1))
    pairs = [(first[key], last[key]) for key in first if key in last]
    return [{"before": before, "after": after} for before, after in pairs[:SHOWN_ROLLOUTS]]


def _rollouts(path: Path, step: int) -> dict[str, dict[str, Any]]:
    file = path / "rollouts" / f"step-{step}.jsonl"
    return {r["id"]: r for r in read_lines(file)} if file.exists() else {}


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
