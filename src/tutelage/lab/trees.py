"""Problems small enough to enumerate: every expectation that `align` estimates, exactly.

A tree is a student with a logit for every token of every prefix, a teacher likewise, and a
chance to be right at every leaf. Arrays may carry leading axes, so that many trees, or many
replicates of one, are walked and measured at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

from tutelage.ops.alignment.design import allocate, inclusion, node_sizes, systematic
from tutelage.ops.alignment.moves import ideal_gradient, kl
from tutelage.ops.alignment.node import Counts


@dataclass(frozen=True, kw_only=True)
class Tree:
    """An enumerable student, teacher and verifier; nodes run breadth first, children by token."""

    student: tuple[ndarray, ...]
    """[..., N_d, K_d] log-probabilities at each depth; N_0 is 1 and N_{d+1} is N_d K_d."""
    teacher: tuple[ndarray, ...]
    """[..., N_d, K_d] the teacher's."""
    rewards: ndarray
    """[..., N_D] chance to be right at each leaf."""

    @cached_property
    def depths(self) -> ndarray:
        """[N] depth of each node."""
        return np.repeat(np.arange(len(self.student)), [x.shape[-2] for x in self.student])

    @cached_property
    def p(self) -> ndarray:
        """[..., N, K] student of each node, padded with 0."""
        return self._padded([np.exp(level) for level in self.student])

    @cached_property
    def q(self) -> ndarray:
        """[..., N, K] teacher of each node."""
        return self._padded([np.exp(level) for level in self.teacher])

    @cached_property
    def s(self) -> ndarray:
        """[..., N, K] success after each child."""
        return self._padded(self._backward(self.rewards, [0.0 for _ in self.student]))

    @cached_property
    def success(self) -> ndarray:
        """[...] J, the chance that a rollout is right."""
        return np.asarray((self.p[..., 0, :] * self.s[..., 0, :]).sum(-1))

    @cached_property
    def visits(self) -> ndarray:
        """[..., N] rho, the chance that a rollout passes each node."""
        levels = [np.ones((*self.student[0].shape[:-2], 1))]
        for level in self.student[:-1]:
            reached = levels[-1][..., None] * np.exp(level)
            levels.append(reached.reshape(*reached.shape[:-2], -1))
        return np.concatenate(levels, axis=-1)

    @cached_property
    def downstream(self) -> ndarray:
        """[..., N, K] C, the reverse KL still to come after each child."""
        local = [kl(np.exp(p), np.exp(q)) for p, q in zip(self.student, self.teacher, strict=True)]
        return self._padded(self._backward(np.zeros_like(self.rewards), local))

    def expected(self, move: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """Sums over the nodes of a rollout of <g,D>, ||g||^2 and ||D||^2, in expectation [...]."""
        g = ideal_gradient(self.p, self.s)
        dot, square, size = (g * move).sum(-1), (g * g).sum(-1), (move * move).sum(-1)
        sums = ((self.visits * x).sum(-1) for x in (dot, square, size))
        first, second, third = map(np.asarray, sums)
        return first, second, third

    def tabular_cosine(self, move: ndarray) -> ndarray:
        """Cosine [...] of the whole tree's gradients: every node's vectors weigh rho each."""
        g = ideal_gradient(self.p, self.s)
        weight = self.visits**2
        dot, square, size = ((weight * x.sum(-1)).sum(-1) for x in (g * move, g * g, move * move))
        return np.asarray(dot / np.sqrt(square * size))

    def repeated(self, times: int) -> "Tree":
        """`times` copies along a new leading axis, without copying memory."""

        def repeat(x: ndarray) -> ndarray:
            return np.broadcast_to(x, (times, *x.shape))

        return Tree(
            student=tuple(map(repeat, self.student)),
            teacher=tuple(map(repeat, self.teacher)),
            rewards=repeat(self.rewards),
        )

    def __getitem__(self, rows: ndarray | slice | int) -> "Tree":
        """Some of the trees along the first leading axis."""
        return Tree(
            student=tuple(level[rows] for level in self.student),
            teacher=tuple(level[rows] for level in self.teacher),
            rewards=self.rewards[rows],
        )

    def _backward(self, leaves: ndarray, local: Sequence[ndarray | float]) -> list[ndarray]:
        """What is expected after each child, depth by depth: the local term and all below."""
        after: list[ndarray] = []
        values = leaves
        for level, term in zip(reversed(self.student), reversed(local), strict=True):
            after.append(values.reshape(level.shape))
            values = (np.exp(level) * after[-1]).sum(-1) + term
        return after[::-1]

    def _padded(self, levels: Sequence[ndarray]) -> ndarray:
        width = max(level.shape[-1] for level in levels)
        pads = [[(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])] for x in levels]
        padded = [np.pad(x, pad) for x, pad in zip(levels, pads, strict=True)]
        return np.concatenate(padded, axis=-2)


