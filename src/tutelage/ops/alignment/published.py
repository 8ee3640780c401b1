"""The estimator of 2605.10889, for comparison alone: its biases are shown in docs/alignment.md.

It lets every rollout count at all its ancestors, the labelled spine's own outcome among them,
and averages cosines over nodes. Nothing in the package decides by it.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from tutelage.ops.alignment.moves import cosines, ideal_gradient, kl_student_teacher, renormalise

LEAST_VISITS = 20
"""Visits a child needs to be compared."""


def ancestor_counts(
    rollouts: Iterable[tuple[Sequence[Hashable], bool]],
) -> Mapping[tuple[Hashable, ...], Mapping[Hashable, tuple[int, int]]]:
    """(right, all) rollouts through each child of each prefix, natural and forced ones alike.

    A forced token is counted as if the student had chosen it, so nodes above a targeted child
    see the branch as often as it was forced.
    """
    tree: dict[tuple[Hashable, ...], dict[Hashable, tuple[int, int]]] = {}
    for tokens, right in rollouts:
        for depth, token in enumerate(tokens):
            children = tree.setdefault(tuple(tokens[:depth]), {})
            successes, visits = children.get(token, (0, 0))
            children[token] = (successes + int(right), visits + 1)
    return tree


def published_cosines(
    p: Float64[ndarray, "n k"],
    q: Float64[ndarray, "n k"],
    right: ndarray,
    total: ndarray,
    least: int = LEAST_VISITS,
) -> Float64[ndarray, "n"]:
    """cos(ĝ, D) of each node on children of `least` visits; NaN where there is none.

    p, q and s are renormalised on those children (mode A) and the move is that of
    KL(student || teacher). Two children give +1 or -1 whatever the numbers.
    """
    kept: Bool[ndarray, "n k"] = total >= least
    p, q = renormalise(np.where(kept, p, 0.0)), renormalise(np.where(kept, q, 0.0))
    s = np.where(kept, right / np.maximum(total, 1), 0.0)
    values = cosines(ideal_gradient(p, s), kl_student_teacher(p, q))
    return np.asarray(np.where(kept.sum(-1) >= 2, values, np.nan))
