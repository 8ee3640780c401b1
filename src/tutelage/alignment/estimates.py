"""From a tree and its counts to answers; no model is needed, so old counts can be read anew."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy import ndarray

from tutelage.alignment.branches import counts_of
from tutelage.alignment.nodes import REST, State
from tutelage.alignment.tree import Tree
from tutelage.ops.alignment.design import depth_windows
from tutelage.ops.alignment.moves import renormalise
from tutelage.ops.alignment.node import (
    Counts,
    NodeScores,
    Success,
    backup,
    score,
    success,
)
from tutelage.ops.alignment.pooling import (
    Difference,
    Pooled,
    Positions,
    compare,
    pool,
    pool_by_group,
)
from tutelage.ops.alignment.published import published_cosines
from tutelage.ops.intervals import Z95

ENTROPY_EDGES = (0.1, 1.0)
"""Nats of the student at which a node counts as sure, between, or open."""
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """All nodes as padded arrays, with the estimated success after each child."""

    states: Sequence[State]
    """[N] what was known before."""
    counts: Counts
    """[N, K] raw counts."""
    estimate: Success
    """[N, K] success after each child."""
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
    if use_backup:
        estimate = _backed_up(states, tree, estimate)
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


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What targeted rollouts say of every teacher and objective."""

    pooled: Mapping[tuple[str, str], Pooled]
    """By teacher and objective."""
    groups: Mapping[tuple[str, str], Mapping[str, Mapping[Hashable, Pooled]]]
    """The same by outcome of the spine, depth window, entropy and kind of token."""
    published: Mapping[str, Mapping[str, float | None]]
    """By teacher: mean cosine of the estimator of 2605.10889, on all, right and wrong spines."""
    differences: Mapping[tuple[str, str], Difference]
    """By pairs of teachers, for the run's own objective."""
    objective_differences: Mapping[str, Difference]
    """By teacher: reverse minus forward KL, where both were scored."""
    best: Mapping[str, str | None]
    """By question, the teacher with the largest advantage; None where it cannot be told."""
    covered: float
    """The student's mean mass on children that were forced one by one."""
    teacher_covered: Mapping[str, float]
    """Each teacher's mean mass on them. Were the others told apart too, the advantage of no node
    could move by more than the teacher's mass there."""
    tokens: int
    """Decoded tokens of targeted rollouts."""
    unknown: int
    """Rollouts that could not be judged; they count nowhere."""
    nodes: int
    """Nodes scored."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined is absent."""
        names = sorted({teacher for teacher, _ in self.pooled})
        return {
            "nodes": self.nodes,
            "tokens": self.tokens,
            "unknown": self.unknown,
            "covered": self.covered,
            "teachers": {
                teacher: {
                    "objectives": {
                        objective: plain(asdict(pooled))
                        | {
                            "by": {
                                kind: {str(k): plain(asdict(v)) for k, v in parts.items()}
                                for kind, parts in self.groups[teacher, objective].items()
                            }
                        }
                        for (name, objective), pooled in self.pooled.items()
                        if name == teacher
                    },
                    "covered": self.teacher_covered[teacher],
                    "published_mean_cosine": plain(dict(self.published[teacher])),
                }
                for teacher in names
            },
            "differences": {
                f"{one} - {other}": plain(asdict(d)) for (one, other), d in self.differences.items()
            },
            "reverse_kl - forward_kl": {
                teacher: plain(asdict(d)) for teacher, d in self.objective_differences.items()
            },
            "best_teacher": dict(self.best),
        }


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without undefined entries, nested ones included."""
    kept: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            value = plain(value)
        if value is not None and not (isinstance(value, float) and not math.isfinite(value)):
            kept[key] = list(value) if isinstance(value, tuple) else value
    return kept


def estimate(
    tree: Tree,
    records: Sequence[Mapping[str, Any]],
    kinds: Callable[[int], str],
    *,
    window: int,
    use_backup: bool = True,
    seed: int = 0,
    draws: int = _DRAWS,
) -> Alignment:
    """All answers from the branches done so far.

    Args:
        tree: the design.
        records: a record a finished branch.
        kinds: the kind of a token id.
        window: length of the first depth window.
        use_backup: see `AlignConfig.backup`.
        seed: of the resampling.
        draws: resamples of the questions.
    """
    nodes = gather(tree, records, use_backup=use_backup)
    groups = _groupings(tree, nodes, kinds, window)
    pooled: dict[tuple[str, str], Pooled] = {}
    by: dict[tuple[str, str], dict[str, Mapping[Hashable, Pooled]]] = {}
    for c, teacher in enumerate(tree.teachers):
        for o, objective in enumerate(tree.objectives):
            scores, rows = node_scores(nodes, c, o)
            if not len(rows):
                continue
            questions, weights = [nodes.questions[i] for i in rows], nodes.weights[rows]
            pooled[teacher, objective] = pool(
                scores,
                questions,
                weights,
                everywhere=_everywhere(tree, set(questions), c, o),
                seed=seed,
                draws=draws,
            )
            by[teacher, objective] = {
                kind: pool_by_group(
                    scores, questions, weights, [labels[i] for i in rows], seed=seed, draws=draws
                )
                for kind, labels in groups.items()
            }
    return Alignment(
        pooled=pooled,
        groups=by,
        published=_published(tree, nodes),
        differences=_differences(tree, nodes, seed, draws),
        objective_differences=_objective_differences(tree, nodes, seed, draws),
        best=_best(tree, nodes),
        covered=float(np.average(nodes.covered, weights=nodes.weights)),
        teacher_covered=_teacher_covered(tree, nodes),
        tokens=sum(record["tokens"] for record in records),
        unknown=sum(record["unknown"] for record in records),
        nodes=len(nodes.states),
    )


def _teacher_covered(tree: Tree, nodes: Nodes) -> dict[str, float]:
    """Mean mass of every teacher on the children but the rest, over the nodes where it reads."""
    found: dict[str, float] = {}
    for c, teacher in enumerate(tree.teachers):
        present = [row for row, node in enumerate(nodes.states) if not np.isnan(node.q[c]).any()]
        states = [nodes.states[row] for row in present]
        masses = [1 - n.q[c][-1] if n.children[-1] == REST else 1.0 for n in states]
        if masses:
            found[teacher] = float(np.average(masses, weights=nodes.weights[present]))
    return found


def _groupings(
    tree: Tree, nodes: Nodes, kinds: Callable[[int], str], window: int
) -> dict[str, list[Hashable]]:
    longest = max(node.depth for node in nodes.states) + 1
    windows = depth_windows(longest, window)
    starts = {int(w): int(np.flatnonzero(windows == w)[0]) for w in np.unique(windows)}
    entropies = [int(np.digitize(node.entropy, ENTROPY_EDGES)) for node in nodes.states]
    tokens = [tree.spines[node.spine].rollout.completion_ids[node.depth] for node in nodes.states]
    return {
        "outcome": ["right" if verdict else "wrong" for verdict in nodes.right],
        "depth": [f"from {starts[int(windows[node.depth])] + 1}" for node in nodes.states],
        "entropy": [("sure", "between", "open")[e] for e in entropies],
        "token": [kinds(token) for token in tokens],
    }


def _everywhere(tree: Tree, questions: set[str], teacher: int, objective: int) -> Positions:
    """||D||^2 at all positions of the spines of these questions."""
    owners: list[str] = []
    weights: list[float] = []
    squares: list[float] = []
    for name, spine in tree.spines.items():
        values = tree.squares[name][:, teacher, objective]
        if spine.question in questions and not np.isnan(values).any():
            owners += [spine.question] * len(values)
            weights += [spine.weight] * len(values)
            squares += values.tolist()
    return Positions(questions=owners, weights=np.array(weights), move_square=np.array(squares))


def _differences(
    tree: Tree, nodes: Nodes, seed: int, draws: int
) -> dict[tuple[str, str], Difference]:
    found: dict[tuple[str, str], Difference] = {}
    objective = tree.objectives.index("objective")
    for one in range(len(tree.teachers)):
        for other in range(one + 1, len(tree.teachers)):
            (a, rows), (b, others) = (node_scores(nodes, c, objective) for c in (one, other))
            both = np.intersect1d(rows, others)
            if len(both):
                found[tree.teachers[one], tree.teachers[other]] = compare(
                    a[np.searchsorted(rows, both)],
                    b[np.searchsorted(others, both)],
                    [nodes.questions[i] for i in both],
                    nodes.weights[both],
                    seed=seed,
                    draws=draws,
                )
    return found


def _objective_differences(
    tree: Tree, nodes: Nodes, seed: int, draws: int
) -> dict[str, Difference]:
    pair = ("reverse_kl", "forward_kl")
    if not set(pair) <= set(tree.objectives):
        return {}
    found: dict[str, Difference] = {}
    for c, teacher in enumerate(tree.teachers):
        (a, rows), (b, _) = (node_scores(nodes, c, tree.objectives.index(o)) for o in pair)
        if len(rows):
            questions = [nodes.questions[i] for i in rows]
            found[teacher] = compare(a, b, questions, nodes.weights[rows], seed=seed, draws=draws)
    return found


def _best(tree: Tree, nodes: Nodes) -> dict[str, str | None]:
    """The teacher whose advantage on a question exceeds every other's beyond chance."""
    if len(tree.teachers) < 2:
        return {}
    pairs = len(tree.teachers) - 1
    bar = NormalDist().inv_cdf(1 - 0.025 / pairs) if pairs > 1 else Z95
    best: dict[str, str | None] = {}
    for question in dict.fromkeys(nodes.questions):
        rows = np.array([q == question for q in nodes.questions])
        q, w = nodes.q[:, rows], nodes.weights[rows]
        present = [c for c in range(len(tree.teachers)) if not np.isnan(q[c]).any()]
        s, variance = nodes.estimate.s[rows], nodes.estimate.variance[rows]
        advantages = {c: float((w * ((q[c] - nodes.p[rows]) * s).sum(-1)).sum()) for c in present}
        if not advantages:
            continue
        first = max(advantages, key=lambda c: advantages[c])
        clear = len(present) > 1
        for other in present:
            if not clear or other == first:
                continue
            gap = q[first] - q[other]
            error = math.sqrt(float((w**2 * (gap**2 * variance).sum(-1)).sum()))
            clear = advantages[first] - advantages[other] > bar * error
        best[question] = tree.teachers[first] if clear else None
    return best


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


