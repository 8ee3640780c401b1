"""The estimator of 2605.10889 on the nodes of an alignment, for comparison alone."""

import numpy as np
from numpy import ndarray

from tutelage.alignment.measured import Nodes
from tutelage.alignment.nodes import REST
from tutelage.alignment.tree import Tree
from tutelage.ops.alignment.published import published_cosines


def published_nodes(tree: Tree, nodes: Nodes, teacher: int) -> ndarray:
    """Cosine [N] of each node as 2605.10889 counts: ancestors credited, own outcomes included.

    NaN where too few children were visited often enough, or the teacher has nothing to read.
    """
    right = nodes.counts.right_a + nodes.counts.right_b
    total = nodes.counts.total_a + nodes.counts.total_b
    for row, node in enumerate(nodes.states):  # the lumped rest is ours alone
        if node.children[-1] == REST:
            right[row, len(node.children) - 1] = total[row, len(node.children) - 1] = 0.0
    rows: dict[str, list[int]] = {}
    for row, node in enumerate(nodes.states):
        rows.setdefault(node.spine, []).append(row)
    for spine, members in rows.items():
        members.sort(key=lambda i: -nodes.states[i].depth)
        below_right, below_total = float(tree.spines[spine].right), 1.0
        for row in members:
            node = nodes.states[row]
            own_right, own_total = right[row].sum(), total[row].sum()
            token = tree.spines[spine].rollout.completion_ids[node.depth]
            child = node.children.index(token)
            right[row, child] += below_right
            total[row, child] += below_total
            below_right, below_total = below_right + own_right, below_total + own_total
    found = np.full(len(nodes.states), np.nan)
    present = ~np.isnan(nodes.q[teacher]).any(-1)
    with np.errstate(invalid="ignore"):
        found[present] = published_cosines(
            nodes.p[present], nodes.q[teacher, present], right[present], total[present]
        )
    return found


def published_means(tree: Tree, nodes: Nodes) -> dict[str, dict[str, float | None]]:
    """Mean of `published_nodes` by teacher, on all, right and wrong spines."""
    found: dict[str, dict[str, float | None]] = {}
    for c, teacher in enumerate(tree.teachers):
        cosines = published_nodes(tree, nodes, c)
        parts = {"all": cosines, "right": cosines[nodes.right], "wrong": cosines[~nodes.right]}
        found[teacher] = {
            name: None if np.isnan(part).all() else float(np.nanmean(part))
            for name, part in parts.items()
        }
    return found
