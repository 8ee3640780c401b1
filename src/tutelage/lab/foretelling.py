"""How well gains are foretold of kinds of pairs that were not seen; pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.alignment.summary import table
from tutelage.diagnose.prediction import (
    Predictor,
    Row,
    factor_of,
    gained,
    interval_of,
    limit_of,
    unseen,
)
from tutelage.lab.population import KINDS
from tutelage.ops.intervals import proportion_interval

Floats = NDArray[np.float64]
SINGLE = {
    "teacher's accuracy": ("teacher_accuracy", 1),
    "overlap ratio": ("overlap_ratio", 1),
    "reverse KL, the smaller the better": ("kl_reverse", -1),
    "accuracy gap": ("accuracy_gap", 1),
    "mean cosine": ("mean_cosine", 1),
    "pooled alignment": ("alignment", 1),
    "pooled advantage": ("advantage", 1),
}
"""What people go by, with the sign that they mean."""
COLLAPSE = -0.1
"""A pair collapsed where its gain lies below this, and is below 0 with its 95 % interval."""
_GAP = 0.1  # below it the share of the gap that was recovered is mostly noise
_GAIN = 0.05  # from here on, with a 95 % interval above 0, a pair gained
_HAPPENED = ("gained", "flat", "harmed")
_FEWEST_KINDS = 4
_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share with its 95 % Wilson interval."""

    count: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """count / of."""
        return self.count / self.of


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Spearman's rank correlation with what happened."""

    value: float
    interval: tuple[float, float] | None
    """95 %, bootstrap over groups of pairs that share models; None where that has no spread."""
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """The predictor on pairs of kinds that it had not seen, and what it is compared with."""

    pairs: int
    kinds: int
    rank: Rank | None
    """Foretold and true gain."""
    recovery: Rank | None
    """The same of the share of the gap that was recovered, where the gap is .1 or more."""
    error: float
    """Mean absolute error of the gain."""
    coverage: Rate
    """90 % intervals, whose width was learnt without the kind either."""
    width: float
    """Mean width of those intervals."""
    by_kind: dict[str, tuple[float, float]]
    """Mean absolute error and coverage."""
    single: dict[str, Rank | None]
    """Single measurements, their signs as people mean them."""
    verdicts: dict[str, dict[str, int]]
    """Verdict of `check` -> how many gained, stayed flat, were harmed."""
    go: Rate | None
    """Collapsed among those whose verdict is go."""
    collapsed: Rate
    """Collapsed among all."""
    outside: Rate
    """Too far from all pairs of other kinds to be called known."""
    without_task: Rank | None
    """As `rank`, where the pair's task is left out instead of its kind."""
    without_group: Rank | None
    """As `rank`, where the pairs that share its models are left out instead."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def judge_predictor(rows: Sequence[Row], *, seed: int = 0) -> Foretold | None:
    """Leave one kind out at a time; None with too few kinds to learn from.

    Intervals are learnt inside: the width for a kind comes of the errors on the other kinds, each
    foretold without itself and without it.
    """
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    if len(kinds) < _FEWEST_KINDS:
        return None
    truth, groups = gained(rows), [f"{r['task']} {r['number'] // len(KINDS)}" for r in rows]
    in_groups = [{**row, "group": group} for row, group in zip(rows, groups, strict=True)]
    foretold, spreads = unseen(rows)
    covered, widths, outside = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    for kind in kinds:
        others = [row for row in rows if row["kind"] != kind]
        inner, inner_spreads = unseen(others)
        factor = factor_of(inner - gained(others), inner_spreads)
        predictor = Predictor(others)
        limit = limit_of(predictor)
        for i, row in enumerate(rows):
            if row["kind"] == kind:
                student = row["student_accuracy"]
                low, high = interval_of(foretold[i], spreads[i], factor, student)
                covered[i], widths[i] = low <= truth[i] <= high, high - low
                outside[i] = predictor.distance(row) > limit
    errors = np.abs(foretold - truth)
    collapsed = (truth < COLLAPSE) & np.array([row["gain_high"] < 0 for row in rows])
    go = np.array([row["verdict"] == "go" for row in rows])
    gaps = np.array([row["teacher"] - row["before"] for row in rows])
    gaps = np.where(gaps >= _GAP, gaps, np.nan)
    of_kind = {kind: np.array([row["kind"] == kind for row in rows]) for kind in kinds}
    return Foretold(
        pairs=len(rows),
        kinds=len(kinds),
        rank=_rank(foretold, truth, groups, seed),
        recovery=_rank(foretold / gaps, truth / gaps, groups, seed),
        error=float(errors.mean()),
        coverage=_rate(covered),
        width=float(widths.mean()),
        by_kind={
            kind: (float(errors[mine].mean()), float(covered[mine].mean()))
            for kind, mine in of_kind.items()
        },
        single={
            name: _rank(sign * _column(rows, key), truth, groups, seed)
            for name, (key, sign) in SINGLE.items()
        },
        verdicts=_verdicts(rows, truth),
        go=_rate(collapsed[go]) if go.any() else None,
        collapsed=_rate(collapsed),
        outside=_rate(outside),
        without_task=_without(rows, "task", truth, groups, seed),
        without_group=_without(in_groups, "group", truth, groups, seed),
    )


def _verdicts(rows: Sequence[Row], truth: Floats) -> dict[str, dict[str, int]]:
    told: dict[str, dict[str, int]] = {}
    for row, gain in zip(rows, truth, strict=True):
        gained_it = row["gain_low"] > 0 and gain >= _GAIN
        word = "gained" if gained_it else "harmed" if row["gain_high"] < 0 else "flat"
        counts = told.setdefault(row["verdict"], dict.fromkeys(_HAPPENED, 0))
        counts[word] += 1
    return told


def _without(
    rows: Sequence[Row], by: str, truth: Floats, groups: Sequence[str], seed: int
) -> Rank | None:
    """None where nothing would be left to learn from."""
    if len({row[by] for row in rows}) == 1:
        return None
    return _rank(unseen(rows, by)[0], truth, groups, seed)


def _column(rows: Sequence[Row], key: str) -> Floats:
    return np.array([row.get(key) for row in rows], dtype=np.float64)


def _rank(values: Floats, truth: Floats, groups: Sequence[str], seed: int) -> Rank | None:
    """None with fewer than three pairs that have both."""
    from scipy.stats import spearmanr

    there = ~(np.isnan(values) | np.isnan(truth))
    if there.sum() < 3:
        return None
    places = [
        np.flatnonzero(there & np.array([g == group for g in groups]))
        for group in dict.fromkeys(groups)
    ]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(_DRAWS):
        chosen = np.concatenate([places[i] for i in rng.integers(0, len(places), len(places))])
        if len(set(values[chosen])) > 1 and len(set(truth[chosen])) > 1:
            draws.append(spearmanr(values[chosen], truth[chosen]).statistic)
    ends = np.quantile(draws, [0.025, 0.975]).tolist() if draws else None
    return Rank(
        value=float(spearmanr(values[there], truth[there]).statistic),
        interval=None if ends is None else (ends[0], ends[1]),
        pairs=int(there.sum()),
    )


def _rate(values: NDArray[Any]) -> Rate:
    low, high = proportion_interval([float(v) for v in values])
    return Rate(count=int(values.sum()), of=len(values), low=low, high=high)


def foretold_as_text(found: Foretold) -> str:
    """What was found, a line each."""
    lines = [
        f"{found.pairs} pairs of {found.kinds} kinds, each foretold from the other kinds:",
        f"  rank correlation of gains {_told(found.rank)}",
        f"  of the share of the gap that was recovered {_told(found.recovery)}",
        f"  without the task {_told(found.without_task)}, without the group "
        f"{_told(found.without_group)}",
        f"  mean absolute error {found.error:.3f}; 90 % intervals hold {_share(found.coverage)}, "
        f"mean width {found.width:.2f}",
        f"  collapsed {_share(found.collapsed)}; among go {_share(found.go) if found.go else '-'}",
        f"  outside of what is known {_share(found.outside)}",
        "single measurements:",
        *(f"  {name} {_told(rank)}" for name, rank in found.single.items()),
    ]
    rows = [(k, f"{error:.3f}", f"{held:.0%}") for k, (error, held) in found.by_kind.items()]
    verdicts = [
        (word, *(str(counts[name]) for name in _HAPPENED))
        for word, counts in found.verdicts.items()
    ]
    blocks = ["\n".join(lines), table(("kind", "error", "held"), rows)]
    return "\n\n".join([*blocks, table(("verdict", *_HAPPENED), verdicts)])


def _told(rank: Rank | None) -> str:
    if rank is None:
        return "-"
    if rank.interval is None:
        return f"{rank.value:+.2f} ({rank.pairs})"
    low, high = rank.interval
    return f"{rank.value:+.2f} [{low:+.2f}, {high:+.2f}] ({rank.pairs})"


def _share(rate: Rate) -> str:
    return f"{rate.count} of {rate.of}, {rate.share:.0%} [{rate.low:.0%}, {rate.high:.0%}]"
