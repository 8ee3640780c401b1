"""Numbers of many nodes as one answer with an interval.

Nodes of a question are not independent, so questions are what is resampled. Cosines of nodes
are not averaged to speak of a direction: dots and squares are summed first.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from tutelage.ops.alignment.moves import NEGLIGIBLE
from tutelage.ops.alignment.node import NodeScores
from tutelage.ops.intervals import Z95, student_quantile

Interval = tuple[float, float]

FEW_QUESTIONS = 16
"""Below this the interval is a warning rather than a promise."""
SIGNAL_ERRORS = 2.0
"""Standard errors by which the pooled square must exceed 0 to speak of a direction."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    """The estimate."""
    interval: Interval | None
    """None with one question, or where the interval has no end."""


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """What a set of nodes says about one teacher and one objective."""

    alignment: Estimate | None
    """A = sum w <ĝ,D> / sqrt(sum w U sum w ||D||^2); None without a detectable signal or move."""
    dot: Estimate
    """Mean of <ĝ,D> a visit."""
    advantage: Estimate
    """Mean teacher advantage a visit."""
    square: float
    """Mean of U a visit: the squared size of the ideal gradient, noise taken out."""
    square_error: float | None
    """Standard error of `square`; None with one question."""
    move_square: float
    """Mean of ||D||^2 a visit."""
    signal: bool
    """Whether `square` is more than two standard errors above 0."""
    reliability: float | None
    """Share of the measured squares that is not noise; None where nothing was measured."""
    informative: float
    """Share of nodes, unweighted, at which both vectors have a direction."""
    mean_cosine: Estimate | None
    """Plain mean of the cosines, unweighted, as 2605.10889 reports; drawn towards 0 by noise."""
    questions: int
    """Questions, the independent units."""
    nodes: int
    """Nodes."""
    warnings: tuple[str, ...]
    """What a reader must know before trusting the intervals."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One teacher, objective or group of nodes minus another, over the same questions."""

    alignment: Estimate | None
    """Difference of A; None where either has no detectable signal or no move."""
    dot: Estimate
    """Difference of the mean dots; comparable where the objective is the same."""
    advantage: Estimate
    """Difference of the mean advantages."""
    mean_cosine: Estimate | None
    """Difference of the plain mean cosines; None where either has none."""
    questions: int
    """Questions, the independent units."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """||D||^2 at positions that need not have been rolled out."""

    questions: Sequence[Hashable]
    """The question of each position; each must be among those of the nodes."""
    weights: ndarray
    """[M] stratum weight of each position's spine."""
    move_square: ndarray
    """[M] ||D||^2."""


def alignment_ratio(
    dot: Float64[ndarray, "*#b"],
    square: Float64[ndarray, "*#b"],
    move_square: Float64[ndarray, "*#b"],
) -> Float64[ndarray, "*#b"]:
    """dot / sqrt(square move_square); signed infinity where the square is not above 0.

    Infinity keeps resamples without signal at the ends of an interval, where they belong.
    """
    scale = np.sqrt(np.maximum(square, 0.0) * move_square)
    nothing = np.where(dot == 0, 0.0, np.copysign(np.inf, dot))
    return np.asarray(np.where(scale > 0, dot / np.where(scale > 0, scale, 1.0), nothing))


