"""Decoded tokens that each design of targeted rollouts takes for the same error, in simulation.

    python benchmarks/alignment_lab.py truth       # first
    python benchmarks/alignment_cost.py as-measured
    python benchmarks/alignment_cost.py noisy      # with success nearly flat

The population is every state that alignment_lab.py measured, so one rollout is one draw. Prints
tables of docs/alignment.md, section "Experiments on the embedded pair". Files of `truth` are in
runs/alignment-lab, or in the folder given after the name.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from alignment_lab import TEACHERS, bench_of_all, key_of, read_truth, run_part
from numpy import ndarray
from results import print_table

from tutelage.alignment.bench import plant
from tutelage.alignment.nodes import REST, State, choose_nodes
from tutelage.alignment.spines import Spine, choose_spines
from tutelage.alignment.tree import allocate_rollouts, nodes_per_window
from tutelage.config import AlignConfig
from tutelage.ops.alignment.design import draw_nodes
from tutelage.ops.alignment.node import Success, noise_weights, score


@dataclass(frozen=True)
class Population:
    """Every state of every natural rollout, with its success as measured by `truth`."""

    spines: Sequence[Sequence[Spine]]
    """By question."""
    states: Mapping[str, Sequence[State]]
    """By spine."""
    outcomes: Mapping[str, tuple[float | None, ...]]
    """By state: outcomes of settled children."""
    s: Mapping[str, ndarray]
    """[K] by state."""
    tokens: Mapping[str, ndarray]
    """[K] by state: mean decoded tokens of a rollout."""

    def shrunk(self, factor: float) -> "Population":
        """The same with success drawn towards its mean at each state."""
        s = {}
        for parts in self.states.values():
            for state in parts:
                mean = float(state.p @ self.s[state.name])
                s[state.name] = mean + factor * (self.s[state.name] - mean)
        outcomes = {name: (None,) * len(found) for name, found in self.outcomes.items()}
        return replace(self, s=s, outcomes=self.outcomes if factor == 1 else outcomes)

    def alignment(self, reliability_at: int = 0) -> float:
        """A of the population; or its reliability with so many rollouts of every child."""
        sums = np.zeros(4)
        for question in self.spines:
            for spine in question:
                for state in self.states[spine.name]:
                    s, d = self.s[state.name], state.moves[0, 0]
                    g = state.p * (s - state.p @ s)
                    rolled = [o is None for o in self.outcomes[state.name]]
                    noise = noise_weights(state.p) * s * (1 - s) * rolled
                    sums += np.array([g @ d, g @ g, d @ d, noise.sum()]) / len(question)
        if reliability_at:
            return float(sums[1] / (sums[1] + sums[3] / reliability_at))
        return float(sums[0] / np.sqrt(sums[1] * sums[2]))


def population(folder: Path) -> Population:
    """Student <- compatible, with the children that this teacher alone asks for."""
    known = read_truth(folder)
    wide, tree = plant(bench_of_all(*TEACHERS)), plant(bench_of_all(TEACHERS[0]))
    states: dict[str, list[State]] = defaultdict(list)
    success, tokens, outcomes = {}, {}, {}
    pairs = zip(tree.nodes, wide.nodes, tree.settled, wide.settled, strict=True)
    for state, whole, settled_ones, whole_settled in pairs:
        if state.name != whole.name:
            raise ValueError("the two trees must have the same states")
        left = len(tree.spines[state.spine].rollout.completion_ids) - state.depth - 1
        found = {}
        for child, outcome in zip(whole.children, whole_settled, strict=True):
            key = key_of(wide, whole, child)
            if outcome is not None:
                found[child] = (float(outcome), 0.0)
            elif key in known:
                found[child] = (known[key].s, known[key].tokens / known[key].total)
            else:  # the only child
                found[child] = (0.5, float(left))
        p = dict(zip(whole.children, whole.p, strict=True))
        dropped = [child for child in whole.children if child not in state.children]
        if REST in state.children:
            parts = [REST] * (REST in whole.children) + [c for c in dropped if c != REST]
            mass = np.array([max(p[c], 1e-12) for c in parts])
            values = np.array([found[c] for c in parts])
            found[REST] = tuple((mass / mass.sum()) @ values)
        success[state.name], tokens[state.name] = np.array([found[c] for c in state.children]).T
        outcomes[state.name] = settled_ones
        states[state.spine].append(state)
    by_question: dict[str, list[Spine]] = defaultdict(list)
    for spine in tree.spines.values():
        by_question[spine.question].append(spine)
    return Population(list(by_question.values()), states, outcomes, success, tokens)


@dataclass
class Draw:
    """32 questions and 4 spines of each, with all states; the same for every design."""

    spines: dict[str, Spine]
    parts: list[list[State]]
    lengths: ndarray
    natural_tokens: int
    move_square: float
    scale: float


def draw_questions(people: Population, rng: np.random.Generator, questions: int = 32) -> Draw:
    """Questions with replacement, spines as the command chooses them."""
    spines, parts, lengths, size = {}, [], [], 0.0
    for copy, place in enumerate(rng.integers(0, len(people.spines), questions)):
        group = [spine.rollout for spine in people.spines[place]]
        lengths += [len(r.completion_ids) for r in group]
        for rollout, weight in choose_spines(group, 4, rng):
            spine = Spine(rollout=rollout, weight=weight, views={})
            name = f"{copy}:{spine.name}"
            spines[name] = spine
            parts.append([replace(state, spine=name) for state in people.states[spine.name]])
            size += weight * sum(float((x.moves[0, 0] ** 2).sum()) for x in parts[-1])
    norms = [np.sqrt((x.moves[0, 0] ** 2).sum()) for part in parts for x in part]
    return Draw(spines, parts, np.array(lengths), int(sum(lengths)), size, float(np.mean(norms)))


Design = Callable[[Population, Draw, float, np.random.Generator], tuple[list[State], list]]
"""Nodes and rollouts of each child, from the amount to spend."""


def evenly(rollouts: int, *, by_size: bool) -> Design:
    """So many nodes a spine, the same rollouts of every child."""

    def design(people: Population, drawn: Draw, amount: float, rng: np.random.Generator):
        chosen = []
        for part in drawn.parts:
            sizes = np.ones(len(part))
            if by_size:
                norms = np.array([np.sqrt((x.moves[0, 0] ** 2).sum()) for x in part])
                sizes = 0.1 + norms / drawn.scale
            places, chances = draw_nodes(sizes, int(amount), rng)
            chosen += [
                replace(part[i], chance=float(chance))
                for i, chance in zip(places, chances, strict=True)
            ]
        counts = []
        for node in chosen:
            outcomes = people.outcomes[original(node.name)]
            single = len(node.children) == 1
            counts.append([0 if single or o is not None else rollouts for o in outcomes])
        return chosen, counts

    return design


def original(name: str) -> str:
    """The state's name without the copy of its question."""
    return name.split(":", 1)[1]


