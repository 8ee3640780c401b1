"""From a tree and its counts to answers; no model is needed, so old counts can be read anew."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from tutelage.alignment.measured import Nodes, gather, node_scores, node_variances
from tutelage.alignment.nodes import REST
from tutelage.alignment.published import published_means
from tutelage.alignment.tree import Tree
from tutelage.ops.alignment.design import depth_windows
from tutelage.ops.alignment.pooling import (
    Difference,
    Pooled,
    Positions,
    compare,
    pool,
    pool_by_group,
)
from tutelage.ops.intervals import Z95

ENTROPY_EDGES = (0.1, 1.0)
"""Nats at which a node counts as sure, between, or open."""
_DRAWS = 2000


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
    questions: Mapping[str, Mapping[str, Mapping[str, float]]]
    """By question and teacher: advantage and dot a visit, each with the error of its rollouts."""
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
            "questions": {question: dict(by) for question, by in self.questions.items()},
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
        published=published_means(tree, nodes),
        differences=_differences(tree, nodes, seed, draws),
        objective_differences=_objective_differences(tree, nodes, seed, draws),
        best=_best(tree, nodes),
        questions=_by_question(tree, nodes),
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


def _by_question(tree: Tree, nodes: Nodes) -> dict[str, dict[str, dict[str, float]]]:
    """Mean advantage and dot a visit of every teacher on each question, for the run's objective.

    The errors are those of the rollouts at the nodes that were drawn.
    """
    o = tree.objectives.index("objective")
    found: dict[str, dict[str, dict[str, float]]] = {q: {} for q in nodes.questions}
    for c, teacher in enumerate(tree.teachers):
        scores, rows = node_scores(nodes, c, o)
        variances = node_variances(nodes, c, o, rows)
        owners = np.array([nodes.questions[i] for i in rows])
        for question in dict.fromkeys(owners.tolist()):
            here = owners == question
            w = nodes.weights[rows][here]
            w = w / w.sum()
            told = found[question][teacher] = {}
            numbers = {"advantage": scores.advantage, "dot": scores.dot}
            for (name, values), variance in zip(numbers.items(), variances[::-1], strict=True):
                told[name] = float(w @ values[here])
                told[f"{name}_error"] = math.sqrt(float(w**2 @ variance[here]))
    return found


def _best(tree: Tree, nodes: Nodes) -> dict[str, str | None]:
    """The teacher whose advantage on a question exceeds every other's beyond chance.

    Chance is that of the rollouts, with `doubt`: outcomes that all agree are no certainty.
    """
    if len(tree.teachers) < 2:
        return {}
    pairs = len(tree.teachers) - 1
    bar = NormalDist().inv_cdf(1 - 0.025 / pairs) if pairs > 1 else Z95
    best: dict[str, str | None] = {}
    for question in dict.fromkeys(nodes.questions):
        rows = np.array([q == question for q in nodes.questions])
        q, w = nodes.q[:, rows], nodes.weights[rows]
        present = [c for c in range(len(tree.teachers)) if not np.isnan(q[c]).any()]
        s, variance = nodes.estimate.s[rows], nodes.doubt[rows]
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
