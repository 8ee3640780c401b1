"""Which nodes are scored, which children are rolled out how often, and what that costs.

Everything is settled before a rollout is drawn, so that no outcome can bias a count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int
from numpy import ndarray

from tutelage.ops.alignment.node import dot_weights, noise_weights


def depth_windows(length: int, first: int = 50) -> Int[ndarray, "length"]:
    """The window of each position from 0: `first` positions, then each window twice the last.

    With the default, positions 1-50, 51-150, 151-350, ... as counted from 1 (2605.10889).
    """
    return np.floor(np.log2(np.arange(length) / first + 1)).astype(np.int64)


def stratum_weights(right: Bool[ndarray, "g"], chosen: Int[ndarray, "m"]) -> Float64[ndarray, "m"]:
    """Weights that make spines stratified by outcome stand for natural rollouts.

    Args:
        right: verdicts of all natural rollouts of a question.
        chosen: which of them became spines; within a verdict, chosen at random.

    A right spine weighs pass rate / right spines, a wrong one likewise; they sum to 1.

    Raises:
        ValueError: a verdict that occurred has no spine, so its visits are lost.
    """
    verdicts = right[chosen]
    for verdict in (True, False):
        if (right == verdict).any() and not (verdicts == verdict).any():
            name = "right" if verdict else "wrong"
            raise ValueError(
                f"{int((right == verdict).sum())} of {len(right)} rollouts are {name} and none of "
                f"them is a spine; choose at least one, or the weighted sums miss their nodes"
            )
    rate = float(right.mean())
    shares = np.where(verdicts, rate, 1 - rate)
    return np.asarray(shares / np.where(verdicts, verdicts.sum(), (~verdicts).sum()))


def node_sizes(moves: Float64[ndarray, "t n k"], eps: float) -> Float64[ndarray, "n"]:
    """Sizes for `draw_nodes`: eps + the largest ||D|| of any teacher.

    `eps` in units of ||D|| keeps a chance for every node; a node with none could never be
    weighted back.
    """
    if eps <= 0:
        raise ValueError(f"eps is {eps}; nodes at which no teacher moves need a chance above 0")
    return np.asarray(eps + np.sqrt((moves**2).sum(-1)).max(0))


def inclusion(sizes: Float64[ndarray, "*b l"], count: int) -> Float64[ndarray, "*b l"]:
    """Chances proportional to size that sum to `count`, none above 1; 1 for all if too few.

    Sizes of 0 stand for padding.
    """
    certain = np.zeros(sizes.shape, dtype=bool)
    real = sizes > 0
    while True:
        left = np.where(certain | ~real, 0.0, sizes)
        total = left.sum(-1, keepdims=True)
        free = np.maximum(count - certain.sum(-1, keepdims=True), 0)
        chances = left * free / np.where(total > 0, total, 1.0)
        over = chances >= 1
        if not over.any():
            return np.where(certain, 1.0, chances)
        certain |= over


def systematic(
    chances: Float64[ndarray, "*b l"], start: Float64[ndarray, "*b"]
) -> Bool[ndarray, "*b l"]:
    """Which units a systematic sample takes: those at which the running sum passes a tick.

    `start` is one uniform number of [0, 1) a row. Each unit is taken with its chance; the number
    taken differs from the sum of the chances by less than 1.
    """
    ticks = np.floor(chances.cumsum(-1) + start[..., None])
    return np.asarray(np.diff(ticks, axis=-1, prepend=0.0) > 0)


def draw_nodes(
    sizes: Float64[ndarray, "l"], per_window: int, rng: np.random.Generator, first: int = 50
) -> tuple[Int[ndarray, "m"], Float64[ndarray, "m"]]:
    """Positions of a spine to score, and the inclusion chance pi of each.

    Systematic sampling with chance proportional to size, `per_window` nodes in each depth
    window (all of a window that has no more). Ranking and cutting would give some nodes no
    chance, and no weight could make up for them.
    """
    windows = depth_windows(len(sizes), first)
    chances = np.concatenate(
        [inclusion(sizes[windows == w], per_window) for w in range(windows.max(initial=-1) + 1)]
        or [np.zeros(0)]
    )
    starts = rng.random(windows.max(initial=-1) + 1)
    taken = np.zeros(len(sizes), dtype=bool)
    for window, start in enumerate(starts):
        here = windows == window
        taken[here] = systematic(chances[here], np.asarray(start))
    places = np.flatnonzero(taken)
    return places, chances[places]


def children(
    p: Float64[ndarray, "v"], teachers: Float64[ndarray, "t v"], spine: int, least: float = 0.02
) -> Int[ndarray, "k"]:
    """Tokens whose success is estimated at a node, by id.

    All that the student or some teacher gives at least `least`, and the spine's own token.
    """
    wanted = (p >= least) | (teachers >= least).any(0)
    wanted[spine] = True
    return np.flatnonzero(wanted)


def allocate(
    p: Float64[ndarray, "n k"],
    moves: Float64[ndarray, "t n k"],
    lengths: Float64[ndarray, "n k"],
    weights: Float64[ndarray, "n"],
    kept: Bool[ndarray, "n k"],
    budget: int,
    floor: int = 4,
    cap: int = 100,
) -> Int[ndarray, "n k"]:
    """Rollouts R of each child, from what is known before any outcome is.

    R_k in proportion to w_u (|alpha_k| / sum w |alpha| + c_k / sum w c) / sqrt(length_k), the sums
    over all nodes, between `floor` and `cap`: half for the dot of the teacher with the largest
    |alpha|, half for the square.

    Args:
        p: student over the children.
        moves: D of every teacher and objective.
        lengths: expected tokens of a rollout from each child.
        weights: w_u = stratum weight / pi.
        kept: False for padding.
        budget: rollouts in all; spent exactly, unless every child is at its cap.
        floor: fewest a child; at least 2 in each half makes every estimate possible.
        cap: most a child.

    Raises:
        ValueError: the budget does not reach the floor everywhere.
    """
    count = int(kept.sum())
    if budget < floor * count:
        raise ValueError(
            f"{budget} rollouts for {count} children are fewer than {floor} each; score fewer "
            f"nodes, or allow {floor * count} rollouts"
        )
    alpha = np.abs(dot_weights(p[None], moves)).max(0)
    parts = [
        np.where(kept, weights[:, None] * part, 0.0) for part in (alpha, np.sqrt(noise_weights(p)))
    ]
    need = sum((part / part.sum() for part in parts if part.sum() > 0), np.zeros_like(p))
    need = np.where(kept, need / np.sqrt(np.where(kept, lengths, 1.0)), 0.0)
    if not need.any():
        need = kept.astype(float)
    return _fill(need, kept, budget, floor, cap)


def _fill(
    need: Float64[ndarray, "n k"], kept: Bool[ndarray, "n k"], budget: int, floor: int, cap: int
) -> Int[ndarray, "n k"]:
    """Whole numbers in proportion to need within bounds, summing to the budget."""

    def rollouts(level: float) -> ndarray:
        return np.where(kept, np.clip(level * need, floor, cap), 0.0)

    budget = min(budget, int(kept.sum()) * cap)
    low, high = 0.0, cap / need[need > 0].min()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rollouts(middle).sum() < budget else (low, middle)
    exact = rollouts(low)
    whole = np.floor(exact)
    order = np.argsort(-(exact - whole), axis=None, kind="stable")
    left = budget - int(whole.sum())
    flat = whole.reshape(-1)
    while left > 0:
        room = order[kept.reshape(-1)[order] & (flat[order] < cap)][:left]
        flat[room] += 1
        left -= len(room)
    return np.asarray(flat.reshape(need.shape).astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class RolloutCost:
    """Work of the targeted rollouts of a spine, in prefilled tokens' worth."""

    naive: float
    """Every rollout prefills its whole prefix."""
    batched: float
    """The rollouts of a child prefill their prefix once, as `align` does."""
    cached: float
    """The spine is prefilled once, and each child adds one token."""


def rollout_cost(
    prompt: int,
    length: int,
    positions: Sequence[float] | ndarray,
    child_count: float | ndarray,
    rollouts: float | ndarray,
    decode_cost: float,
) -> RolloutCost:
    """Cost of `rollouts` from each of `child_count` children at each position of a spine.

    Args:
        prompt: tokens of the prompt.
        length: tokens of a completion.
        positions: depth of each node, in tokens of the completion before it.
        child_count: children a node, or one number a node.
        rollouts: mean rollouts a child, or one number a node.
        decode_cost: gamma, cost of decoding a token over that of prefilling one.
    """
    depth = np.asarray(positions, dtype=float)
    decoded = decode_cost * (length - depth)
    branches = np.broadcast_to(child_count, depth.shape)
    each = branches * rollouts
    return RolloutCost(
        naive=float((each * (prompt + depth + 1 + decoded)).sum()),
        batched=float((branches * (prompt + depth + 1) + each * decoded).sum()),
        cached=float(prompt + length + branches.sum() + (each * decoded).sum()),
    )
