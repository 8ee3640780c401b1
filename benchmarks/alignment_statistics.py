"""Gradient alignment against exact truth, on problems small enough to enumerate.

    python benchmarks/alignment_statistics.py              # all parts, minutes on one core
    python benchmarks/alignment_statistics.py coverage     # one part

Prints the tables of docs/alignment.md. Every part has its own seed.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy import ndarray
from results import print_table

from tutelage.lab.trees import Tree, measure_trees, random_trees, tree_from_logits, walk
from tutelage.ops.alignment import moves, node, published
from tutelage.ops.alignment.design import allocate
from tutelage.ops.alignment.node import Counts, NodeScores, success
from tutelage.ops.alignment.pooling import Z95, compare_groups, pool, student_quantile

OBJECTIVES: dict[str, Callable[[Tree], ndarray]] = {
    "KL(student, teacher)": lambda t: moves.kl_student_teacher(t.p, t.q),
    "KL(teacher, student)": lambda t: moves.kl_teacher_student(t.p, t.q),
    "JSD 0.3": lambda t: moves.jensen_shannon(t.p, t.q, 0.3),
    "sequence KL": lambda t: moves.sequence_kl(t.p, t.q, t.downstream),
}
SAMPLED_NODES = {"per_window": 1, "windows": [0, 1, 1]}


def scores_of(trees: Tree, move: ndarray, measured: object) -> NodeScores:
    """Scores of measured nodes."""
    where = (measured.tree, measured.node)
    return node.score(trees.p[where], trees.q[where], move[where], measured.counts.success())


def sums(seed: int = 20) -> None:
    """50 trees, 400 replicates each: are the three sums unbiased, does A's error fall?"""
    rows, errors = [], []
    for name, objective in OBJECTIVES.items():
        rng = np.random.default_rng(seed)
        forest = random_trees(rng, 50)
        moved = objective(forest)
        truth = np.stack(forest.expected(moved))
        z, per_replicate = [], []
        for b in range(50):
            trees, move = forest[b].repeated(400), np.broadcast_to(moved[b], (400, *moved[b].shape))
            measured = measure_trees(trees, [move], rng, plan_by_tree=True, **SAMPLED_NODES)
            scores = scores_of(trees, move, measured)
            totals = np.stack(
                [
                    np.bincount(measured.tree, measured.weights * x, 400)
                    for x in (scores.dot, scores.square, scores.move_square)
                ]
            )
            z.append((totals.mean(1) - truth[:, b]) / (totals.std(1, ddof=1) / 20))
            per_replicate.append(totals)
        z = np.array(z)
        rows.append([name, *(float(m) for m in z.mean(0)), float(np.abs(z).max())])
        stacked = np.stack(per_replicate)
        exact = truth[0] / np.sqrt(truth[1] * truth[2])
        line: list[object] = [name]
        for size in (16, 64, 256):
            groups = stacked[..., : 400 // size * size].reshape(50, 3, -1, size).sum(-1)
            dot, square, move_size = groups[:, 0], np.maximum(groups[:, 1], 1e-12), groups[:, 2]
            off = dot / np.sqrt(square * move_size) - exact[:, None]
            line.append(float(np.median(np.abs(off))))
        errors.append(line)
    print_table(["objective", "mean z of dot", "of U", "of size", "largest |z|"], rows)
    print_table(["objective", "n = 16", "64", "256"], errors)


POPULATIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "weak insight": {"insight": 0.2},
    "few rollouts": {"rollouts": 4},
    "sure student": {"sureness": 3.0},
    "five binary choices": {"widths": (2,) * 5, "nodes": {}},
    "good teacher": {"insight": 2.0, "noise": 0.1},
}


def coverage(seed: int = 21, draws: int = 300, size: int = 4000) -> None:
    """Questions drawn from a population of known A: how often does the interval hold it?"""
    rows = []
    for index, (name, setting) in enumerate(POPULATIONS.items()):
        rng = np.random.default_rng([seed, index])
        forest = random_trees(
            rng,
            size,
            setting.get("widths", (3, 3, 3)),
            insight=setting.get("insight", 1.0),
            noise=setting.get("noise", 0.7),
            sureness=setting.get("sureness", 1.0),
        )
        moved = moves.kl_student_teacher(forest.p, forest.q)
        dot, square, move_size = (x.mean() for x in forest.expected(moved))
        truth = dot / np.sqrt(square * move_size)
        line: list[object] = [name, float(truth)]
        for questions in (8, 16, 32, 64):
            held, plain, unknown, errors = 0, 0, 0, []
            for draw in range(draws):
                chosen = rng.integers(0, size, questions)
                trees, move = forest[chosen], moved[chosen]
                measured = measure_trees(
                    trees,
                    [move],
                    rng,
                    rollouts=setting.get("rollouts", 8),
                    **setting.get("nodes", SAMPLED_NODES),
                )
                scores = scores_of(trees, move, measured)
                pooled = pool(scores, measured.tree.tolist(), measured.weights, seed=draw)
                if pooled.alignment is None or pooled.alignment.interval is None:
                    unknown += 1
                    continue
                value, (low, high) = pooled.alignment.value, pooled.alignment.interval
                held += low <= truth <= high
                stretch = student_quantile(questions - 1) / Z95
                stretch *= np.sqrt(questions / (questions - 1))
                plain += (low - value) / stretch <= truth - value <= (high - value) / stretch
                errors.append(value - truth)
            known = max(1, draws - unknown)
            error = float(np.sqrt(np.mean(np.square(errors))))
            line.append(f"{held / known:.3f} ({plain / known:.3f}; {error:.3f}; {unknown})")
        rows.append(line)
    print_table(["population", "A", "8 questions", "16", "32", "64"], rows)


