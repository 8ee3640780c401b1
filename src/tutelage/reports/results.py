"""Results of other verbs than `train`: cold start, controls, prompts, checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.reports.figures import Figure, Style, Trace
from tutelage.reports.records import Notes, document, listing, mapping, number, pick, rows, span
from tutelage.reports.series import Columns

MOST_ROWS = 40
_TITLES = {
    "align": "Where the teachers help",
    "rescue cold-start": "Cold start",
    "rescue controls": "The run and its controls",
    "rescue prompts": "Prompts",
}

Cells = list[Any]
"""Text, or a number, or (number, interval)."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a heading; undefined cells are None."""

    title: str
    header: tuple[str, ...]
    rows: list[Cells]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What stands under the heading of one result."""

    name: str
    kind: str
    """The verb that wrote it."""
    lead: list[str]
    """What it found, in sentences."""
    heading: str = ""
    """Where one file holds several results; empty: the verb's."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    config_text: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its heading."""
        return self.heading or _TITLES[self.kind]


def estimate(found: Any) -> tuple[float, tuple[float, float] | None] | None:
    """A value with its interval, as the alignment and the check write them."""
    value = number(pick(found, "value"))
    return None if value is None else (value, span(pick(found, "interval")))


def dots(
    place: str,
    title: str,
    note: str,
    unit: str,
    series: Mapping[str, Mapping[str, Any]],
) -> Figure | None:
    """Estimates with intervals, a line a label: {series: {label: (value, interval) or None}}."""
    labels = list(dict.fromkeys(label for values in series.values() for label in values))[
        :MOST_ROWS
    ]
    parts, data = [], []
    for name, values in series.items():
        column = [values.get(label) for label in labels]
        if not any(column):
            continue
        ends = [found[1] if found else None for found in column]
        parts.append(
            {
                "name": name,
                "values": [found[0] if found else None for found in column],
                "low": [end[0] if end else None for end in ends],
                "high": [end[1] if end else None for end in ends],
            }
        )
        for label, found, end in zip(labels, column, ends, strict=True):
            if found:
                data.append((label, name, found[0], *(end or (None, None))))
    if not parts:
        return None
    return Figure(
        id=place,
        title=title,
        note=note,
        kind="dots",
        x=unit,
        y="",
        columns=("label", "series", "value", "low", "high"),
        body={"labels": labels, "parts": parts},
        data=tuple(data),
    )


def read_cold_start(path: Path, name: str, place: str) -> Result:
    """Answers, imitation, and the checks before and after."""
    notes = Notes()
    summary = document(path / "summary.json", notes, wanted=True)
    checks = {w: document(path / f"{w}.json", notes) for w in ("before", "after")}
    train, validation = Columns(), Columns()
    for record in rows(path / "metrics.jsonl", notes):
        (validation if record.get("kind") == "validation" else train).add(record)
    lead = []
    for when, check in checks.items():
        if check:
            because = pick(check, "reasons", 0, "text")
            lead.append(f"Check {when}: {check.get('verdict')}; {because}.")
    if summary:
        lead.append(_more(summary, checks["after"]))
    traces = []
    styles: dict[Style, tuple[str, Columns]] = {
        "line": ("validation", validation),
        "faint": ("training", train),
    }
    for style, (label, columns) in styles.items():
        if series := columns.get("loss"):
            traces.append(Trace(run=name, name=label, x=series.steps, y=series.values, style=style))
    figures = []
    if traces:
        figures.append(
            Figure(
                id=f"{place}-loss",
                title="Imitation",
                note="Cross-entropy on the teacher's answers; the student of the lowest validation "
                "loss is kept.",
                kind="lines",
                x="step of imitation",
                y="nats per token",
                traces=tuple(traces),
            )
        )
    counted: list[Cells] = []
    if answers := mapping(summary, "answers"):
        counted = [[k, number(answers.get(k))] for k in ("slots", "tries", "kept", "dropped")]
        rejected = mapping(answers, "rejected")
        counted += [[f"rejected: {why}", number(n)] for why, n in rejected.items()]
    return Result(
        name=name,
        kind="rescue cold-start",
        lead=lead,
        figures=figures,
        tables=[Table("The teacher's answers", ("", "count"), counted)] if counted else [],
        notes=notes,
        config_text=text_of(path / "config.yaml"),
        environment=document(path / "environment.json", notes),
    )


