"""An alignment for a reader."""

from collections.abc import Sequence

from tutelage.alignment.estimates import Alignment
from tutelage.ops.alignment.pooling import Estimate, Pooled


def summary(found: Alignment) -> str:
    """Tables of teachers by objective, and by outcome for the run's own objective."""
    header: Sequence[str] = ("teacher", "objective", "advantage", "dot", "A", "reliability")
    rows: Sequence[Sequence[str]] = [
        (
            teacher,
            objective,
            told(pooled.advantage),
            told(pooled.dot),
            told(pooled.alignment) if pooled.signal else "no detectable signal",
            "-" if pooled.reliability is None else f"{pooled.reliability:.2f}",
        )
        for (teacher, objective), pooled in found.pooled.items()
    ]
    parts = [table(header, rows)]
    own = [(t, by) for (t, objective), by in found.groups.items() if objective == "objective"]
    header = ("teacher", "spines", "advantage", "dot", "A", "mean cosine", "as published")
    rows = [
        (
            teacher,
            str(verdict),
            told(pooled.advantage),
            told(pooled.dot),
            told(pooled.alignment) if pooled.signal else "no detectable signal",
            told(pooled.mean_cosine),
            _number(found.published[teacher][str(verdict)]),
        )
        for teacher, by in own
        for verdict, pooled in sorted(by["outcome"].items(), key=lambda item: str(item[0]))
    ]
    parts.append(table(header, rows))
    if found.differences:
        header = ("difference", "advantage", "dot", "A")
        rows = [
            (f"{one} - {other}", told(d.advantage), told(d.dot), told(d.alignment))
            for (one, other), d in found.differences.items()
        ]
        parts.append(table(header, rows))
    if found.best:
        told_apart = sum(name is not None for name in found.best.values())
        parts.append(f"best teacher told apart on {told_apart} of {len(found.best)} questions")
    parts.append(
        f"{found.nodes} nodes, {found.tokens:,} targeted tokens, {found.unknown} rollouts not "
        f"judged, {found.covered:.1%} of the student's mass forced token by token"
    )
    parts.append(
        "advantage: what one token of the teacher's would add to the chance of a right answer\n"
        "dot: what a small step of the objective would\n"
        "A: its direction; 1 where all of it points to success\n"
        "reliability: the share of what was measured that is not noise\n"
        "95 % intervals are over questions"
    )
    parts += sorted({f"note: {warning}" for p in _all(found) for warning in p.warnings})
    return "\n\n".join(parts)


def told(found: Estimate | None) -> str:
    """A number with its interval."""
    if found is None:
        return "-"
    if found.interval is None:
        return f"{found.value:.4f}"
    low, high = found.interval
    return f"{found.value:.4f} [{low:.4f}, {high:.4f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _all(found: Alignment) -> list[Pooled]:
    return list(found.pooled.values())
