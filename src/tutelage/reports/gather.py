"""From the paths a user gives to everything that the page shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tutelage.errors import UsageError
from tutelage.paths import usable_path
from tutelage.reports.alignments import read_alignment
from tutelage.reports.catalogue import GROUPS
from tutelage.reports.comparing import Cell, differing_settings, final_numbers
from tutelage.reports.curves import curves
from tutelage.reports.depth import heatmaps
from tutelage.reports.figures import Figure
from tutelage.reports.lab import read_lab
from tutelage.reports.results import (
    Result,
    read_cold_start,
    read_controls,
    read_prompts,
)
from tutelage.reports.story import Story, read_story
from tutelage.reports.text import visible
from tutelage.runs.directory import where_runs_are

MOST_RUNS = 16
DEPTH = "By place in the answer"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page."""

    stories: list[Story] = field(default_factory=list)
    """Runs of `train`."""
    results: list[Result] = field(default_factory=list)
    """Results of other verbs."""
    groups: list[tuple[str, list[Figure]]] = field(default_factory=list)
    """Figures of the runs, by heading."""
    settings: list[tuple[str, list[str]]] = field(default_factory=list)
    """Settings that differ between the runs."""
    numbers: list[tuple[str, str, list[Cell]]] = field(default_factory=list)
    """Where the runs ended."""

    answers: list[tuple[str, Path]] = field(default_factory=list)
    """Name and directory of what may have answers to show token by token."""

    def figures(self) -> Iterator[Figure]:
        """All of them, in the order of the page."""
        for _, figures in self.groups:
            yield from figures
        for result in self.results:
            yield from result.figures


def gather(paths: Sequence[str | Path], *, whole: bool = False) -> Report:
    """Read what lies at `paths`: directories of runs and results, or folders that hold such.

    `whole` keeps every step of the metrics by position.

    Raises:
        UsageError: there is nothing to report at a path, or far too much.
    """
    found = [item for path in paths for item in _found(usable_path(path, "run"))]
    if len(found) > MOST_RUNS:
        raise UsageError(
            f"{len(found)} runs are more than one page can tell apart; name {MOST_RUNS} at most"
        )
    names = _names([path for path, _ in found])
    stories: list[Story] = []
    results: list[Result] = []
    for i, ((path, kind), name) in enumerate(zip(found, names, strict=True)):
        place = f"{kind}-{i + 1}"
        match kind:
            case "align":
                results.append(read_alignment(path, name, place))
            case "controls":
                results.append(read_controls(path, name, place))
            case "cold-start":
                results.append(read_cold_start(path, name, place))
            case "lab":
                results += read_lab(path, name, place)
            case "prompts":
                results.append(read_prompts(path, name))
            case _:
                stories.append(read_story(path, name, whole=whole))
    groups = [(title, list(curves(stories, title))) for title in GROUPS]
    groups.insert(3, (DEPTH, list(heatmaps(stories))))
    return Report(
        stories=stories,
        results=results,
        groups=[(title, figures) for title, figures in groups if figures],
        settings=differing_settings(stories) if len(stories) > 1 else [],
        numbers=final_numbers(stories),
        answers=[
            (name, path)
            for (path, kind), name in zip(found, names, strict=True)
            if kind in ("train", "align")
        ],
    )


def kind_of(path: Path) -> str | None:
    """What a directory or a file is a result of; None for anything else."""
    if path.is_file():
        return "prompts" if path.name.endswith(".summary.json") else None
    if (path / "lab.json").is_file():
        return "lab"
    if (path / "alignment.json").is_file() or (path / "spines.jsonl").is_file():
        return "align"
    if (path / "controls.json").is_file():
        return "controls"
    if (path / "summary.json").is_file() or (path / "before.json").is_file():
        return "cold-start"
    if (path / "config.yaml").is_file() or (path / "metrics.jsonl").is_file():
        return "train"
    return None


def _found(path: Path) -> Iterator[tuple[Path, str]]:
    """The path itself, the summary beside a prompts file, or the runs one level inside a folder."""
    if not path.exists():
        raise UsageError(f"{path} does not exist; {where_runs_are(path)}")
    summary = path.with_name(path.name + ".summary.json")
    if path.is_file() and summary.is_file():
        path = summary
    if kind := kind_of(path):
        yield path, kind
        return
    inside: list[tuple[Path, str]] = []
    if path.is_dir():
        children = sorted(p for p in (*path.iterdir(), *path.glob("runs/*")) if p.is_dir())
        inside = [(child, kind) for child in children if (kind := kind_of(child))]
    if not inside:
        raise UsageError(
            f"{path} is no run directory: it has neither config.yaml nor metrics.jsonl, holds no "
            "run, and is no result of align or rescue"
        )
    yield from inside


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    resolved = [path.resolve() for path in paths]
    resolved = [path.with_name(path.name.removesuffix(".summary.json")) for path in resolved]
    for parts in range(1, 4):
        names = [visible("/".join(path.parts[-parts:]), 60) for path in resolved]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]