def null_nodes(
    rng: np.random.Generator, questions: int = 64, spines: int = 4, nodes: int = 12
) -> tuple[ndarray, ndarray, ndarray, ndarray, list[int]]:
    """p, q and the spine's token [N, 3], verdict and question [N]; tokens decide nothing.

    Half the spines of a question are right and half wrong; the teacher is flatter, q ~ p^.7.
    """
    count = questions * spines * nodes
    logits = rng.gamma(4, 0.3, (count, 1)) * rng.normal(size=(count, 3))
    p, q = (moves.renormalise(np.exp(power * logits)) for power in (1.0, 0.7))
    own = np.eye(3)[(rng.random((count, 1)) >= p.cumsum(-1)[:, :2]).sum(-1)]
    spine = np.repeat(np.arange(questions * spines), nodes)
    return p, q, own, spine % 2 == 0, (spine // spines).tolist()


def null(seed: int = 22, repeats: int = 300) -> None:
    """Success is .6 whatever the token: what does counting a spine's own outcome do?"""
    rows = []
    for rollouts in (8, 16):
        rng = np.random.default_rng([seed, rollouts])
        results: dict[bool, list[tuple[float, bool, bool]]] = {True: [], False: []}
        for repeat in range(repeats):
            p, q, own, right, questions = null_nodes(rng)
            move = moves.kl_student_teacher(p, q)
            hits = rng.binomial(rollouts, 0.6, p.shape)
            for counted in (True, False):
                estimate = success(hits + counted * own * right[:, None], rollouts + counted * own)
                scores = node.score(p, q, move, estimate)
                ones = np.ones(len(p))
                gap = compare_groups(scores, questions, ones, ~right, right, seed=repeat)
                low, high = gap.mean_cosine.interval
                signal = pool(scores, questions, ones, seed=repeat).signal
                results[counted].append((gap.mean_cosine.value, low <= 0 <= high, signal))
        for counted, found in results.items():
            gaps, covers, signals = (np.array(x, dtype=float) for x in zip(*found, strict=True))
            label = "yes" if counted else "no"
            error = float(gaps.std() / np.sqrt(repeats))
            shares = float(1 - covers.mean()), float(1 - signals.mean())
            rows.append([rollouts, label, float(gaps.mean()), error, *shares])
    head = ["R", "own outcome counted", "wrong - right", "s.e.", "excludes 0", "no signal reported"]
    print_table(head, rows)


def ancestors(seed: int = 23, questions: int = 150, rollouts: int = 20) -> None:
    """Success of the children on the spine, estimated with and without the ancestors' credit."""
    rng = np.random.default_rng(seed)
    forest = random_trees(rng, questions, (3, 3, 3, 3), sureness=3.0)
    walks = walk(forest, 12, rng)
    widths, depth = 3, 4
    off: dict[tuple[str, bool], list[float]] = {}
    for b in range(questions):
        levels = [np.exp(level[b]) for level in forest.student]
        after = forest[b].s
        for verdict in (True, False):
            spines = np.flatnonzero(walks.right[b] == verdict)[:2]
            for g in spines:
                spine = walks.tokens[b, g]
                paths: list[tuple[list[int], bool]] = [(spine.tolist(), bool(verdict))]
                ours = np.zeros(depth)
                for t in range(depth):
                    for token in range(widths):
                        for _ in range(rollouts):
                            path = [*spine[:t].tolist(), token]
                            place = int(np.ravel_multi_index(path, (widths,) * len(path)))
                            for level in levels[t + 1 :]:
                                pick = int(rng.choice(widths, p=level[place]))
                                path.append(pick)
                                place = place * widths + pick
                            right = bool(rng.random() < forest.rewards[b, place])
                            paths.append((path, right))
                            ours[t] += (token == spine[t]) * right / rollouts
                counts = published.ancestor_counts(paths)
                without = published.ancestor_counts(paths[1:])
                for t in range(depth):
                    truth = after[walks.nodes[b, g, t], spine[t]]
                    for name, found in (("with", counts), ("without", without)):
                        right_count, total = found[tuple(spine[:t].tolist())][int(spine[t])]
                        key = (f"ancestors, {name} the spine's own outcome", bool(verdict))
                        off.setdefault(key, []).append(right_count / total - truth)
                    off.setdefault(("forced child alone", bool(verdict)), []).append(
                        ours[t] - truth
                    )
    rows = []
    for name in dict.fromkeys(key[0] for key in off):
        line: list[object] = [name]
        for verdict in (True, False):
            values = np.array(off[name, verdict])
            line.append(f"{values.mean():+.3f} ± {values.std() / np.sqrt(len(values)):.3f}")
        rows.append(line)
    print_table(["credit", "right spines", "wrong spines"], rows)


def planning(seed: int = 24, replicates: int = 4000) -> None:
    """Variance of the sums at the same nodes and as many rollouts, planned and uniform."""
    rows = []
    for name, setting in (("plain", 1.0), ("sure student", 3.0)):
        rng = np.random.default_rng([seed, int(setting)])
        forest = random_trees(rng, 32, (4, 4, 4), sureness=setting)
        moved = moves.kl_student_teacher(forest.p, forest.q)
        measured = measure_trees(forest, [moved], rng, uniform=True)
        where = (measured.tree, measured.node)
        p, q, s, move, w = (
            forest.p[where], forest.q[where], forest.s[where], moved[where], measured.weights
        )  # fmt: skip
        kept = np.ones(p.shape, dtype=bool)
        budget = 16 * p.size
        lengths = np.ones(p.shape)
        by_node = np.concatenate(
            [
                allocate(p[i : i + 1], move[None, i : i + 1], lengths[:1], np.ones(1),
                         kept[:1], 16 * p.shape[1])
                for i in range(len(p))
            ]
        )  # fmt: skip
        plans = {
            "uniform": np.full(p.shape, 16),
            "planned within nodes": by_node,
            "planned over all nodes": allocate(p, move[None], lengths, w, kept, budget),
        }
        spread = {}
        for plan_name, plan in plans.items():
            right = rng.binomial(plan, np.clip(s, 0, 1), (replicates, *plan.shape))
            scores = node.score(p, q, move, success(right, np.broadcast_to(plan, right.shape)))
            spread[plan_name] = [(w * x).sum(-1).var() for x in (scores.dot, scores.square)]
        for plan_name, values in spread.items():
            ratios = [float(a / b) for a, b in zip(spread["uniform"], values, strict=True)]
            rows.append([name, plan_name, *ratios])
    print_table(["population", "plan", "variance of dot, uniform / plan", "of U"], rows)


def cosines(seed: int = 25) -> None:
    """The mean cosine and A of the same teacher as rollouts grow."""
    rng = np.random.default_rng(seed)
    forest = random_trees(rng, 400)
    rows = []
    for name, teacher in (
        ("perfect", [x + s for x, s in zip(forest.student, _after(forest), strict=True)]),
        ("as in `plain`", list(forest.teacher)),
    ):
        trees = tree_from_logits(list(forest.student), teacher, forest.rewards)
        move = moves.kl_student_teacher(trees.p, trees.q)
        exact = moves.cosines(moves.ideal_gradient(trees.p, trees.s), move)
        dot, square, size = (x.mean() for x in trees.expected(move))
        for rollouts in (4, 8, 16, 64, 256):
            measured = measure_trees(trees, [move], rng, rollouts=rollouts, uniform=True)
            pooled = pool(
                scores_of(trees, move, measured), measured.tree.tolist(), measured.weights
            )
            true_cosines = exact[measured.tree, measured.node]
            rows.append(
                [name, rollouts, pooled.mean_cosine.value, float(np.nanmean(true_cosines)),
                 pooled.alignment.value, float(dot / np.sqrt(square * size)), pooled.reliability]
            )  # fmt: skip
    head = ["teacher", "R", "mean cosine", "its truth", "A", "its truth", "reliability"]
    print_table(head, rows)


def _after(forest: Tree) -> list[ndarray]:
    """Success after each child, depth by depth."""
    places = np.cumsum([0, *(level.shape[-2] for level in forest.student)])
    return [
        forest.s[:, a:b, : level.shape[-1]]
        for a, b, level in zip(places, places[1:], forest.student, strict=False)
    ]


def stages(seed: int = 26, times: int = 400_000) -> None:
    """A second stage that looked at the first: joined with a fixed weight, or counts added."""
    rng = np.random.default_rng(seed)
    p, s, q = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.4, 0.1]), np.array([0.2, 0.3, 0.5])
    move = moves.kl_student_teacher(p, q)
    g = moves.ideal_gradient(p, s)
    early = np.broadcast_to([6, 5, 5], (times, 3))
    first = rng.binomial(early, s)
    raw = first / early
    shares = np.abs(node.dot_weights(p, move)) * np.sqrt(raw * (1 - raw)) + 1e-9
    late = 4 + np.floor(48 * shares / shares.sum(-1, keepdims=True)).astype(int)
    second = rng.binomial(late, s)
    one = success(first, early)
    unclear = node.score(p, q, move, one).square < 0.05
    chance = np.where(unclear, 1.0, 0.1)
    joined = node.combine_stages(
        p, q, move, one, success(second, late), share=0.2,
        chance=chance, continued=rng.random(times) < chance,
    )  # fmt: skip
    go_on = unclear[:, None]
    added = node.score(p, q, move, success(first + go_on * second, early + go_on * late))
    rows = []
    for name, truth in (("dot", g @ move), ("square", g @ g), ("advantage", (q - p) @ s)):
        line: list[object] = [name, f"{truth:+.5f}"]
        for scores in (joined, added):
            values = getattr(scores, name)
            z = (values.mean() - truth) / (values.std() / np.sqrt(times))
            line.append(f"{values.mean() / truth - 1:+.2%} (z = {z:+.1f})")
        rows.append(line)
    print_table(["number", "truth", "joined", "counts added"], rows)


