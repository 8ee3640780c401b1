"""Controls for a reader: a table, and in words whether the run distilled."""

from tutelage.alignment.summary import table
from tutelage.rescue.controls import ARMS, Compared, Controls

_ABOUT: dict[str, str] = {"start": "the student before", **ARMS}


def summary(found: Controls) -> str:
    """Means over seeds, paired differences, and what follows."""
    rows = [
        (
            arm.arm,
            _ABOUT[arm.arm],
            str(len(arm.values)),
            _told(arm.mean, arm.interval, ""),
            "-" if arm.difference is None else _told(arm.difference, arm.difference_interval, "+"),
        )
        for arm in found.arms
    ]
    header = ("arm", "what it is", "seeds", found.metric, "distil minus it")
    parts = [table(header, rows)]
    parts += [f"left out: {arm}, {why}" for arm, why in found.left_out.items()]
    parts += [verdict(arm, found.metric) for arm in found.arms if arm.arm != "distil"]
    return "\n\n".join([parts[0], "\n".join(parts[1:])])


def verdict(arm: Compared, metric: str) -> str:
    """One control in words."""
    name = _ABOUT[arm.arm]
    if arm.difference is None or arm.difference_interval is None:
        return f"{name}: not compared"
    low, high = arm.difference_interval
    better, worse = (low > 0, high < 0) if metric == "accuracy" else (high < 0, low > 0)
    if better:
        return f"the run is better than its control: {name}"
    if worse:
        return f"the run is worse than its control: {name}"
    return f"the run is not told apart from its control: {name}"


def _told(mean: float, interval: tuple[float, float] | None, sign: str) -> str:
    if interval is None:
        return f"{mean:{sign}.3f}"
    return f"{mean:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
