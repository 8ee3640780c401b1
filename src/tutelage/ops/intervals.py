"""Estimates with 95 % intervals."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


def proportion_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval for the mean of independent values in [0, 1].

    Values of 0 and 1 get Wilson's score interval. Means of several samples a question get it
    with the effective sample size p (1 - p) / var, so that questions are the independent units,
    and with Student's quantile, since that variance is itself estimated.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    count, mean = len(values), fmean(values)
    size, z = float(count), Z95
    if count > 1 and any(0 < v < 1 for v in values):
        z = student_quantile(count - 1)
        variance = sum((v - mean) ** 2 for v in values) / (count - 1)
        if variance > 0:
            size = count * mean * (1 - mean) / variance
    centre = (mean + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * math.sqrt(mean * (1 - mean) / size + z**2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """95 % interval for the mean of first - second, paired values in [0, 1].

    Newcombe's hybrid of the two score intervals with their correlation (Statistics in Medicine
    17:2635, 1998, method 10). Unlike a bootstrap it has a width where all values are equal.

    Raises:
        ValueError: no values, or unequally many.
    """
    if len(first) != len(second):
        raise ValueError(f"paired values are needed, got {len(first)} and {len(second)}")
    return _hybrid(first, second, _correlation(first, second))


def independent_difference_interval(
    first: Sequence[float], second: Sequence[float]
) -> tuple[float, float]:
    """The same for values in [0, 1] that are not paired, such as those of other questions.

    Raises:
        ValueError: no values.
    """
    return _hybrid(first, second, 0.0)


def ratio_interval(totals: Sequence[float], counts: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval for sum(totals) / sum(counts), such as a mean over all tokens of a question.

    Questions are the independent units: the variance is that of total - ratio * count (linearised),
    the quantile Student's. None where fewer than two units or no counts are given.
    """
    total, count = np.asarray(totals, dtype=float), np.asarray(counts, dtype=float)
    units = len(total)
    if units < 2 or count.sum() <= 0:
        return None
    ratio = total.sum() / count.sum()
    residual = total - ratio * count
    error = math.sqrt(float((residual**2).sum()) * units / (units - 1)) / count.sum()
    half = student_quantile(units - 1) * error
    return float(ratio - half), float(ratio + half)


def hybrid_interval(
    first: tuple[float, float, float], second: tuple[float, float, float], shared: float = 0.0
) -> tuple[float, float]:
    """Interval for first - second from each one's (value, low, high), by Newcombe's square-and-add.

    `shared` is their correlation. 0 is right for independent values, and too wide for values that
    rise together, such as accuracies on the same questions.
    """
    (value1, low1, high1), (value2, low2, high2) = first, second

    def width(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * shared * one * other + other**2))

    difference = value1 - value2
    return (
        difference - width(value1 - low1, high2 - value2),
        difference + width(high1 - value1, value2 - low2),
    )


def _hybrid(first: Sequence[float], second: Sequence[float], shared: float) -> tuple[float, float]:
    return hybrid_interval(
        (fmean(first), *proportion_interval(first)),
        (fmean(second), *proportion_interval(second)),
        shared,
    )


def _correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's; 0 where either does not vary."""
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale > 0 else 0.0


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of Student's t for the mean of independent, roughly normal values.

    None where there are fewer than two: nothing then says how they vary.
    """
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, within 0.2 % (Cornish and Fisher's expansion)."""
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = Z95, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from `correct` of `samples` (2107.03374).

    Raises:
        ValueError: k is not between 1 and `samples`.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def bootstrap_interval(
    columns: Sequence[NDArray[np.float64]],
    statistic: Callable[..., float | None],
    *,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float] | None:
    """95 % percentile interval of a statistic of paired columns, resampling rows together.

    None where the statistic is undefined in more than a fortieth of the draws:
    an interval that leaves those out would be too narrow.
    """
    rng = np.random.default_rng(seed)
    rows = len(columns[0])
    values: list[float] = []
    for _ in range(draws):
        chosen = rng.integers(0, rows, rows)
        value = statistic(*(column[chosen] for column in columns))
        if value is not None and math.isfinite(value):
            values.append(value)
    if len(values) < draws * 39 / 40:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def gap_recovery(before: float, after: float, teacher: float) -> float | None:
    """(after - before) / (teacher - before); None where the teacher is no better."""
    return (after - before) / (teacher - before) if teacher > before else None