def tree_from_logits(
    student: Sequence[ndarray], teacher: Sequence[ndarray], rewards: ndarray
) -> Tree:
    """A tree from logits of each depth."""

    def normalised(logits: ndarray) -> ndarray:
        return np.asarray(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))

    return Tree(
        student=tuple(map(normalised, student)),
        teacher=tuple(map(normalised, teacher)),
        rewards=rewards,
    )


def random_trees(
    rng: np.random.Generator,
    count: int,
    widths: Sequence[int] = (3, 3, 3),
    *,
    insight: float = 1.0,
    noise: float = 0.7,
    sureness: float = 1.0,
) -> Tree:
    """`count` trees, their teachers leaning towards what succeeds.

    Args:
        rng: source of all numbers.
        count: trees.
        widths: children a node at each depth.
        insight: how much the teacher prefers what succeeds, in nats from never to always.
        noise: standard deviation of what else it prefers, in nats.
        sureness: multiplies the student's logits.

    Trees differ in how sure the student is and in how hard the problem is.
    """
    sizes = np.cumprod([1, *widths])
    sharpness = sureness * rng.gamma(4, 0.3, (count, 1, 1))
    student = [
        sharpness * rng.normal(size=(count, n, k)) for n, k in zip(sizes, widths, strict=False)
    ]
    ease = rng.uniform(0.2, 0.8, (count, 1))
    rewards = (rng.random((count, sizes[-1])) < ease).astype(float)
    plain = tree_from_logits(student, student, rewards)
    after = plain._backward(rewards, [0.0 for _ in student])
    teacher = [
        logits + insight * s + noise * rng.normal(size=s.shape)
        for logits, s in zip(student, after, strict=True)
    ]
    return tree_from_logits(student, teacher, rewards)


@dataclass(frozen=True, kw_only=True)
class Walks:
    """Natural rollouts of B trees."""

    nodes: ndarray
    """[B, G, D] the node at each depth."""
    tokens: ndarray
    """[B, G, D] the child taken."""
    right: ndarray
    """bool [B, G] verdicts."""


