"""The ideal gradient, the moves of distillation, and the outcomes both are compared on.

Vectors are changes of the student's logits: ascent for success, descent for a loss. Every one
of them has the form p_j (f_j - E_p f), with f the success after a token, or a reward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int
from numpy import ndarray

Children = Float64[ndarray, "*#n k"]
"""A number a child."""
Nodes = Float64[ndarray, "*#n"]
"""A number a node."""
Move = Callable[[ndarray, ndarray], ndarray]
"""(p, q), complete distributions over the same outcomes -> D; outcomes with p = q = 0 are padding
and get 0."""
Restriction = Literal["renormalise", "slice", "lump"]
"""Modes A, B and D of `restrict`."""

LOG_FLOOR = -30.0
"""Least log-probability of the teacher that is believed; `floored` counts those below."""
NEGLIGIBLE = 1e-12
"""Norm up to which a vector has no direction: what rounding leaves of an exact 0."""


def tilt(p: Children, values: Children) -> Children:
    """p_j (f_j - E_p f): the logit gradient of E_p f, for f held fixed.

    Values are compared with the first child's, so that equal ones give exactly 0.
    """
    shifted = values - values[..., :1]
    return np.asarray(p * (shifted - (p * shifted).sum(-1, keepdims=True)))


def ideal_gradient(p: Children, success: Children) -> Children:
    """g_j = p_j (s_j - s̄), the logit gradient of the chance of success (2605.10889)."""
    return tilt(p, success)


def kl_student_teacher(p: Children, q: Children) -> Children:
    """The move of KL(student || teacher), the reverse KL: -p_j (l_j - l̄), l = log p/q."""
    return tilt(p, -log_ratio(p, q))


def kl_teacher_student(p: Children, q: Children) -> Children:
    """The move of KL(teacher || student), the forward KL: q - p."""
    return np.asarray(q - p * q.sum(-1, keepdims=True))  # a teacher without mass asks for nothing


def jensen_shannon(p: Children, q: Children, beta: float) -> Children:
    """The move of the JSD: -(1 - beta) p_j (r_j - r̄), r = log p/m, m = beta q + (1 - beta) p."""
    mixture = beta * q + (1 - beta) * p
    ratio = np.where(p > 0, p, 1.0) / np.where(p > 0, mixture, 1.0)
    return tilt(p, -(1 - beta) * np.log(ratio))


def sampled_token(p: Children, q: Children) -> Float64[ndarray, "*#n k k"]:
    """The move (log q_r - log p_r - 1)(e_r - p) of each token r the student may draw, in row r.

    Its mean over r ~ p is `kl_student_teacher`.
    """
    reward = -log_ratio(p, q) - 1
    return np.asarray(reward[..., :, None] * (np.eye(p.shape[-1]) - p[..., None, :]))


def sequence_kl(p: Children, q: Children, downstream: Children) -> Children:
    """The move of the whole sequence's KL(student || teacher).

    `downstream` is C(u, k), the expected sum of the reverse KL over the states after child k;
    0 gives `kl_student_teacher`.
    """
    return tilt(p, -(log_ratio(p, q) + downstream))


def log_ratio(p: Children, q: Children) -> Children:
    """log p - max(log q, LOG_FLOOR); 0 where p is 0, which every use multiplies by p."""
    floor = np.exp(LOG_FLOOR)
    return np.where(p > 0, np.log(np.where(p > 0, p, 1.0)) - np.log(np.maximum(q, floor)), 0.0)


def kl(p: Children, q: Children) -> Nodes:
    """KL(p || q) in nats, log q floored."""
    return np.asarray((p * log_ratio(p, q)).sum(-1))


def floored(p: Children, q: Children) -> Int[ndarray, "*#n"]:
    """How many outcomes of the student have their log q raised to LOG_FLOOR."""
    return np.asarray(((p > 0) & (q < np.exp(LOG_FLOOR))).sum(-1))


def teacher_advantage(p: Children, q: Children, success: Children) -> Nodes:
    """sum (q_k - p_k) s_k: the gain in success of one token from the teacher (2605.10889)."""
    return np.asarray(((q - p) * success).sum(-1))


def cosines(one: Children, other: Children) -> Nodes:
    """The cosine of two vectors at each node; NaN where one of them has no direction."""
    lengths = np.sqrt((one**2).sum(-1)), np.sqrt((other**2).sum(-1))
    directed = np.minimum(*lengths) > NEGLIGIBLE
    product = np.where(directed, lengths[0] * lengths[1], 1.0)
    return np.asarray(np.where(directed, (one * other).sum(-1) / product, np.nan))


def cosine(one: Float64[ndarray, "k"], other: Float64[ndarray, "k"]) -> float | None:
    """The cosine of two vectors; None where one of them has no direction."""
    value = float(cosines(one, other))
    return None if np.isnan(value) else value


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """A node reduced to outcomes whose success can be estimated."""

    p: ndarray
    """[N, K'] student; sums to 1 over the outcomes kept. K' is K, or K + 1 where lumped."""
    q: ndarray
    """[N, K'] teacher, likewise."""
    move: ndarray
    """[N, K'] D."""
    student_mass: ndarray
    """[N] sum of the student's probabilities over the children kept."""
    teacher_mass: ndarray
    """[N] the teacher's."""
    floored: ndarray
    """[N] outcomes whose log q was raised to LOG_FLOOR."""


def restrict(
    mode: Restriction,
    p: Float64[ndarray, "n v"],
    q: Float64[ndarray, "n v"],
    move: Move,
    ids: Int[ndarray, "n k"],
    kept: Bool[ndarray, "n k"],
    rest_known: Bool[ndarray, "n"] | None = None,
) -> Outcomes:
    """Reduce full distributions to the children whose success is estimated.

    renormalise (A) compares p and q as they are among the children. slice (B) renormalises p
    for g, and takes the children's part of the full move. lump (D) adds all other tokens as
    one last outcome: it keeps the sums of both gradients, as if the others shared one logit.

    Args:
        mode: which.
        p: student over the whole vocabulary.
        q: teacher.
        move: the objective's.
        ids: tokens of the children.
        kept: False for padding and for children without an estimate.
        rest_known: with lump, where the success of all other tokens together was estimated; such
            an estimate is of the tokens outside `kept` and no others. Elsewhere, where they are
            too unlikely to be worth rollouts, the node is sliced. None means everywhere.
    """
    some_p, some_q = (np.where(kept, np.take_along_axis(x, ids, -1), 0.0) for x in (p, q))
    masses = some_p.sum(-1), some_q.sum(-1)
    if mode == "renormalise":
        p, q = renormalise(some_p), renormalise(some_q)
        reduced = (p, q, np.where(kept, move(p, q), 0.0))
    elif mode == "slice":
        part = np.take_along_axis(move(p, q), ids, -1)
        reduced = (renormalise(some_p), renormalise(some_q), np.where(kept, part, 0.0))
    else:
        reduced = (
            _with_rest(p, ids, kept),
            _with_rest(q, ids, kept),
            _with_rest(move(p, q), ids, kept),
        )
        if rest_known is not None:
            for x in reduced:
                x[~rest_known, -1] = 0.0
            reduced = (renormalise(reduced[0]), renormalise(reduced[1]), reduced[2])
    return Outcomes(
        p=reduced[0],
        q=reduced[1],
        move=reduced[2],
        student_mass=np.asarray(masses[0]),
        teacher_mass=np.asarray(masses[1]),
        floored=floored(p, q),
    )


def renormalise(p: Children) -> Children:
    """Probabilities that sum to 1; a row without mass stays 0."""
    total = p.sum(-1, keepdims=True)
    return p / np.where(total > 0, total, 1.0)


def _with_rest(
    full: Float64[ndarray, "n v"], ids: Int[ndarray, "n k"], kept: Bool[ndarray, "n k"]
) -> Float64[ndarray, "n m"]:
    """The children's entries, and the sum of all other entries last."""
    some = np.where(kept, np.take_along_axis(full, ids, -1), 0.0)
    others = np.ones(full.shape, dtype=bool)
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    others[rows[kept], ids[kept]] = False
    rest = np.where(others, full, 0.0).sum(-1, keepdims=True)
    return np.concatenate([some, rest], axis=-1)