def as_commanded(people: Population, drawn: Draw, amount: float, rng: np.random.Generator):
    """What `tutelage align` does with a budget of `amount` tokens."""
    settings = AlignConfig(budget=max(1, int(amount)))
    scale = np.full((1, 2), drawn.scale)
    scale[0, 1] = np.inf  # one objective
    left = settings.budget - drawn.natural_tokens
    per_window = nodes_per_window(drawn.parts, scale, drawn.lengths, settings, left)
    chosen = [
        node
        for part in drawn.parts
        for node in choose_nodes(part, scale, per_window, settings.window, settings.explore, rng)
    ]
    outcomes = [people.outcomes[original(node.name)] for node in chosen]
    counts, _ = allocate_rollouts(
        chosen, outcomes, drawn.spines, scale, drawn.lengths, settings, left
    )
    return chosen, counts


def measure_once(
    people: Population, drawn: Draw, chosen: Sequence[State], counts: Sequence, rng
) -> tuple[float, float, float]:
    """A, decoded tokens and reliability of one simulated alignment."""
    width = max(len(node.children) for node in chosen)
    p, d, s, r, length = np.zeros((5, len(chosen), width))
    settled_ones = np.ones((len(chosen), width), dtype=bool)
    for row, (node, numbers) in enumerate(zip(chosen, counts, strict=True)):
        k, name = len(node.children), original(node.name)
        p[row, :k], d[row, :k], s[row, :k] = node.p, node.moves[0, 0], people.s[name]
        r[row, :k], length[row, :k] = numbers, people.tokens[name]
        settled_ones[row, :k] = np.array(numbers) == 0
    drawn_s = rng.binomial(r.astype(int), s) / np.maximum(r, 1)
    estimate = Success(
        s=np.where(settled_ones, s, drawn_s),
        variance=np.where(settled_ones, 0.0, drawn_s * (1 - drawn_s) / np.maximum(r - 1, 1)),
        known=np.ones_like(settled_ones),
    )
    scores = score(p, p, d, estimate)
    w = np.array([drawn.spines[node.spine].weight / node.chance for node in chosen])
    dot, square, raw = (float(w @ x) for x in (scores.dot, scores.square, scores.raw_square))
    found = dot / np.sqrt(max(square, 1e-12) * drawn.move_square)
    tokens = float((r * length).sum()) + drawn.natural_tokens
    return float(np.clip(found, -1, 1)), tokens, square / raw if raw else 0.0