def selection(seed: int = 27, rollouts: int = 16) -> None:
    """Nodes without signal kept for a cosine above 0: scored by the same and by fresh rollouts."""
    rng = np.random.default_rng(seed)
    p, q, *_ = null_nodes(rng, questions=400)
    half = np.full(p.shape, rollouts // 2)
    counts = Counts(
        right_a=rng.binomial(half, 0.6), total_a=half, right_b=rng.binomial(half, 0.6), total_b=half
    )
    move = moves.kl_student_teacher(p, q)
    chosen, fresh = node.score_selected(p, q, move, counts, lambda x: x.cosine > 0)
    same = node.score(p, q, move, counts.success("a"))[chosen]
    everything = node.score(p, q, move, counts.success())
    rows = [
        [name, float(np.nanmean(x.cosine)), float(np.nanstd(x.cosine) / np.sqrt(len(x.cosine)))]
        for name, x in (
            ("all nodes", everything),
            ("kept, scored by the same half", same),
            ("kept, scored by the other half", fresh),
            ("kept, scored by both halves", everything[chosen]),
        )
    ]
    print_table(["nodes", "mean cosine", "s.e."], rows)


def single(seed: int = 29, replicates: int = 20) -> None:
    """How often a single state's dot ± 1.96 errors holds the truth, with either variance."""
    rows = []
    for name, sureness in (("plain", 1.0), ("sure student", 3.0), ("very sure student", 8.0)):
        rng = np.random.default_rng([seed, int(sureness)])
        forest = random_trees(rng, 300, (4, 4, 4), sureness=sureness)
        moved = moves.kl_student_teacher(forest.p, forest.q)
        measured = measure_trees(forest, [moved], rng, uniform=True, rollouts=2)
        where = (measured.tree, measured.node)
        p, s, move = forest.p[where], np.clip(forest.s[where], 0, 1), moved[where]
        truth = (moves.ideal_gradient(p, s) * move).sum(-1)
        open_ = (s * (1 - s) > 1e-9).any(-1)
        for rollouts in (4, 8, 16, 32):
            held: dict[str, list[ndarray]] = {"unbiased": [], "cautious": []}
            total = np.full(p.shape, rollouts)
            for _ in range(replicates):
                right = rng.binomial(total, s)
                estimate = success(right, total)
                cautious = replace(estimate, variance=node.cautious_variance(right, total))
                off = (moves.ideal_gradient(p, estimate.s) * move).sum(-1) - truth
                for key, x in (("unbiased", estimate), ("cautious", cautious)):
                    error = np.sqrt(node.dot_variance(p, move, x))
                    held[key].append(np.abs(off) <= 1.96 * error + 1e-12)
            shares = [
                f"{np.mean(x):.3f} ({np.mean([one[open_] for one in x]):.3f})"
                for x in held.values()
            ]
            rows.append([name, rollouts, *shares])
    print_table(["population", "R", "unbiased: all states (open ones)", "cautious"], rows)


PARTS = (sums, coverage, null, ancestors, planning, cosines, stages, selection, single)


def main() -> None:
    """Run the parts named, or all."""
    wanted = sys.argv[1:] or [part.__name__ for part in PARTS]
    for part in PARTS:
        if part.__name__ in wanted:
            start = time.process_time()
            print(f"### {part.__name__}: {part.__doc__}\n")
            part()
            print(f"{time.process_time() - start:.0f} CPU-seconds\n", flush=True)


if __name__ == "__main__":
    main()
