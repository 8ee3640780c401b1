"""Every node measured by real rollouts, against 2,000 rollouts of every branch.

    python benchmarks/alignment_lab.py truth  # first
    python benchmarks/alignment_nodes.py

Prints tables of docs/alignment.md, section "Experiments on the embedded pair". Files of `truth` are
in runs/alignment-lab, or in the folder that is given.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignment_lab import EVERY_NODE, TEACHERS, as_records, bench_of_all, read_truth, run
from numpy import ndarray
from results import print_table

from tutelage.alignment.bench import plant
from tutelage.alignment.measured import Nodes, gather, node_scores
from tutelage.ops.alignment.node import Success, dot_variance
from tutelage.ops.alignment.pooling import Pooled, pool


def own(records: Sequence[dict]) -> list[dict]:
    """Outcomes at forced children alone, without credit to nodes reached naturally."""
    kept = []
    for record in records:
        _, depth, child = record["unit"].rsplit("/", 2)
        mine = [row for row in record["counts"] if row[:2] == [int(depth), int(child)]]
        kept.append({**record, "counts": mine})
    return kept


COUNTED: dict[str, tuple[Callable[[Sequence[dict]], Sequence[dict]], bool]] = {
    "forced child": (own, False),
    "and nodes below": (list, False),
    "and backup": (list, True),
}


def nodes(folder: Path, seeds: Sequence[int] = range(100, 106)) -> None:
    """Every node of 2 spines of 26 questions, measured anew with 8 and 16 rollouts a child."""
    known = read_truth(folder)
    by_node: list[list[Any]] = []
    by_question: list[list[Any]] = []
    pooled: list[list[Any]] = []
    for rollouts in (8, 16):
        bench = bench_of_all(*TEACHERS)
        settings = EVERY_NODE.model_copy(
            update={"spines": 2, "floor": rollouts, "cap": rollouts, "rollouts": rollouts}
        )
        bench = replace(bench, settings=settings, prompts=bench.prompts[::2])
        tree = plant(bench)
        exact = gather(tree, as_records(tree, known), use_backup=False)
        due = np.array([sum(counts) > 0 for counts in tree.rollouts])
        runs = [run(replace(bench, seed=seed), tree) for seed in seeds]
        print(
            f"{rollouts} a child: {int(due.sum())} nodes, {len(tree.branches)} branches, "
            f"{sum(r['tokens'] for r in runs[0])} tokens a run, {len(seeds)} runs",
            file=sys.stderr,
        )
        for counted, (keep, use_backup) in COUNTED.items():
            found = [gather(tree, keep(records), use_backup=use_backup) for records in runs]
            for c, teacher in enumerate(TEACHERS):
                label = [rollouts, counted, teacher]
                by_node.append([*label, *at_nodes(exact, found, due, c)])
                print(by_node[-1], file=sys.stderr)
                by_question.append([*label, *of_questions(exact, found, c)])
                pooled.append([*label, *of_pools(exact, found, c)])
    head = ["R", "counted", "teacher"]
    print_table([*head, *AT_NODES], by_node)
    print_table([*head, *OF_QUESTIONS], by_question)
    print_table([*head, *OF_POOLS], pooled)


AT_NODES = (
    "r of dot",
    "of advantage",
    "of cosine",
    "dot interval holds",
    "where it has width",
    "with s = (right + 1) / (R + 2)",
    "nodes without width",
    "squared error / variance",
)


def at_nodes(exact: Nodes, found: Sequence[Nodes], due: ndarray, c: int) -> list[float]:
    """Means over runs of how far the numbers of the nodes that were due can be trusted."""
    true, _ = node_scores(exact, c, 0)
    lines = []
    for measured in found:
        got, _ = node_scores(measured, c, 0)
        off, v, noise = errors_of_dot(exact, measured, c)
        smooth = dot_variance(measured.p, measured.moves[c, 0], smoothed(measured))
        held = np.abs(off) <= 1.96 * np.sqrt(v + noise)
        both = due & ~np.isnan(got.cosine) & ~np.isnan(true.cosine)
        lines.append(
            [
                correlation(got.dot[due], true.dot[due]),
                correlation(got.advantage[due], true.advantage[due]),
                correlation(got.cosine[both], true.cosine[both]),
                held[due].mean(),
                held[due & (v > 0)].mean(),
                (np.abs(off) <= 1.96 * np.sqrt(smooth + noise))[due].mean(),
                (v[due] == 0).mean(),
                (off[due] ** 2).sum(),
                (v + noise)[due].sum(),
            ]
        )
    means = np.array(lines)
    return [*means[:, :7].mean(0).tolist(), float(means[:, 7].sum() / means[:, 8].sum())]


def errors_of_dot(exact: Nodes, measured: Nodes, c: int) -> tuple[ndarray, ndarray, ndarray]:
    """What a run is off at every node, and the variances of the run and of the truth."""
    true, _ = node_scores(exact, c, 0)
    got, _ = node_scores(measured, c, 0)
    own = dot_variance(measured.p, measured.moves[c, 0], measured.estimate)
    noise = dot_variance(exact.p, exact.moves[c, 0], exact.estimate)
    return got.dot - true.dot, own, noise


OF_QUESTIONS = (
    "questions x runs",
    "interval holds",
    "squared error / variance",
    "z of the whole, by run",
)


def of_questions(exact: Nodes, found: Sequence[Nodes], c: int) -> list[Any]:
    """The same of weighted sums over the nodes of a question, and over all."""
    places = [
        np.flatnonzero([q == name for q in exact.questions])
        for name in dict.fromkeys(exact.questions)
    ]
    w, questions = exact.weights, []
    for measured in found:
        off, v, noise = errors_of_dot(exact, measured, c)
        sums = [(w[i] * off[i]).sum() for i in places]
        errors = [np.sqrt((w[i] ** 2 * (v + noise)[i]).sum()) for i in places]
        questions.append([sums, errors])
    sums, errors = np.array(questions).transpose(1, 0, 2)
    ok = errors > 0
    whole = sums.sum(1) / np.sqrt((errors**2).sum(1))
    return [
        int(ok.sum()),
        float((np.abs(sums[ok]) <= 1.96 * errors[ok]).mean()),
        float((sums**2).sum() / (errors**2).sum()),
        " ".join(f"{z:+.1f}" for z in whole),
    ]


OF_POOLS = (
    "A, truth",
    "A, runs",
    "100 x advantage, truth",
    "runs",
    "reliability",
    "mean cosine, truth",
    "runs",
)


def of_pools(exact: Nodes, found: Sequence[Nodes], c: int) -> list[Any]:
    """Alignment, advantage and mean cosine of all nodes together, beside the truth."""

    def pooled(nodes: Nodes) -> Pooled:
        return pool(node_scores(nodes, c, 0)[0], nodes.questions, exact.weights, draws=100)

    true, pools = pooled(exact), [pooled(measured) for measured in found]
    values = np.array([p.alignment.value for p in pools if p.alignment])
    advantages = [p.advantage.value for p in pools]
    return [
        true.alignment.value if true.alignment else "no signal",
        f"{values.mean():.3f} ± {values.std(ddof=1):.3f} ({len(values)})",
        true.advantage.value * 100,
        f"{100 * np.mean(advantages):.3f} ± {100 * np.std(advantages, ddof=1):.3f}",
        float(np.mean([p.reliability for p in pools])),
        true.mean_cosine.value,
        float(np.mean([p.mean_cosine.value for p in pools])),
    ]


def smoothed(measured: Nodes) -> Success:
    """Success drawn towards 1/2 by one right and one wrong outcome: no child looks certain."""
    total = measured.counts.total_a + measured.counts.total_b
    s = (measured.counts.right_a + measured.counts.right_b + 1) / (total + 2)
    rolled = total > 4  # settled children count as 2 + 2
    return Success(s=s, variance=np.where(rolled, s * (1 - s) / (total + 2), 0.0), known=rolled)


def correlation(one: ndarray, other: ndarray) -> float:
    """Pearson's."""
    return float(np.corrcoef(one, other)[0, 1])


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    nodes(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/alignment-lab"))
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
