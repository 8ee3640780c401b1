"""The figures of runs against the step, and where their time went."""

from collections.abc import Iterator, Sequence

from tutelage.reports.catalogue import GROUPS, Spec
from tutelage.reports.figures import Figure, Style, Trace
from tutelage.reports.series import Columns, Series, evenly
from tutelage.reports.story import Story

MOST_DRAWN = 3000
"""Rollouts in a scatter of points."""
MOST_SOURCES = 8


PHASES = ("rollout", "verify", "score", "update", "optimizer", "probe", "sync")


def curves(stories: Sequence[Story], group: str) -> Iterator[Figure]:
    """The figures of a group for which at least one run has data."""
    for spec in GROUPS[group]:
        traces = [
            trace
            for i, story in enumerate(stories)
            for trace in _traces(spec, story, i, len(stories))
        ]
        if traces:
            yield Figure(
                id=spec.id,
                title=spec.title,
                note=spec.note,
                kind="lines",
                x="optimizer step",
                y=spec.unit,
                scale=spec.scale,
                traces=tuple(traces),
            )
    match group:
        case "Accuracy":
            yield from _by_source(stories)
            yield from _probes(stories)
        case "Rewards of tokens and answers":
            yield from _points(stories)
        case "Speed and memory":
            yield from _phases(stories)


def _traces(spec: Spec, story: Story, place: int, runs: int) -> Iterator[Trace]:
    for i, (key, name) in enumerate(spec.keys):
        colour, dash = (i, i) if runs == 1 else (place, i)
        # Of an evaluation this is the accuracy again.
        held_out = None if key == "rollout/accuracy" else story.held_out.get(key)
        train = story.train.get(key) if spec.train or held_out is None else None
        if train is not None and (spec.train or held_out is None):
            yield _trace(story.name, name, train, colour, dash, style="faint")
        if held_out is not None and key.startswith("teacher/"):
            yield _level(story, key, name, colour)
        elif held_out is not None:
            yield _trace(story.name, name, held_out, colour, dash, story.held_out, key)
    if spec.id == "accuracy" and story.held_out.get("teacher/accuracy"):
        yield _level(story, "teacher/accuracy", "teacher", 2 if runs == 1 else place)


def _trace(
    run: str,
    name: str,
    series: Series,
    colour: int,
    dash: int,
    columns: Columns | None = None,
    key: str = "",
    style: Style = "line",
) -> Trace:
    ends = columns and (columns.get(f"{key}/low"), columns.get(f"{key}/high"))
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    if (
        ends
        and ends[0]
        and ends[1]
        and len(ends[0].values) == len(ends[1].values) == len(series.values)
    ):
        low, high = ends[0].values, ends[1].values
    return Trace(
        run=run,
        name=name,
        x=series.steps,
        y=series.values,
        low=low,
        high=high,
        colour=colour,
        dash=dash,
        style=style,
    )


def _level(story: Story, key: str, name: str, colour: int) -> Trace:
    """A value of the first evaluation, as a level over the whole run."""
    series = story.held_out.get(key)
    assert series is not None
    last = max(
        (s.steps[-1] for c in (story.train, story.held_out) for k in c if (s := c.get(k))),
        default=series.steps[0],
    )
    ends = [series.steps[0], last]
    return Trace(
        run=story.name, name=name, x=ends, y=[series.values[0]] * 2, colour=colour, style="level"
    )


def _by_source(stories: Sequence[Story]) -> Iterator[Figure]:
    prefix = "accuracy/source/"
    traces = []
    for place, story in enumerate(stories):
        names = [
            key.removeprefix(prefix)
            for key in story.held_out
            if key.startswith(prefix) and not key.endswith(("/low", "/high", "/questions"))
        ]
        for i, name in enumerate(names[:MOST_SOURCES]):
            series = story.held_out.get(prefix + name)
            if series is not None:
                colour = i if len(stories) == 1 else place
                traces.append(
                    _trace(story.name, name, series, colour, i, story.held_out, prefix + name)
                )
    if traces:
        yield Figure(
            id="accuracy-source",
            title="Accuracy by source",
            note="Held-out questions of each data source (the eight first recorded), with 95 % "
            "intervals. A source that falls while the mean rises pays for the others.",
            kind="lines",
            x="optimizer step",
            y="share of right answers",
            scale="share",
            traces=tuple(traces),
        )


def _probes(stories: Sequence[Story]) -> Iterator[Figure]:
    traces = [
        _trace(story.name, "", series, i, 0, story.probes, "alignment/advantage")
        for i, story in enumerate(stories)
        if (series := story.probes.get("alignment/advantage"))
    ]
    if traces:
        yield Figure(
            id="probes",
            title="What the teacher still adds",
            note="Probes during training: what one token of the teacher's would add to the chance "
            "of a right answer, with 95 % intervals. At or below 0 the teacher is exhausted.",
            kind="lines",
            x="optimizer step",
            y="advantage, chance of a right answer",
            traces=tuple(traces),
        )


def _points(stories: Sequence[Story]) -> Iterator[Figure]:
    traces, drawn, known = [], 0, 0
    for place, story in enumerate(stories):
        shown = evenly(story.points, MOST_DRAWN // len(stories))
        known, drawn = known + len(story.points), drawn + len(shown)
        for right, name in ((True, "right"), (False, "wrong")):
            chosen = [p for p in shown if p[2] == right]
            if chosen:
                traces.append(
                    Trace(
                        run=story.name,
                        name=name,
                        x=[p[0] for p in chosen],
                        y=[p[1] for p in chosen],
                        colour=(2 if right else 1) if len(stories) == 1 else place,
                        dash=0 if right else 1,
                        style="points",
                    )
                )
    if traces:
        left = f" {drawn:,} of {known:,} recorded rollouts are drawn." if drawn < known else ""
        yield Figure(
            id="sequence-reward",
            title="Sequence reward against correctness",
            note="A point a recorded rollout: mean of log q − log p over its tokens. Where right "
            "(circles) lie above wrong (crosses) the teacher tells them apart, whether or not its "
            f"tokens lead there.{left}",
            kind="lines",
            x="optimizer step",
            y="log q − log p, nats per token",
            traces=tuple(traces),
        )


def _phases(stories: Sequence[Story]) -> Iterator[Figure]:
    found: dict[str, list[float | None]] = {}
    for phase in PHASES:
        means = []
        for story in stories:
            series = story.train.get(f"perf/{phase}_s")
            means.append(sum(series.values) / max(1, story.steps) if series else None)
        if any(m is not None for m in means):
            found[phase] = means
    if found:
        runs = [story.name for story in stories]
        yield Figure(
            id="phases",
            title="Where the time goes",
            note="Mean seconds of a training step by phase.",
            kind="bars",
            x="seconds per step",
            y="run",
            columns=("run", "phase", "seconds per step"),
            body={"runs": runs, "parts": [{"name": p, "values": v} for p, v in found.items()]},
            data=tuple(
                (run, phase, value)
                for phase, means in found.items()
                for run, value in zip(runs, means, strict=True)
                if value is not None
            ),
        )
