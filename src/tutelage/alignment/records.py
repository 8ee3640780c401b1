"""What the files of an alignment hold for readers: a record a spine, and a table for training."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy import ndarray

from tutelage.alignment.estimates import ENTROPY_EDGES
from tutelage.alignment.measured import Nodes, node_scores, node_variances
from tutelage.alignment.nodes import REST
from tutelage.alignment.tree import Tree
from tutelage.ops.alignment.moves import NEGLIGIBLE
from tutelage.ops.alignment.node import NodeScores


def reliability_table(
    nodes: Nodes,
    tree: Tree,
    teacher: str,
    *,
    positions: Sequence[float] = (0.25, 0.5, 0.75),
    entropies: Sequence[float] = ENTROPY_EDGES,
    objective: str = "objective",
) -> dict[str, Any] | None:
    """How far to trust a teacher by relative position and by its own entropy.

    The weight of a cell is the share of its move that points towards success, its pooled
    alignment drawn towards the overall one where few nodes speak, and 0 where it points away. In
    the form that `objective.weight: {type: reliability, table: FILE}` reads. None where the
    teacher moves nowhere, or nothing is known of its entropy.
    """
    c, o = tree.teachers.index(teacher), tree.objectives.index(objective)
    scores, rows = node_scores(nodes, c, o)
    states = [nodes.states[i] for i in rows]
    lengths = [len(tree.spines[node.spine].rollout.completion_ids) for node in states]
    places = np.digitize(
        [node.depth / n for node, n in zip(states, lengths, strict=True)], positions
    )
    opens = np.digitize([node.teacher_entropies[c] or 0.0 for node in states], entropies)
    weights = nodes.weights[rows]
    moved = float((weights * scores.move_square).sum())
    if moved <= NEGLIGIBLE**2 * weights.sum() or all(
        node.teacher_entropies[c] is None for node in states
    ):
        return None
    overall = float((weights * scores.dot).sum()) / moved
    prior = 0.1 * moved
    table = np.zeros((len(positions) + 1, len(entropies) + 1))
    for i, j in np.ndindex(*table.shape):
        cell = (places == i) & (opens == j)
        dot = float((weights * scores.dot)[cell].sum()) + prior * overall
        square = float((weights * scores.move_square)[cell].sum()) + prior
        table[i, j] = max(0.0, dot / square)
    largest = table.max()
    return {
        "positions": list(positions),
        "entropies": list(entropies),
        "weights": (table / largest if largest > 0 else table).tolist(),
    }


def token_records(
    tree: Tree, nodes: Nodes, tokens: Callable[[Sequence[int]], list[str]]
) -> list[dict[str, Any]]:
    """One record a spine: its tokens, each teacher's move at every one, what was found at nodes.

    The fields are those of "The record of a token" in docs/alignment.md.
    """
    rows: dict[str, list[int]] = {}
    for row, node in enumerate(nodes.states):
        rows.setdefault(node.spine, []).append(row)
    pairs = product(range(len(tree.teachers)), range(len(tree.objectives)))
    scored = {(c, o): _Scored.of(nodes, c, o) for c, o in pairs}

    def at_node(row: int) -> dict[str, Any]:
        told = {"teachers": _teachers_record(tree, nodes, row, scored)}
        return _node_record(nodes, row, tokens) | told

    return [
        _spine_record(tree, name, tokens) | {"nodes": [at_node(row) for row in members]}
        for name, members in rows.items()
    ]


def _spine_record(
    tree: Tree, name: str, tokens: Callable[[Sequence[int]], list[str]]
) -> dict[str, Any]:
    spine, own = tree.spines[name], tree.objectives.index("objective")
    moves = zip(tree.teachers, tree.squares[name][:, :, own].T, strict=True)
    return {
        "question": spine.question,
        "index": spine.rollout.index,
        "right": spine.right,
        "weight": spine.weight,
        "prompt": spine.rollout.prompt.question,
        "tokens": tokens(spine.rollout.completion_ids),
        "moves": {
            teacher: np.sqrt(squares).tolist()
            for teacher, squares in moves
            if not np.isnan(squares).any()
        },
    }


def _node_record(
    nodes: Nodes, row: int, tokens: Callable[[Sequence[int]], list[str]]
) -> dict[str, Any]:
    node, k = nodes.states[row], len(nodes.states[row].children)
    success = zip(nodes.estimate.s[row, :k], nodes.estimate.known[row, :k], strict=True)
    rollouts = (nodes.counts.total_a + nodes.counts.total_b)[row, :k]
    return {
        "depth": node.depth,
        "entropy": node.entropy,
        "children": ["(all others)" if x == REST else tokens([x])[0] for x in node.children],
        "ids": list(node.children),
        "student": node.p.tolist(),
        "success": [float(s) if known else None for s, known in success],
        "success_error": np.sqrt(nodes.doubt[row, :k]).tolist(),
        "rollouts": [int(n) for n in rollouts],
    }


def _teachers_record(
    tree: Tree, nodes: Nodes, row: int, scored: Mapping[tuple[int, int], "_Scored"]
) -> dict[str, Any]:
    """What each teacher does at a node, by objective; one that reads nothing there is absent."""
    probabilities = nodes.states[row].q
    return {
        teacher: {"probabilities": probabilities[c].tolist()}
        | {name: scored[c, o].at(row) for o, name in enumerate(tree.objectives)}
        for c, teacher in enumerate(tree.teachers)
        if not np.isnan(probabilities[c]).any()
    }


@dataclass(frozen=True, slots=True)
class _Scored:
    """The numbers of a teacher under an objective, at the nodes where it reads something."""

    rows: ndarray
    """Which nodes, ascending."""
    scores: NodeScores
    """Their numbers."""
    dot_error: ndarray
    """Standard errors of the dot."""
    advantage_error: ndarray
    """Standard errors of the advantage."""

    @staticmethod
    def of(nodes: Nodes, teacher: int, objective: int) -> "_Scored":
        """All nodes, by the index of teacher and objective."""
        scores, rows = node_scores(nodes, teacher, objective)
        dot, advantage = node_variances(nodes, teacher, objective, rows)
        return _Scored(rows, scores, np.sqrt(dot), np.sqrt(advantage))

    def at(self, row: int) -> dict[str, float | None]:
        """For the record of one of the nodes."""
        i, scores = int(np.searchsorted(self.rows, row)), self.scores
        cosine = float(scores.cosine[i])
        return {
            "dot": float(scores.dot[i]),
            "dot_error": float(self.dot_error[i]),
            "advantage": float(scores.advantage[i]),
            "advantage_error": float(self.advantage_error[i]),
            "cosine": None if math.isnan(cosine) else cosine,
            "move": float(math.sqrt(scores.move_square[i])),
        }
