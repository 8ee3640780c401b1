"""What an alignment will cost, before anything is spent."""

from typing import Any

import numpy as np

from tutelage.alignment.tree import Tree
from tutelage.ops.alignment.design import RolloutCost, rollout_cost

DECODE_COST = 10.0
"""Work of decoding a token over that of prefilling one; from 1 to 30, by model and batch."""


def plan_of(tree: Tree) -> dict[str, Any]:
    """Sizes, tokens and work, for a reader."""
    work = work_of(tree)
    return {
        "questions": len({spine.question for spine in tree.spines.values()}),
        "natural_rollouts": tree.natural,
        "natural_tokens": tree.natural_tokens,
        "spines": len(tree.spines),
        "nodes": len(tree.nodes),
        "children": sum(map(len, tree.rollouts)),
        "targeted_rollouts": sum(map(sum, tree.rollouts)),
        "expected_tokens": round(tree.expected_tokens),
        "teacher_tokens": {
            teacher: sum(
                len(view) + len(spine.rollout.completion_ids)
                for spine in tree.spines.values()
                if (view := spine.views[teacher]) is not None
            )
            for teacher in tree.teachers
        },
        "work": {
            "decode_cost": DECODE_COST,
            "ours": round(work.batched),
            "one_at_a_time": round(work.naive),
        },
    }


def work_of(tree: Tree, decode_cost: float = DECODE_COST) -> RolloutCost:
    """Work of the targeted rollouts, as long as their spines are, in prefilled tokens' worth."""
    parts: dict[str, list[tuple[int, int, float]]] = {}
    for node, counts in zip(tree.nodes, tree.rollouts, strict=True):
        if rolled := [count for count in counts if count]:
            found = (node.depth, len(rolled), float(np.mean(rolled)))
            parts.setdefault(node.spine, []).append(found)
    total = np.zeros(3)
    for name, rolled_nodes in parts.items():
        rollout = tree.spines[name].rollout
        depths, children, rollouts = np.array(rolled_nodes).T
        cost = rollout_cost(
            len(rollout.prompt_ids),
            len(rollout.completion_ids),
            depths,
            children,
            rollouts,
            decode_cost,
        )
        total += [cost.naive, cost.batched, cost.cached]
    naive, batched, cached = total.tolist()
    return RolloutCost(naive=naive, batched=batched, cached=cached)