def _more(summary: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    from tutelage.rescue.cold_start_summary import more_of_it

    try:
        return f"More cold start: {more_of_it(summary['imitation'], after or None)}."
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        return "Whether more of it would help is not recorded."


def read_controls(path: Path, name: str, place: str) -> Result:
    """A run beside its controls, over seeds."""
    notes = Notes()
    found = document(path / "controls.json", notes, wanted=True)
    metric = str(found.get("metric", "accuracy"))
    arms = [arm for arm in listing(found, "arms") if isinstance(arm, dict)]
    means = {str(a.get("arm")): _arm(a, "mean", "interval") for a in arms}
    gains = {str(a.get("arm")): _arm(a, "difference", "difference_interval") for a in arms}
    gains = {label: value for label, value in gains.items() if value}
    lead = []
    for label, value in gains.items():
        ends = value[1] if value else None
        if ends is None:
            continue
        better, worse = (ends[0] > 0, ends[1] < 0)
        if metric != "accuracy":
            better, worse = worse, better
        words = (
            "is better than" if better else "is worse than" if worse else "is not told apart from"
        )
        lead.append(f"The run {words} {label}.")
    lead += [f"Left out: {arm}, {why}." for arm, why in mapping(found, "left_out").items()]
    made = [
        dots(
            f"{place}-arms",
            "The run and its controls",
            "Mean over seeds with 95 % intervals. Every arm had as many steps of as many rollouts.",
            metric,
            {metric: means},
        ),
        dots(
            f"{place}-differences",
            "What the run has that its controls have not",
            "The run minus each arm, paired by seed. Where the interval includes 0, the control "
            "did as well.",
            f"difference of {metric}",
            {"distil minus it": gains},
        ),
    ]
    table = Table(
        "Arms",
        ("arm", "seeds", metric, "distil minus it"),
        [
            [str(a.get("arm")), len(mapping(a, "values")), means[str(a.get("arm"))],
             gains.get(str(a.get("arm")))]
            for a in arms
        ],
    )  # fmt: skip
    return Result(
        name=name,
        kind="rescue controls",
        lead=lead,
        figures=[figure for figure in made if figure],
        tables=[table] if arms else [],
        notes=notes,
        config_text=text_of(path / "config.yaml"),
        environment=document(path / "environment.json", notes),
    )


def _arm(arm: Mapping[str, Any], value: str, ends: str) -> Any:
    mean = number(arm.get(value))
    return None if mean is None else (mean, span(arm.get(ends)))


def read_prompts(path: Path, name: str) -> Result:
    """What `rescue prompts` kept, dropped and found leaked; `path` is the summary."""
    notes = Notes()
    found = document(path, notes, wanted=True)
    lead = []
    count, written = number(found.get("rows")), number(found.get("written"))
    if count is not None and written is not None:
        lead.append(f"{written:,.0f} rows written of {count:,.0f}.")
    tables = []
    for key, title, first in (
        ("met", "Rows that repeat a known question", "of"),
        ("leaks", "Leaked evaluation questions", "evaluation set"),
    ):
        given = mapping(found, key)
        counts = {k: (pick(v, "leaked") if key == "leaks" else v) for k, v in given.items()}
        kinds = list(dict.fromkeys(n for c in counts.values() if isinstance(c, dict) for n in c))
        body = [[name, *(number(pick(c, k)) for k in kinds)] for name, c in counts.items()]
        if kinds:
            tables.append(Table(title, (first, *kinds), body[:MOST_ROWS]))
        elif given:
            lead.append(f"{title}: none.")
    templates: list[Cells] = [
        [
            source,
            number(pick(t, "rows")),
            *(str(pick(t, end) or "") for end in ("prefix", "suffix")),
        ]
        for source, learned in mapping(found, "templates").items()
        for t in listing(learned, "templates")
    ]
    if templates:
        header = ("set", "rows", "prefix", "suffix")
        tables.append(Table("Templates that were learned", header, templates[:MOST_ROWS]))
    if scores := mapping(found, "scores"):
        body = [
            [key, number(value), number(pick(scores, "mean_selected", key))]
            for key, value in mapping(scores, "mean").items()
        ]
        tables.append(Table("Scores of the pair", ("mean", "all", "selected"), body))
    if example := mapping(found, "example"):
        body = [[w, str(example.get(w, ""))] for w in ("before", "after")]
        tables.append(Table("One prompt", ("", "text"), body))
    return Result(name=name, kind="rescue prompts", lead=lead, tables=tables, notes=notes)


def check_table(check: Mapping[str, Any]) -> Table | None:
    """What `check` found of each teacher before training."""
    body = []
    for look in listing(check, "looks"):
        gap = pick(look, "capability", "accuracy")
        value, low, high = (number(pick(gap, k)) for k in ("gap", "gap_low", "gap_high"))
        ends = None if low is None or high is None else (low, high)
        body.append(
            [
                str(pick(look, "teacher") or ""),
                str(pick(look, "verdict") or ""),
                estimate(pick(look, "alignment", "advantage")),
                None if value is None else (value, ends),
                number(pick(look, "agreement", "overlap/mass_student")),
                number(pick(look, "agreement", "kl/reverse")),
                str(pick(look, "reasons", 0, "text") or ""),
            ]
        )
    if not body:
        return None
    return Table(
        "Before training: check",
        ("teacher", "verdict", "advantage", "accuracy gap", "shared mass", "reverse KL", "why"),
        body[:MOST_ROWS],
    )


def text_of(path: Path) -> str:
    """The beginning of a text file; empty where there is none."""
    if not path.is_file():
        return ""
    return path.read_bytes()[:200_000].decode("utf-8", "replace")
