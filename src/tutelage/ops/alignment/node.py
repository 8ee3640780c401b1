"""From counts of right rollouts to numbers at a node.

Unbiased means: averaged over the rollouts, with their numbers fixed before any outcome is
seen. g is linear in the success s, so what is linear in g needs no correction; squares do.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from tutelage.ops.alignment.moves import Children, Nodes, cosines, ideal_gradient

FEWEST = 2
"""Rollouts a child needs before its variance, and so any square, can be estimated."""


@dataclass(frozen=True, kw_only=True)
class Success:
    """Estimated success after each child."""

    s: ndarray
    """[..., K] share of right rollouts; 0 where there is no estimate."""
    variance: ndarray
    """[..., K] unbiased estimate of the variance of `s`."""
    known: ndarray
    """bool [..., K] where there is an estimate."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Right and all rollouts of each child, in two independent halves; kept raw."""

    right_a: ndarray
    """[..., K] right rollouts of half a."""
    total_a: ndarray
    """[..., K] rollouts of half a."""
    right_b: ndarray
    """[..., K] right rollouts of half b."""
    total_b: ndarray
    """[..., K] rollouts of half b."""

    def success(self, half: Literal["a", "b", "both"] = "both") -> Success:
        """The estimate from one half, or from all rollouts."""
        match half:
            case "a":
                return success(self.right_a, self.total_a)
            case "b":
                return success(self.right_b, self.total_b)
            case "both":
                return success(self.right_a + self.right_b, self.total_a + self.total_b)

    def swapped(self) -> "Counts":
        """The same counts with the halves' names exchanged."""
        return Counts(
            right_a=self.right_b, total_a=self.total_b, right_b=self.right_a, total_b=self.total_a
        )


