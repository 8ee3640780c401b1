"""The report: one HTML file that opens anywhere and asks nothing of the network."""

import base64
import csv
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tutelage.paths import usable_path
from tutelage.reports.figures import Figure
from tutelage.reports.gather import DEPTH, Report, gather
from tutelage.reports.records import number
from tutelage.reports.results import check_table
from tutelage.reports.section import Section
from tutelage.reports.story import SHOWN_TEXT
from tutelage.reports.text import visible
from tutelage.reports.tokens import token_section
from tutelage.runs.directory import full_disk_told, output_file, replace_text

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_EVALUATIONS = 60
"""Rows of the table of evaluations; evenly spaced where there are more."""


def write_report(
    runs: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    csv_folder: str | Path | None = None,
) -> Path:
    """Write the page of one or more runs or results and return its path.

    Args:
        runs: directories that train, align and rescue wrote, the prompts file that rescue prompts
            wrote, or folders that hold such directories.
        output: the file; `report.html` in the first directory by default.
        csv_folder: also write the data of every figure there, complete, a file each.

    Raises:
        UsageError: there is nothing to report at a path.
        MachineError: the disk is full.
    """
    report = gather(runs)
    path = output_file(_beside(usable_path(runs[0], "run")) if output is None else output)
    with full_disk_told(path):
        replace_text(path, render_page(report))
        if csv_folder is not None:
            write_csv(gather(runs, whole=True).figures(), usable_path(csv_folder, "csv folder"))
    return path


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.report.html") if path.is_file() else path / "report.html"


def write_csv(figures: Iterable[Figure], folder: Path) -> None:
    """A file a figure with everything that was recorded for it."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        with (folder / f"{figure.id}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(figure.columns)
            writer.writerows([_cell(value) for value in row] for row in figure.rows())


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def sections(report: Report) -> list[Section]:
    """Parts with a script of their own; they stand before the settings, in this order."""
    tokens = token_section(report.answers)
    return [] if tokens is None else [tokens]


def render_page(report: Report) -> str:
    """The page; all text of models and files is escaped, all script is hashed."""
    from plotly.offline import get_plotlyjs

    environment = _environment()

    def source(name: str) -> str:
        text, _, _ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]
        return text

    parts = sections(report)
    library = get_plotlyjs()
    scripts = [
        source("plotly.js"),
        source("figures.js"),
        source("page.js"),
        *(part.script for part in parts if part.script),
    ]
    page = environment.get_template("page.html").render(
        report=report,
        stories=report.stories,
        results=report.results,
        title=_title(report),
        checks={story.name: check_table(story.check) for story in report.stories},
        evaluations=_evaluations(report),
        samples=[(story, _shortened(story.samples)) for story in report.stories if story.samples],
        sections=parts,
        depth=DEPTH,
        style=Markup(source("page.css")),
        data=embedded([figure.drawn() for figure in report.figures()]),
        part_data=[(part.id, embedded(part.data)) for part in parts if part.data],
        scripts=[Markup(script) for script in scripts],
        library=base64.b64encode(zlib.compress(library.encode("utf-8"), 9)).decode("ascii"),
        policy=" ".join(_hash(script) for script in (library, *scripts)),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tutelage.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {
        "percent": _percent,
        "number": _number,
        "short": _short,
        "facts": _facts,
    }
    environment.tests["number"] = lambda v: number(v) is not None
    return environment


def embedded(data: Any) -> Markup:
    """JSON for a script element: no text inside can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _finalize(value: Any) -> Any:
    """Every text that a template prints; nothing for what was not measured."""
    if value is None:
        return ""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.1f} %"


def _number(value: float | None, sign: str = "") -> str:
    """Three significant digits, whole numbers in full."""
    if value is None:
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.3g}"


def _short(text: Any, most: int = 400) -> str:
    return visible(str(text), most)


def _facts(environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What environment.json holds, its versions at the end."""
    versions = environment.get("versions")
    own = [(key, value) for key, value in environment.items() if key != "versions"]
    return own + (list(versions.items()) if isinstance(versions, dict) else [])


def _title(report: Report) -> str:
    stories, results = report.stories, report.results
    if len(stories) == 1:
        return stories[0].pair
    if stories:
        return f"{len(stories)} runs side by side"
    return ", ".join(dict.fromkeys(result.title for result in results))


def _shortened(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            when: {k: visible(v, SHOWN_TEXT) if isinstance(v, str) else v for k, v in side.items()}
            for when, side in pair.items()
        }
        for pair in samples
    ]


def _evaluations(report: Report) -> list[tuple[Any, list[str], list[list[Any]], int]]:
    """(story, header, rows, all) of the table of evaluations."""
    from tutelage.reports.comparing import NUMBERS
    from tutelage.reports.series import evenly

    tables = []
    for story in report.stories:
        shown = {key: (name, form) for key, name, form in NUMBERS if story.held_out.get(key)}
        columns = {
            key: dict(zip(series.steps, series.values, strict=True))
            for key in shown
            if (series := story.held_out.get(key))
        }
        steps = sorted({step for column in columns.values() for step in column})
        rows = [
            [int(step), *((columns[key].get(step), shown[key][1]) for key in columns)]
            for step in evenly(steps, MOST_EVALUATIONS)
        ]
        if rows:
            tables.append((story, [shown[key][0] for key in columns], rows, len(steps)))
    return tables


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
