"""Estimates with 95 % intervals."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


def proportion_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval for the mean of independent values in [0, 1].

    Wilson's score interval with the effective sample size p (1 - p) / var: for
    values of 0 and 1 that is Wilson itself, for means of several samples a
    question it counts questions as the independent units.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    count, mean = len(values), fmean(values)
    size = float(count)
    if count > 1 and 0 < mean < 1:
        variance = sum((v - mean) ** 2 for v in values) / count
        if variance > 0:
            size = count * mean * (1 - mean) / variance
    centre = (mean + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 / (1 + Z95**2 / size) * math.sqrt(mean * (1 - mean) / size + Z95**2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


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