def pool(
    scores: NodeScores,
    questions: Sequence[Hashable],
    weights: Float64[ndarray, "n"],
    *,
    everywhere: Positions | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> Pooled:
    """Pool nodes.

    Args:
        scores: of N nodes.
        questions: the question of each node.
        weights: w = stratum weight / pi of each node; see `design`.
        everywhere: ||D||^2 at all positions of the spines, where known: it needs no rollouts, and
            then sampling the nodes adds no noise to it.
        seed: of the resampling.
        draws: resamples of the questions.

    Raises:
        ValueError: no nodes, or positions of a question without nodes.
    """
    sums = _question_sums(scores, questions, weights, everywhere)
    count = len(sums["weight"])
    resampled = _resample(sums, seed, draws)
    totals = {name: np.asarray(column.sum()) for name, column in sums.items()}
    weight = float(totals["weight"])
    error = _standard_error(sums["square"])
    signal = _has_signal(sums["square"])
    raw = float(totals["raw_square"])
    warnings: list[str] = []
    if count < FEW_QUESTIONS:
        warnings.append(
            f"{count} questions: intervals from fewer than {FEW_QUESTIONS} are rough; use more "
            "questions rather than more rollouts"
        )
    if not signal:
        warnings.append(
            "no detectable outcome signal: success does not measurably depend on the next token "
            "at these nodes, so no direction can be compared; read the dot and its interval"
        )
    moves = _has_move(sums)
    if not moves:
        warnings.append("the objective moves the student nowhere here, so it has no direction")
    return Pooled(
        alignment=_estimate(_alignment, totals, resampled, count) if signal and moves else None,
        dot=_estimate(_mean("dot"), totals, resampled, count),
        advantage=_estimate(_mean("advantage"), totals, resampled, count),
        square=float(totals["square"]) / weight,
        square_error=None if error is None else error / weight,
        move_square=float(totals["move_square"]) / weight,
        signal=signal,
        reliability=float(totals["square"]) / raw if raw > 0 else None,
        informative=float(totals["defined"]) / len(weights),
        mean_cosine=_estimate(_mean("cosine", "defined"), totals, resampled, count)
        if totals["defined"] > 0
        else None,
        questions=count,
        nodes=len(weights),
        warnings=tuple(warnings),
    )


def compare(
    one: NodeScores,
    other: NodeScores,
    questions: Sequence[Hashable],
    weights: Float64[ndarray, "n"],
    *,
    seed: int = 0,
    draws: int = 2000,
) -> Difference:
    """`one` minus `other`, scored at the same nodes: what they share cancels in the interval.

    Raises:
        ValueError: the squares U differ, so the nodes or their rollouts are not the same.
    """
    if not np.allclose(one.square, other.square, rtol=1e-9, atol=1e-15):
        raise ValueError(
            "two teachers or objectives can only be compared at the same nodes with the same "
            "rollouts, but their ideal gradients differ; score both with one set of counts"
        )
    return _difference(
        _question_sums(one, questions, weights),
        _question_sums(other, questions, weights),
        shared_square=True,
        seed=seed,
        draws=draws,
    )


def compare_groups(
    scores: NodeScores,
    questions: Sequence[Hashable],
    weights: Float64[ndarray, "n"],
    one: Bool[ndarray, "n"],
    other: Bool[ndarray, "n"],
    *,
    seed: int = 0,
    draws: int = 2000,
) -> Difference:
    """Nodes of one group minus those of another, such as wrong minus right spines.

    Questions are resampled with all their nodes, so that groups stay paired within them.

    Raises:
        ValueError: a group without nodes.
    """
    if not one.any() or not other.any():
        raise ValueError("a group has no nodes, so there is nothing to compare")
    groups = [_question_sums(scores, questions, weights, members=m) for m in (one, other)]
    return _difference(*groups, shared_square=False, seed=seed, draws=draws)


def pool_by_group(
    scores: NodeScores,
    questions: Sequence[Hashable],
    weights: Float64[ndarray, "n"],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    draws: int = 2000,
) -> dict[Hashable, Pooled]:
    """`pool` within groups of nodes: by verdict of the spine, depth, entropy or kind of token.

    Groups share questions, so their intervals are not independent.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    pooled = {
        group: pool(
            scores[np.array(rows)],
            [questions[row] for row in rows],
            weights[rows],
            seed=seed,
            draws=draws,
        )
        for group, rows in members.items()
    }
    return pooled


Columns = dict[str, ndarray]
Statistic = Callable[[Columns], ndarray]


def stretched_interval(value: float, draws: Float64[ndarray, "b"], units: int) -> Interval | None:
    """95 % percentile interval, widened for the number of units resampled.

    Both sides are stretched about the estimate by t(units - 1) / 1.96 sqrt(units / (units - 1)):
    a bootstrap of few units knows neither their spread nor its own uncertainty about it.
    None with one unit, or where an end is not finite.
    """
    if units < 2 or np.isnan(draws).any():
        return None
    stretch = student_quantile(units - 1) / Z95 * np.sqrt(units / (units - 1))
    low, high = np.quantile(draws, [0.025, 0.975], method="closest_observation")
    low, high = value - (value - low) * stretch, value + (high - value) * stretch
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def _difference(
    one: Columns, other: Columns, *, shared_square: bool, seed: int, draws: int
) -> Difference:
    units = len(one["weight"])
    sums = one | {f"other {name}": column for name, column in other.items()}
    resampled = _resample(sums, seed, draws)
    totals = {name: np.asarray(column.sum()) for name, column in sums.items()}

    def estimate(statistic: Statistic) -> Estimate:
        return _estimate(statistic, totals, resampled, units)

    def gap(of: Statistic) -> Statistic:
        def difference(columns: Columns) -> ndarray:
            others = {name: columns[f"other {name}"] for name in other}
            with np.errstate(invalid="ignore"):  # infinity - infinity: no interval
                return np.asarray(of(columns) - of(others))

        return difference

    defined = all(_has_signal(x["square"]) and _has_move(x) for x in (one, other))
    cosines = one["defined"].any() and other["defined"].any()
    return Difference(
        alignment=estimate(_alignment_gap if shared_square else gap(_alignment))
        if defined
        else None,
        dot=estimate(gap(_mean("dot"))),
        advantage=estimate(gap(_mean("advantage"))),
        mean_cosine=estimate(gap(_mean("cosine", "defined"))) if cosines else None,
        questions=units,
    )


def _question_sums(
    scores: NodeScores,
    questions: Sequence[Hashable],
    weights: ndarray,
    everywhere: Positions | None = None,
    members: ndarray | None = None,
) -> Columns:
    """Weighted sums of each question [Q], over all nodes or over `members`."""
    if not len(questions):
        raise ValueError("no nodes: at least one scored node is needed to pool")
    order = {question: row for row, question in enumerate(dict.fromkeys(questions))}
    rows = np.array([order[question] for question in questions])
    defined = ~np.isnan(scores.cosine)
    columns = {
        "weight": weights,
        "dot": weights * scores.dot,
        "square": weights * scores.square,
        "raw_square": weights * scores.raw_square,
        "move_square": weights * scores.move_square,
        "advantage": weights * scores.advantage,
        "cosine": np.where(defined, scores.cosine, 0.0),
        "defined": defined.astype(float),
    }
    inside = np.ones(len(rows)) if members is None else members.astype(float)
    sums = {name: np.bincount(rows, inside * x, len(order)) for name, x in columns.items()}
    if everywhere is not None:
        strangers = set(everywhere.questions) - set(order)
        if strangers:
            raise ValueError(
                f"{len(strangers)} questions have positions but no scored nodes; leave them out, "
                "or score nodes in them: sums over different questions cannot be compared"
            )
        places = np.array([order[question] for question in everywhere.questions])
        squares = everywhere.weights * everywhere.move_square
        sums["move_square"] = np.bincount(places, squares, len(order))
    return sums


def _resample(sums: Columns, seed: int, draws: int) -> Columns:
    """The sums in each of `draws` resamples of the questions."""
    count = len(sums["weight"])
    chosen = np.random.default_rng(seed).integers(0, count, (draws, count))
    cells = (chosen + count * np.arange(draws)[:, None]).reshape(-1)
    times = np.bincount(cells, minlength=draws * count).reshape(draws, count)
    totals = times.astype(float) @ np.stack(list(sums.values()), axis=1)
    return dict(zip(sums, totals.T, strict=True))


def _standard_error(column: ndarray) -> float | None:
    """Of a sum over independent questions."""
    count = len(column)
    return float(np.sqrt(count * column.var(ddof=1))) if count > 1 else None


def _has_signal(squares: ndarray) -> bool:
    error = _standard_error(squares)
    return error is not None and float(squares.sum()) > SIGNAL_ERRORS * error


def _has_move(sums: Columns) -> bool:
    """Whether ||D|| is more than what rounding leaves of 0."""
    return float(sums["move_square"].sum()) > NEGLIGIBLE**2 * float(sums["weight"].sum())


def _alignment(columns: Columns) -> ndarray:
    return alignment_ratio(columns["dot"], columns["square"], columns["move_square"])


def _alignment_gap(columns: Columns) -> ndarray:
    """Difference of two alignments over one square."""
    gap = sum(
        sign * alignment_ratio(columns[f"{who}dot"], columns[f"{who}move_square"], np.ones(()))
        for sign, who in ((1, ""), (-1, "other "))
    )
    return alignment_ratio(np.asarray(gap), columns["square"], np.ones(()))


def _mean(of: str, weight: str = "weight") -> Statistic:
    """A weighted mean; NaN in a resample without weight."""

    def mean(columns: Columns) -> ndarray:
        total = columns[weight]
        return np.asarray(np.where(total > 0, columns[of] / np.where(total > 0, total, 1), np.nan))

    return mean


def _estimate(statistic: Statistic, totals: Columns, resampled: Columns, units: int) -> Estimate:
    value = float(statistic(totals))
    return Estimate(value=value, interval=stretched_interval(value, statistic(resampled), units))
