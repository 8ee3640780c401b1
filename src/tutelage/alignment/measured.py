"""The nodes of a tree with what was counted there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from tutelage.alignment.branches import counts_of
from tutelage.alignment.nodes import REST, State
from tutelage.alignment.tree import Tree
from tutelage.ops.alignment.moves import renormalise
from tutelage.ops.alignment.node import (
    Counts,
    NodeScores,
    Success,
    backup,
    cautious_variance,
    dot_weights,
    score,
    success,
)


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """All nodes as padded arrays, with the estimated success after each child."""

    states: Sequence[State]
    """[N] what was known before."""
    counts: Counts
    """[N, K] raw counts."""
    estimate: Success
    """[N, K] success after each child."""
    doubt: ndarray
    """[N, K] its `cautious_variance`: for the error of one node or one question."""
    p: ndarray
    """[N, K] student over the children with an estimate; sums to 1."""
    q: ndarray
    """[C, N, K] teachers likewise; NaN where one has nothing to read."""
    moves: ndarray
    """[C, O, N, K] D."""
    weights: ndarray
    """[N] stratum weight / pi."""
    questions: Sequence[str]
    """[N] the question of each node."""
    right: ndarray
    """bool [N] verdict on the node's spine."""
    covered: ndarray
    """[N] the student's mass on children that were forced one by one, the rest left out."""


def gather(tree: Tree, records: Sequence[Mapping[str, Any]], *, use_backup: bool = True) -> Nodes:
    """The nodes whose branches are all in `records`."""
    done = {record["unit"] for record in records if "unit" in record}
    due: dict[str, set[str]] = {}
    for branch in tree.branches:
        due.setdefault(f"{branch.spine.name}/{branch.depth}", set()).add(branch.name)
    states = [node for node in tree.nodes if due.get(node.name, set()) <= done]
    if not states:
        raise ValueError("no node has all its rollouts yet")
    names = {node.name for node in states}
    width = max(len(node.children) for node in states)
    every = [*records, *tree.settled_records]
    kept = [
        {
            **record,
            "counts": [row for row in record["counts"] if f"{record['spine']}/{row[0]}" in names],
        }
        for record in every
    ]
    counts = counts_of(states, kept)
    estimate = counts.success()
    cautious = replace(estimate, variance=_doubt(states, tree, counts))
    if use_backup:
        estimate, cautious = (_backed_up(states, tree, x) for x in (estimate, cautious))
    p, q = np.zeros((len(states), width)), np.zeros((len(tree.teachers), len(states), width))
    moves = np.zeros((len(tree.teachers), len(tree.objectives), len(states), width))
    for row, node in enumerate(states):
        k = len(node.children)
        p[row, :k], q[:, row, :k], moves[:, :, row, :k] = node.p, node.q, node.moves
    known = estimate.known & (p >= 0)
    spines = [tree.spines[node.spine] for node in states]
    return Nodes(
        states=states,
        counts=counts,
        estimate=estimate,
        doubt=np.where(known, cautious.variance, 0.0),
        p=renormalise(np.where(known, p, 0.0)),
        q=renormalise(np.where(known, q, 0.0)),
        moves=np.where(known, moves, 0.0),
        weights=np.array([s.weight / n.chance for s, n in zip(spines, states, strict=True)]),
        questions=[spine.question for spine in spines],
        right=np.array([spine.right for spine in spines]),
        covered=np.array(
            [sum(x for x, c in zip(n.p, n.children, strict=True) if c != REST) for n in states]
        ),
    )


def _doubt(states: Sequence[State], tree: Tree, counts: Counts) -> ndarray:
    """Cautious variance [N, K] of each child; settled ones are certain."""
    found = cautious_variance(counts.right_a + counts.right_b, counts.total_a + counts.total_b)
    outcomes = {node.name: x for node, x in zip(tree.nodes, tree.settled, strict=True)}
    for row, node in enumerate(states):
        for column, outcome in enumerate(outcomes[node.name]):
            if outcome is not None:
                found[row, column] = 0.0
    return found


def _backed_up(states: Sequence[State], tree: Tree, direct: Success) -> Success:
    """Success after a spine's own token, from the node right below it where there is one.

    That a node lies below was settled before any outcome, so nothing is chosen by what was seen.
    """
    rows = {node.name: row for row, node in enumerate(states)}
    s, variance, known = direct.s.copy(), direct.variance.copy(), direct.known.copy()
    # The deepest first, so that what is backed up can be backed up again.
    for row in sorted(range(len(states)), key=lambda i: -states[i].depth):
        node = states[row]
        below = rows.get(f"{node.spine}/{node.depth + 1}")
        if below is None:
            continue
        child = node.children.index(tree.spines[node.spine].rollout.completion_ids[node.depth])
        k = len(states[below].children)
        found = backup(
            states[below].p,
            Success(s=s[below, :k], variance=variance[below, :k], known=known[below, :k]),
            np.zeros(()),
            success(np.zeros(()), np.zeros(())),
        )
        if found.known:
            s[row, child], variance[row, child] = found.s, found.variance
            known[row, child] = True
    return Success(s=s, variance=variance, known=known)


def node_scores(nodes: Nodes, teacher: int, objective: int) -> tuple[NodeScores, ndarray]:
    """The numbers of the nodes at which a teacher has something to read, and which those are."""
    rows = np.flatnonzero(~np.isnan(nodes.q[teacher]).any(-1))
    estimate = Success(
        s=nodes.estimate.s[rows],
        variance=nodes.estimate.variance[rows],
        known=nodes.estimate.known[rows],
    )
    found = score(
        nodes.p[rows], nodes.q[teacher, rows], nodes.moves[teacher, objective, rows], estimate
    )
    return found, rows


def node_variances(
    nodes: Nodes, teacher: int, objective: int, rows: ndarray
) -> tuple[ndarray, ndarray]:
    """Cautious variance [n] of the dot and of the advantage at some nodes, over their rollouts."""
    p, doubt = nodes.p[rows], nodes.doubt[rows]
    alpha = dot_weights(p, nodes.moves[teacher, objective, rows])
    gap = nodes.q[teacher, rows] - p
    return (alpha**2 * doubt).sum(-1), (gap**2 * doubt).sum(-1)
