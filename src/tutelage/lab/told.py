"""Verdicts of the lab as text."""

from tutelage.alignment.summary import table
from tutelage.lab.foretelling import foretold_as_text
from tutelage.lab.pairing import Made, key_of
from tutelage.lab.running import Judged, LabResult
from tutelage.lab.suites import SUITES
from tutelage.lab.verdicts import Estimate


def as_text(found: LabResult) -> str:
    """A block a suite: verdict, claim, and each number beside its threshold."""
    blocks = [block(judged) for judged in found.suites]
    if found.short:
        blocks.append("Short: models of three steps. This proves that everything runs, no claim.")
    elif not found.judged_size:
        blocks.append(
            f"{found.steps} steps of distillation: the thresholds were chosen for another size."
        )
    blocks.append(f"{found.cpu_s / 60:.1f} minutes of one processor, models included.")
    return "\n\n".join(blocks)


def listed() -> str:
    """Every suite with its claim and the figure it mirrors."""
    width = max(map(len, SUITES))
    lines = [
        f"{name:{width}}  {suite.claim}\n{'':{width}}  {suite.mirrors}"
        for name, suite in SUITES.items()
    ]
    return "\n".join(lines)


def block(judged: Judged) -> str:
    """A suite: verdict, claim, and each number beside its threshold."""
    lines = [f"{judged.name}: {judged.word}", f"  {judged.suite.claim}"]
    for part, found, state in judged.parts:
        threshold = f"above {part.above:g}" if part.above is not None else f"below {part.below:g}"
        lines.append(f"  {state:5}  {part.says}: {_number(found)}, {threshold}")
    lines += [f"  left out: seed {seed}, {why}" for seed, why in judged.failed.items()]
    return "\n".join(lines)


def _number(found: Estimate) -> str:
    if found.mean is None:
        return "undefined"
    count = len(found.values)
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    if found.interval is None:
        return f"{found.mean:+.3f} ({seeds}, no interval)"
    low, high = found.interval
    return f"{found.mean:+.3f} [{low:+.3f}, {high:+.3f}] ({seeds})"


def pairs_as_text(found: Made) -> str:
    """A line a pair, with what the package's own row says of the same pair."""
    rows = []
    for row in found.rows:
        kept = found.kept.get(key_of(row))
        rows.append(
            (
                f"{row['task']} {row['number']}",
                row["kind"],
                row["verdict"],
                f"{row['before']:.3f} -> {row['after']:.3f}",
                f"{row['teacher']:.3f}",
                "-" if kept is None else f"{kept['before']:.3f} -> {kept['after']:.3f}",
            )
        )
    header = ("pair", "kind", "verdict", "accuracy", "teacher", "in the package")
    parts = [table(header, rows), str(found.folder)]
    if found.foretold is not None:
        parts.insert(1, foretold_as_text(found.foretold))
    return "\n\n".join(parts)
