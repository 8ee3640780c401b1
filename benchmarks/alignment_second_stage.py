"""Would `align` answer better if it kept half of its tokens for a second stage?

    python benchmarks/alignment_second_stage.py

One stage: all rollouts planned before an outcome is seen, as the command does. Two stages: half of
them planned so, the others where the first half was least certain, joined by `combine_stages`
(step 6 of the algorithm: nodes with the largest share of the noise go on, others with chance .1;
at least 4 fresh rollouts a child). Both spend as many rollouts, on the same 32 questions, spines
and nodes, of enumerable trees whose A is exact.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from tutelage.lab.trees import measure_trees, random_trees
from tutelage.ops.alignment import moves, node
from tutelage.ops.alignment.design import allocate
from tutelage.ops.alignment.node import NodeScores, success

REPLICATES, SEED = 300, 28
QUESTIONS, POPULATION = 32, 1000
FLOOR, FRESH, RARELY = 4, 4, 0.1
FIRST = (0.5, 0.25)
"""Share of the rollouts in the first stage, and its weight h."""
SURE = {"plain": 1.0, "sure student": 3.0, "very sure student": 8.0}


@dataclass(frozen=True)
class World:
    """Trees with their exact numbers."""

    trees: object
    move: ndarray
    s: ndarray
    truth: float


def world(sureness: float, shrunk: float) -> World:
    """A population; `shrunk` draws success towards its mean at each node."""
    trees = random_trees(np.random.default_rng(SEED), POPULATION, (4, 4, 4), sureness=sureness)
    mean = (trees.p * trees.s).sum(-1, keepdims=True)
    s = np.clip(mean + shrunk * (trees.s - mean), 0, 1)
    move = moves.kl_student_teacher(trees.p, trees.q)
    g = moves.ideal_gradient(trees.p, s)
    dot, square, size = (
        float((trees.visits * x.sum(-1)).sum(-1).mean()) for x in (g * move, g * g, move * move)
    )
    return World(trees, move, s, dot / np.sqrt(square * size))


@dataclass(frozen=True)
class Drawn:
    """The nodes of one alignment."""

    p: ndarray
    q: ndarray
    s: ndarray
    move: ndarray
    weights: ndarray

    def plan(self, mean: float) -> ndarray:
        """Rollouts planned without outcomes."""
        kept, lengths = np.ones(self.p.shape, dtype=bool), np.ones(self.p.shape)
        budget = round(mean * self.p.size)
        return allocate(self.p, self.move[None], lengths, self.weights, kept, budget, FLOOR, 10_000)

    def needs(self, right: ndarray, total: ndarray) -> ndarray:
        """Where the noise of dot and square is, by the first stage's outcomes."""
        s = (right + 1) / (total + 2)
        spread = self.weights[:, None] * np.sqrt(s * (1 - s))
        parts = (
            spread * np.abs(node.dot_weights(self.p, self.move)),
            spread * np.sqrt(node.noise_weights(self.p)),
        )
        return sum(part / part.sum() for part in parts)

    def answer(self, scores: NodeScores) -> tuple[float, float, float]:
        """A, the dot a question, and reliability."""
        w = self.weights
        dot, square, raw, size = (
            float(w @ x) for x in (scores.dot, scores.square, scores.raw_square, scores.move_square)
        )
        a = dot / np.sqrt(max(square, 1e-12) * size)
        return float(np.clip(a, -1, 1)), dot / QUESTIONS, square / raw


def draw(people: World, rng: np.random.Generator) -> Drawn:
    """Questions with replacement, spines and nodes as the command draws them."""
    rows = rng.integers(0, POPULATION, QUESTIONS)
    trees, move = people.trees[rows], people.move[rows]
    found = measure_trees(trees, [move], rng, per_window=1, windows=[0, 1, 1], uniform=True)
    where = (found.tree, found.node)
    return Drawn(trees.p[where], trees.q[where], people.s[rows][where], move[where], found.weights)


def one_stage(d: Drawn, mean: float, rng: np.random.Generator) -> tuple[NodeScores, int]:
    """Scores, and the rollouts they took."""
    plan = d.plan(mean)
    return node.score(d.p, d.q, d.move, success(rng.binomial(plan, d.s), plan)), int(plan.sum())


def two_stages(
    d: Drawn, mean: float, going_on: float, rng: np.random.Generator
) -> tuple[NodeScores, int]:
    """The same where a share of the nodes goes on for certain."""
    share, h = FIRST
    early = d.plan(share * mean)
    first = rng.binomial(early, d.s)
    need = d.needs(first, early)
    of_node = need.sum(-1)
    chance = np.where(of_node >= np.quantile(of_node, 1 - going_on), 1.0, RARELY)
    continued = rng.random(len(chance)) < chance
    room = mean * d.p.size - early.sum() - FRESH * chance.sum() * d.p.shape[1]
    scale = max(room, 0.0) / (chance[:, None] * need).sum()
    late = FRESH + np.floor(scale * need).astype(int)
    scores = node.combine_stages(
        d.p, d.q, d.move, success(first, early), success(rng.binomial(late, d.s), late),
        share=h, chance=chance, continued=continued,
    )  # fmt: skip
    return scores, int(early.sum() + late[continued].sum())


def main() -> None:
    """Print the table."""
    started = time.process_time()
    head = (
        "population",
        "reliability",
        "rollouts a child",
        "error of A: one stage",
        "two stages (30, 60, 100 % go on)",
        "without any noise",
        "noise of A: two over one",
        "of the dot",
    )
    print(f"| {' | '.join(head)} |")
    print("|---" * 8 + "|")
    shares = (0.3, 0.6, 1.0)
    for name, sureness in SURE.items():
        for shrunk in (1.0, 0.15):
            people = world(sureness, shrunk)
            for mean in (8, 16, 32):
                if FIRST[0] * mean < FLOOR:
                    continue
                rows = []
                for replicate in range(REPLICATES):
                    rng = np.random.default_rng([SEED, replicate])
                    d = draw(people, rng)
                    plan = np.full(d.p.shape, 2)
                    exact = success(2 * np.ones_like(d.s), plan)
                    exact = type(exact)(s=d.s, variance=np.zeros_like(d.s), known=exact.known)
                    runs = [
                        (node.score(d.p, d.q, d.move, exact), 0),
                        one_stage(d, mean, rng),
                        *(two_stages(d, mean, share, rng) for share in shares),
                    ]
                    rows.append([(*d.answer(scores), spent / d.p.size) for scores, spent in runs])
                found = np.array(rows)  # [replicates, designs, (A, dot, reliability, rollouts)]
                error = np.sqrt(((found[:, :, 0] - people.truth) ** 2).mean(0))
                noise = np.sqrt(((found[:, 1:, :2] - found[:, :1, :2]) ** 2).mean(0))
                spent = found[:, :, 3].mean(0)
                print(
                    f"| {name} | {np.median(found[:, 1, 2]):.2f} | {mean} "
                    f"({', '.join(f'{x:.1f}' for x in spent[1:])}) | {error[1]:.4f} | "
                    f"{', '.join(f'{x:.4f}' for x in error[2:])} | {error[0]:.4f} | "
                    f"{', '.join(f'{x:.2f}' for x in noise[1:, 0] / noise[0, 0])} | "
                    f"{', '.join(f'{x:.2f}' for x in noise[1:, 1] / noise[0, 1])} |",
                    flush=True,
                )
    print(f"{time.process_time() - started:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