def _published(tree: Tree, nodes: Nodes) -> dict[str, dict[str, float | None]]:
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


def reliability_table(
    nodes: Nodes,
    tree: Tree,
    teacher: str,
    *,
    positions: Sequence[float] = (0.25, 0.5, 0.75),
    entropies: Sequence[float] = ENTROPY_EDGES,
    objective: str = "objective",
) -> dict[str, Any]:
    """How far to trust a teacher by relative position and by its own entropy.

    The weight of a cell is the share of its move that points towards success, its pooled
    alignment drawn towards the overall one where few nodes speak, and 0 where it points away. In
    the form that `objective.weight: {type: reliability, table: FILE}` reads.
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
    overall = float((weights * scores.dot).sum() / (weights * scores.move_square).sum())
    prior = 0.1 * float((weights * scores.move_square).sum())
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
    """One record a spine: its tokens, and at its nodes what was found there."""
    rows: dict[str, list[int]] = {}
    for row, node in enumerate(nodes.states):
        rows.setdefault(node.spine, []).append(row)
    scored = {
        (c, o): node_scores(nodes, c, o)
        for c in range(len(tree.teachers))
        for o in range(len(tree.objectives))
    }
    records: list[dict[str, Any]] = []
    for name, members in rows.items():
        spine = tree.spines[name]
        found = []
        for row in members:
            node, k = nodes.states[row], len(nodes.states[row].children)
            shown = ["(all others)" if x == REST else tokens([x])[0] for x in node.children]
            entry: dict[str, Any] = {
                "depth": node.depth,
                "children": shown,
                "ids": list(node.children),
                "student": node.p.tolist(),
                "success": [
                    float(s) if known else None
                    for s, known in zip(
                        nodes.estimate.s[row, :k], nodes.estimate.known[row, :k], strict=True
                    )
                ],
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
                        "advantage": float(scores.advantage[at]),
                        "cosine": None if math.isnan(cosine) else cosine,
                        "move": float(math.sqrt(scores.move_square[at])),
                    }
            found.append(entry)
        records.append(
            {
                "question": spine.question,
                "index": spine.rollout.index,
                "right": spine.right,
                "prompt": spine.rollout.prompt.question,
                "tokens": tokens(spine.rollout.completion_ids),
                "nodes": found,
            }
        )
    return records