def walk(trees: Tree, rollouts: int, rng: np.random.Generator) -> Walks:
    """`rollouts` natural rollouts of each of B trees."""
    batch = len(trees.rewards)
    rows = np.arange(batch)[:, None]
    place = np.zeros((batch, rollouts), dtype=np.int64)
    nodes, tokens, offset = [], [], 0
    for level in trees.student:
        edges = np.exp(level[rows, place]).cumsum(-1)
        token = (rng.random((batch, rollouts, 1)) * edges[..., -1:] >= edges).sum(-1)
        nodes.append(place + offset)
        tokens.append(token)
        offset += level.shape[-2]
        place = place * level.shape[-1] + token
    right = rng.random((batch, rollouts)) < trees.rewards[rows, place]
    return Walks(nodes=np.stack(nodes, -1), tokens=np.stack(tokens, -1), right=right)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Counts at M scored nodes of B trees, as `align` takes them."""

    tree: ndarray
    """[M] which tree."""
    node: ndarray
    """[M] which node of it."""
    spine: ndarray
    """[M] which spine, over all trees."""
    token: ndarray
    """[M] the child the spine took."""
    right: ndarray
    """bool [M] the verdict on the spine."""
    weights: ndarray
    """[M] stratum weight / pi."""
    counts: Counts
    """[M, K] of the forced rollouts."""


def measure_trees(
    trees: Tree,
    moves: Sequence[ndarray],
    rng: np.random.Generator,
    *,
    natural: int = 12,
    spines: int = 2,
    per_window: int | None = None,
    windows: Sequence[int] | None = None,
    rollouts: int = 8,
    uniform: bool = False,
    plan_by_tree: bool = False,
) -> Measurement:
    """Measure B trees: walk, choose spines by verdict, draw nodes, allocate, roll out.

    Args:
        trees: with one leading axis.
        moves: D of each teacher or objective at every node, [B, N, K].
        rng: source of all numbers.
        natural: rollouts a tree that spines are chosen from.
        spines: of each verdict, as far as there are so many.
        per_window: nodes of a spine drawn in each window; None takes all nodes.
        windows: window of each depth; None makes all depths one.
        rollouts: mean number a child.
        uniform: the same number for every child.
        plan_by_tree: allocate within each tree, instead of over all.
    """
    walks = walk(trees, natural, rng)
    chosen, stratum = _spines(walks.right, spines, rng)
    tree, row = np.nonzero(chosen)
    nodes, tokens = walks.nodes[tree, row], walks.tokens[tree, row]
    stacked = np.stack([move[tree[:, None], nodes] for move in moves])
    taken, pi = np.ones(nodes.shape, dtype=bool), np.ones(nodes.shape)
    if per_window is not None:
        flat = stacked.reshape(len(stacked), -1, stacked.shape[-1])
        sizes = node_sizes(flat, 0.1 * float(np.sqrt((flat**2).sum(-1)).mean()))
        sizes = sizes.reshape(nodes.shape)
        labels = np.zeros(nodes.shape[1], dtype=int) if windows is None else np.asarray(windows)
        for label in np.unique(labels):
            here = labels == label
            pi[:, here] = inclusion(sizes[:, here], per_window)
            taken[:, here] = systematic(pi[:, here], rng.random(len(nodes)))
    spine, depth = np.nonzero(taken)
    tree_of, node_of = tree[spine], nodes[spine, depth]
    p, s = trees.p[tree_of, node_of], trees.s[tree_of, node_of]
    weights = stratum[tree, row][spine] / pi[spine, depth]
    kept = p > 0
    if uniform:
        plan = np.where(kept, rollouts, 0)
    else:
        plan = np.zeros(p.shape, dtype=np.int64)
        scopes = (
            [tree_of == b for b in range(len(trees.rewards))] if plan_by_tree else [slice(None)]
        )
        for scope in scopes:
            plan[scope] = allocate(
                p[scope],
                stacked[:, spine, depth][:, scope],
                np.ones(p[scope].shape),
                weights[scope],
                kept[scope],
                budget=rollouts * int(kept[scope].sum()),
            )
    halves = (plan + 1) // 2, plan // 2
    right_a, right_b = (rng.binomial(half, np.clip(s, 0, 1)) for half in halves)
    return Measurement(
        tree=tree_of,
        node=node_of,
        spine=spine,
        token=tokens[spine, depth],
        right=walks.right[tree, row][spine],
        weights=weights,
        counts=Counts(right_a=right_a, total_a=halves[0], right_b=right_b, total_b=halves[1]),
    )


def _spines(right: ndarray, each: int, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
    """Up to `each` rollouts of each verdict, at random, with the weights of their stratum."""
    chosen = np.zeros(right.shape, dtype=bool)
    weights = np.zeros(right.shape)
    luck = rng.random(right.shape)
    for verdict in (True, False):
        members = right == verdict
        place = np.where(members, luck, 2.0).argsort(-1).argsort(-1)
        here = members & (place < each)
        chosen |= here
        share = members.mean(-1, keepdims=True) / np.maximum(here.sum(-1, keepdims=True), 1)
        weights = np.where(here, share, weights)
    return chosen, weights