KINDS = ("error of A", "error given questions and spines")
UNIFORM, SKIPPED = "uniform: 100 of every child", "settled and only children need none"
LADDER: dict[str, tuple[Design, Sequence[float]]] = {
    SKIPPED: (evenly(100, by_size=False), (1, 2, 4, 8)),
    "8 of a child, more nodes": (evenly(8, by_size=False), (2, 4, 8, 99)),
    "nodes by size of the move": (evenly(8, by_size=True), (1, 2, 4, 8)),
    "planned rollouts: the command": (
        as_commanded,
        (45_000, 70_000, 100_000, 250_000),
    ),
}


def cost(folder: Path) -> None:
    """Decoded tokens at which each design reaches the same error of A."""
    compare_designs("as measured", population(folder), 70, 150)


def cost_noisy(folder: Path) -> None:
    """The same where little of what is measured is signal."""
    people = population(folder)
    factors = np.linspace(0.02, 1, 99)
    low = min(factors, key=lambda f: abs(people.shrunk(f).alignment(16) - 0.2))
    compare_designs(f"shrunk to {low:.2f}", people.shrunk(low), 71, 80)


def compare_designs(label: str, world: Population, seed: int, replicates: int) -> None:
    """Error of A by design and tokens, then tokens for the error of uniform rollouts."""
    truth_a, reliable = world.alignment(), world.alignment(16)
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {kind: {} for kind in KINDS}
    floor: list[float] = []
    results: dict[tuple[str, float], list[tuple[float, float, float]]] = defaultdict(list)
    for replicate in range(replicates):
        drawn = draw_questions(world, np.random.default_rng([seed, replicate]))
        floor.append(exact_alignment(world, drawn))
        for number, (name, (design, amounts)) in enumerate(LADDER.items()):
            for amount in amounts:
                rng = np.random.default_rng([seed, replicate, number, int(amount)])
                chosen, counts = design(world, drawn, amount, rng)
                found = measure_once(world, drawn, chosen, counts, rng)
                results[name, amount].append(found)
                if name == SKIPPED:
                    extra = only_children(world, chosen, 100)
                    a, tokens, reliability = found
                    results[UNIFORM, amount].append((a, tokens + extra, reliability))
        if replicate % 20 == 19:
            print(label, replicate + 1, file=sys.stderr)
    rows = []
    for (name, amount), values in results.items():
        a, tokens, reliability = np.array(values).T
        errors = [float(np.sqrt(np.mean((a - goal) ** 2))) for goal in (truth_a, np.array(floor))]
        for kind, error in zip(KINDS, errors, strict=True):
            curves[kind].setdefault(name, []).append((float(tokens.mean()), error))
        spent = f"{tokens.mean():,.0f}"
        rows.append([label, name, amount, spent, *errors, float(np.median(reliability))])
    print(
        f"{label}: A {truth_a:.3f}, reliability at R = 16 {reliable:.3f}, error with every "
        f"node and no noise {np.sqrt(np.mean((np.array(floor) - truth_a) ** 2)):.3f}, "
        f"{replicates} replicates\n"
    )
    print_table(["success", "design", "amount", "tokens", *KINDS, "reliability"], rows)
    for kind, found in curves.items():
        base = found[UNIFORM][1:]
        print_table(
            ["success", kind, *(f"{t:,.0f} tokens, error {e:.3f}" for t, e in base)],
            [
                [label, name, *(share_of(curve, tokens, error) for tokens, error in base)]
                for name, curve in found.items()
                if name != UNIFORM
            ],
        )


def only_children(people: Population, chosen: Sequence[State], rollouts: int) -> float:
    """Tokens that rollouts of only children take, if nobody leaves them out."""
    return rollouts * sum(
        float(people.tokens[name][0])
        for name in (original(node.name) for node in chosen)
        if len(people.tokens[name]) == 1 and people.outcomes[name][0] is None
    )


def exact_alignment(people: Population, drawn: Draw) -> float:
    """A of the drawn questions and spines with every node and without noise."""
    sums = np.zeros(2)
    for part in drawn.parts:
        for state in part:
            s = people.s[original(state.name)]
            g = state.p * (s - state.p @ s)
            sums += drawn.spines[state.spine].weight * np.array([g @ state.moves[0, 0], g @ g])
    return float(sums[0] / np.sqrt(sums[1] * drawn.move_square))


def share_of(curve: Sequence[tuple[float, float]], tokens: float, error: float) -> str:
    """Tokens at which a design reaches an error, over those of another; a bound past its ends."""
    spent, errors = np.log(np.array(curve)).T
    errors = np.minimum.accumulate(errors)
    goal = np.log(error)
    share = np.exp(np.interp(-goal, -errors, spent)) / tokens
    sign = "< " if goal > errors[0] else "> " if goal < errors[-1] else ""
    return f"{sign}{share:.3f}"


PARTS: dict[str, Callable[[Path], None]] = {"as-measured": cost, "noisy": cost_noisy}


if __name__ == "__main__":
    run_part(PARTS)