@dataclass(frozen=True, kw_only=True)
class NodeScores:
    """What is known at each of N nodes, for one teacher and one objective."""

    dot: ndarray
    """[N] <ĝ, D>, unbiased."""
    square: ndarray
    """[N] U, unbiased for ||g||^2; may be negative."""
    raw_square: ndarray
    """[N] ||ĝ||^2, which exceeds ||g||^2 by the noise."""
    move_square: ndarray
    """[N] ||D||^2, exact."""
    advantage: ndarray
    """[N] teacher advantage, unbiased."""
    cosine: ndarray
    """[N] cos(ĝ, D); NaN where ĝ or D is 0. Drawn towards 0 by noise."""

    def __getitem__(self, rows: ndarray | slice) -> "NodeScores":
        """The scores of some nodes."""
        return NodeScores(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def success(right: ndarray, total: ndarray) -> Success:
    """s = right / total with s (1 - s) / (total - 1), unbiased for its variance.

    Fewer than `FEWEST` rollouts are no estimate.

    Raises:
        ValueError: more right rollouts than rollouts.
    """
    right, total = np.asarray(right, dtype=float), np.asarray(total, dtype=float)
    if (right > total).any() or (right < 0).any():
        raise ValueError("counts of right rollouts must lie between 0 and the rollouts counted")
    known = total >= FEWEST
    s = np.where(known, right / np.maximum(total, 1), 0.0)
    variance = s * (1 - s) / np.maximum(total - 1, 1)
    return Success(s=s, variance=np.asarray(variance), known=np.asarray(known))


def cautious_variance(right: ndarray, total: ndarray) -> ndarray:
    """Variance of s for the error of a single node, where no child may look certain.

    The larger of the unbiased one and of s (1 - s) / (total + 2), s = (right + 1) / (total + 2):
    one right and one wrong rollout more than were seen. The unbiased one is 0 where all outcomes
    agree, which averages out over many nodes and misleads about one.
    """
    right, total = np.asarray(right, dtype=float), np.asarray(total, dtype=float)
    s = (right + 1) / (total + 2)
    return np.asarray(np.maximum(success(right, total).variance, s * (1 - s) / (total + 2)))


def score(p: Children, q: Children, move: Children, estimate: Success) -> NodeScores:
    """The numbers of each node; p, q and move are reduced to the estimated children.

    Raises:
        ValueError: p or q has mass on a child without an estimate.
    """
    unknown = ~estimate.known & ((p > 0) | (q > 0))
    if unknown.any():
        raise ValueError(
            f"{int(unknown.sum())} children have probability but fewer than {FEWEST} rollouts; "
            "leave them out with `restrict` before scoring"
        )
    g = ideal_gradient(p, estimate.s)
    raw = (g**2).sum(-1)
    return NodeScores(
        dot=np.asarray((g * move).sum(-1)),
        square=np.asarray(raw - square_noise(p, estimate)),
        raw_square=np.asarray(raw),
        move_square=np.asarray((np.broadcast_to(move, g.shape) ** 2).sum(-1)),
        advantage=np.asarray(((q - p) * estimate.s).sum(-1)),
        cosine=cosines(g, np.broadcast_to(move, g.shape)),
    )


def score_selected(
    p: Children,
    q: Children,
    move: Children,
    counts: Counts,
    choose: Callable[[NodeScores], ndarray],
) -> tuple[ndarray, NodeScores]:
    """Choose nodes by half a, and score them by half b.

    Chosen and scored by the same rollouts, even a random teacher looks aligned where its cosine
    happened to be above 0.

    Args:
        p: student over the children, [N, K].
        q: teacher.
        move: D.
        counts: in two halves.
        choose: bool [N] from the scores of half a.

    Returns:
        The rows chosen, and their scores from half b alone.
    """
    chosen = np.flatnonzero(choose(score(p, q, move, counts.success("a"))))
    return chosen, score(p, q, move, counts.success("b"))[chosen]


def noise_weights(p: Children) -> Children:
    """c_k^2 = p_k^2 (1 - 2 p_k + sum p_j^2): noise in s_k adds c_k^2 var(s_k) to ||g||^2."""
    return np.asarray(p**2 * (1 - 2 * p + (p**2).sum(-1, keepdims=True)))


def dot_weights(p: Children, move: Children) -> Children:
    """alpha = (diag p - p p^T) D, so that <g, D> = sum alpha_k s_k."""
    return np.asarray(p * (move - (p * move).sum(-1, keepdims=True)))


def square_noise(p: Children, estimate: Success) -> Nodes:
    """What noise adds to ||ĝ||^2 on average, estimated without bias."""
    return np.asarray((noise_weights(p) * estimate.variance).sum(-1))


def dot_variance(p: Children, move: Children, estimate: Success) -> Nodes:
    """Unbiased estimate of the variance of <ĝ, D>; of a single node with `cautious_variance`."""
    return np.asarray((dot_weights(p, move) ** 2 * estimate.variance).sum(-1))


def split_half_square(p: Children, one: Success, other: Success) -> Nodes:
    """ĝ_a . ĝ_b of independent halves: unbiased for ||g||^2 like U, and noisier."""
    return np.asarray((ideal_gradient(p, one.s) * ideal_gradient(p, other.s)).sum(-1))


def neyman_shares(
    p: Children, move: Children, right: ndarray, total: ndarray, lengths: Children
) -> Children:
    """Shares of further rollouts that leave <ĝ, D> the least variance for its tokens.

    |alpha_k| sqrt(s̃ (1 - s̃) / len_k), with s̃ = (right + 1) / (total + 2) so that no child
    looks certain. Looks at outcomes: for a further stage alone, see `combine_stages`.
    """
    smooth = (np.asarray(right, dtype=float) + 1) / (np.asarray(total, dtype=float) + 2)
    shares = np.abs(dot_weights(p, move)) * np.sqrt(smooth * (1 - smooth) / lengths)
    total_share = shares.sum(-1, keepdims=True)
    return np.asarray(shares / np.where(total_share > 0, total_share, 1.0))


def combine_stages(
    p: Children,
    q: Children,
    move: Children,
    first: Success,
    second: Success,
    *,
    share: float,
    chance: Nodes,
    continued: Bool[ndarray, "*#n"],
) -> NodeScores:
    """Scores from two stages, unbiased though the second looked at the first's outcomes.

    Numbers of the second stage are free to depend on the first, but the stages are joined with
    a weight fixed beforehand and never by adding counts: X1 + (B / chance)(X12 - X1).

    Args:
        p: student over the children.
        q: teacher.
        move: D.
        first: the first stage's estimate.
        second: the estimate from fresh rollouts alone; anything where `continued` is False.
        share: h, the weight of the first stage, chosen before the run.
        chance: the probability with which each node was continued, given the first stage.
        continued: B, whether it was.

    Raises:
        ValueError: a chance outside (0, 1], or a share outside [0, 1].
    """
    if not 0 <= share <= 1 or (chance <= 0).any() or (chance > 1).any():
        raise ValueError("share must lie in [0, 1] and every chance to continue in (0, 1]")
    second = Success(
        s=np.where(continued[..., None], second.s, first.s),
        variance=np.where(continued[..., None], second.variance, 0.0),
        known=np.where(continued[..., None], second.known, first.known),
    )
    one, two = score(p, q, move, first), score(p, q, move, second)
    g1, g2 = ideal_gradient(p, first.s), ideal_gradient(p, second.s)
    factor = np.where(continued, 1 / chance, 0.0)

    def joined(x1: ndarray, x12: ndarray) -> ndarray:
        return np.asarray(x1 + factor * (x12 - x1))

    cross = (g1 * g2).sum(-1)
    square = share**2 * one.square + 2 * share * (1 - share) * cross
    g = share * g1 + (1 - share) * g2
    return NodeScores(
        dot=joined(one.dot, share * one.dot + (1 - share) * two.dot),
        square=joined(one.square, square + (1 - share) ** 2 * two.square),
        raw_square=np.asarray((g**2).sum(-1)),
        move_square=one.move_square,
        advantage=joined(one.advantage, share * one.advantage + (1 - share) * two.advantage),
        cosine=cosines(g, np.broadcast_to(move, g.shape)),
    )


def backup(
    p: Float64[ndarray, "*#n k"],
    children: Success,
    p_rest: Nodes,
    rest: Success,
) -> Success:
    """Success at a state from its children: sum p_k s_k + p_rest s_rest, with its variance.

    For the state that a forced child leads to and that was itself a node. `rest` is the success
    of continuations that leave the children, a number a node. All weights are exact, so the
    result is unbiased whenever the parts are.
    """
    has_rest = p_rest > 0
    s = (p * children.s).sum(-1) + np.where(has_rest, p_rest * rest.s, 0.0)
    variance = (p**2 * children.variance).sum(-1)
    variance = variance + np.where(has_rest, p_rest**2 * rest.variance, 0.0)
    known = (children.known | (p == 0)).all(-1) & (rest.known | ~has_rest)
    return Success(s=np.asarray(s), variance=np.asarray(variance), known=np.asarray(known))


def backup_is_due(rollouts: ndarray, p_rest: ndarray, expected: float = 16.0) -> ndarray:
    """Where a backup may replace a direct estimate: decided before any rollout is drawn.

    Demanding a number of leavers that actually left would pick the estimator by what it saw,
    and the direct estimate is biased where few left; demanding an expected number does not.
    """
    return np.asarray((p_rest == 0) | (np.asarray(rollouts) * p_rest >= expected))
