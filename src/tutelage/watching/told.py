"""What happened in a run, a line each, for logs and for terminals that cannot redraw."""

from collections.abc import Mapping
from typing import Any

from tutelage.terminal import one_line
from tutelage.watching.view import SIGNALS, Signal, View


def record_line(record: Mapping[str, Any]) -> str | None:
    """A record or event that is worth a line of its own; None for the others."""
    match record.get("kind", record.get("event")):
        case "eval":
            return evaluation_line(record)
        case "signal":
            return warning_line(record)
        case "tracker_failed":
            return f"tracker {record.get('tracker')}: {record.get('text')}."
        case _:
            return None


def evaluation_line(record: Mapping[str, Any]) -> str:
    """A held-out evaluation."""
    parts = [f"step {record['step']:>4}"]
    if "accuracy" in record:
        interval = ""
        if "accuracy/low" in record:
            interval = f" [{record['accuracy/low']:.3f}, {record['accuracy/high']:.3f}]"
        parts.append(f"accuracy {record['accuracy']:.3f}{interval}")
    parts += [
        f"{signal.label} {record[signal.key]:.{signal.digits}f}"
        for signal in SIGNALS[1:]
        if signal.key in record
    ]
    return "  ".join(parts)


def warning_line(told: Mapping[str, Any]) -> str:
    """What a guard or a rule noticed, and what to do."""
    step = f"step {told['step']}, " if "step" in told else ""
    advice = f" {told['advice']}." if told.get("advice") else ""
    return one_line(f"{step}{told.get('name')}: {told.get('evidence')}.{advice}", 1000)


def progress_line(view: View, remaining_s: float | None) -> str:
    """How far a run is."""
    parts = [f"step {view.step}" + (f" of {view.steps}" if view.steps else "")]
    if view.step_s is not None:
        parts.append(f"{duration(view.step_s)} a step")
    if remaining_s:
        parts.append(f"about {duration(remaining_s)} left")
    return ", ".join(parts)


def signal_text(view: View, signal: Signal) -> str:
    """Where a signal began and where it is, with its unit."""
    values = view.series[signal.key]
    first, last = values[0][1], values[-1][1]
    text = f"{last:.{signal.digits}f}"
    if len(values) > 1:
        text = f"{first:.{signal.digits}f} -> {text}"
    latest = view.latest
    if signal.key == "accuracy" and "accuracy/low" in latest and "accuracy/high" in latest:
        text += f" [{latest['accuracy/low']:.3f}, {latest['accuracy/high']:.3f}]"
    if signal.unit:
        text += f" {signal.unit}"
    if signal.key == "rollout/length" and "rollout/truncated" in latest:
        text += f", {latest['rollout/truncated']:.0%} cut off"
    return text


def duration(seconds: float) -> str:
    """Seconds for a reader: two figures, and the largest units that hold them."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else f"{seconds:.3f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {part_name}"
    return f"{whole // 60} min {whole % 60} s"
