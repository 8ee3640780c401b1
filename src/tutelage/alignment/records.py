"""What the files of an alignment hold for readers: a record a spine, and a table for training."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tutelage.alignment.estimates import ENTROPY_EDGES
from tutelage.alignment.measured import Nodes, node_scores, node_variances
from tutelage.alignment.nodes import REST
from tutelage.alignment.tree import Tree
from tutelage.ops.alignment.moves import NEGLIGIBLE


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
    scored = {
        (c, o): node_scores(nodes, c, o)
        for c in range(len(tree.teachers))
        for o in range(len(tree.objectives))
    }
    errors = {
        (c, o): [np.sqrt(x) for x in node_variances(nodes, c, o, rows)]
        for (c, o), (_, rows) in scored.items()
    }
    own = tree.objectives.index("objective")
    records: list[dict[str, Any]] = []
    for name, members in rows.items():
        spine = tree.spines[name]
        found = []
        for row in members:
            node, k = nodes.states[row], len(nodes.states[row].children)
            shown = ["(all others)" if x == REST else tokens([x])[0] for x in node.children]
            entry: dict[str, Any] = {
                "depth": node.depth,
                "entropy": node.entropy,
                "children": shown,
                "ids": list(node.children),
                "student": node.p.tolist(),
                "success": [
                    float(s) if known else None
                    for s, known in zip(
                        nodes.estimate.s[row, :k], nodes.estimate.known[row, :k], strict=True
                    )
                ],
                "success_error": np.sqrt(nodes.doubt[row, :k]).tolist(),
                "rollouts": [
                    int(n) for n in (nodes.counts.total_a + nodes.counts.total_b)[row, :k]
                ],
                "teachers": {},
            }
            for c, teacher in enumerate(tree.teachers):
                if np.isnan(node.q[c]).any():
                    continue
                entry["teachers"][teacher] = {"probabilities": node.q[c].tolist()}
                for o, objective in enumerate(tree.objectives):
                    scores, places = scored[c, o]
                    at = int(np.searchsorted(places, row))
                    cosine = float(scores.cosine[at])
                    entry["teachers"][teacher][objective] = {
                        "dot": float(scores.dot[at]),
                        "dot_error": float(errors[c, o][0][at]),
                        "advantage": float(scores.advantage[at]),
                        "advantage_error": float(errors[c, o][1][at]),
                        "cosine": None if math.isnan(cosine) else cosine,
                        "move": float(math.sqrt(scores.move_square[at])),
                    }
            found.append(entry)
        records.append(
            {
                "question": spine.question,
                "index": spine.rollout.index,
                "right": spine.right,
                "weight": spine.weight,
                "prompt": spine.rollout.prompt.question,
                "tokens": tokens(spine.rollout.completion_ids),
                "moves": {
                    teacher: np.sqrt(squares).tolist()
                    for teacher, squares in zip(
                        tree.teachers, tree.squares[name][:, :, own].T, strict=True
                    )
                    if not np.isnan(squares).any()
                },
                "nodes": found,
            }
        )
    return records
