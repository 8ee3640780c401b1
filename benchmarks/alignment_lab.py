"""Targeted rollouts on the embedded pair, against 2,000 rollouts of every branch.

    python benchmarks/alignment_lab.py truth      # first: minutes of one core; goes on after a stop
    python benchmarks/alignment_lab.py nodes      # real runs against it
    python benchmarks/alignment_lab.py cost       # decode tokens for equal error, by ingredient
    python benchmarks/alignment_lab.py cost-noisy # the same with success nearly flat
    python benchmarks/alignment_lab.py wall       # seconds, against two other ways
    python benchmarks/alignment_lab.py sharing    # one tree for eight teachers
    python benchmarks/alignment_lab.py memory     # of a million rollouts

Prints the tables of docs/alignment.md, section "Experiments on the embedded pair". Files of `truth`
go to runs/alignment-lab, or to the folder given after the name.
"""

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from tutelage.alignment.bench import Bench, plant
from tutelage.alignment.growing import grow, records_of
from tutelage.alignment.measured import Nodes, gather, node_scores
from tutelage.alignment.moves import as_move
from tutelage.alignment.nodes import REST, State, choose_nodes, rest_of
from tutelage.alignment.plan import plan_of
from tutelage.alignment.spines import Candidate, Spine, choose_spines
from tutelage.alignment.tree import Tree, allocate_rollouts, nodes_per_window
from tutelage.config import AlignConfig, ForwardKL, Full, ModelConfig, PromptFormat, ReverseKL
from tutelage.data.render import render
from tutelage.data.verify import make_verifier
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
from tutelage.ops.alignment.design import draw_nodes
from tutelage.ops.alignment.node import Success, dot_variance, noise_weights, score
from tutelage.ops.alignment.pooling import pool
from tutelage.runs.ledger import Ledger
from tutelage.types import Rollout

TEACHERS = ("compatible", "incompatible", "same_data")
QUESTIONS, SAMPLES, MAX_NEW_TOKENS = 64, 8, 28
MOST_SLOTS = 6  # one problem of 7 takes 5 million tokens, as much as ten of the others
TRUTH_ROLLOUTS = 2000
EVERY_NODE = AlignConfig(
    questions=QUESTIONS, samples=SAMPLES, spines=SAMPLES, floor=4, cap=4, budget=10**9
)
Key = tuple[str, tuple[int, ...], int, tuple[int, ...]]
"""Question, prefix, child, and for REST the tokens it leaves out."""


def embedded(name: str) -> LocalModel:
    """An embedded model."""
    return load_model(ModelConfig(path=str(model_path(name))), name)


def bench_of(teachers: Mapping[str, LocalModel], seed: int, settings: AlignConfig) -> Bench:
    """The embedded student beside some teachers, on held-out problems."""
    student = embedded("student")
    student.batch_size = 2048
    questions = EMBEDDED_SPEC.task.eval_prompts(128, seed=3)[:: 128 // settings.questions]
    prompts, _ = render(questions, student.tokenizer, PromptFormat(), 1024)
    return Bench(
        student=student,
        sampler=student,
        candidates=[Candidate(name=n, model=m, view=None) for n, m in teachers.items()],
        objectives={
            "objective": as_move(Full(divergence=ReverseKL())),
            "forward_kl": as_move(Full(divergence=ForwardKL())),
        },
        prompts=prompts,
        verify=make_verifier(VERIFIER),
        settings=settings,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        use_chat_template=True,
        seed=seed,
    )


def bench_of_all(*teachers: str) -> Bench:
    """Problems of 3 to 6 slots, whose every state is a node."""
    bench = bench_of({name: embedded(name) for name in teachers}, 30, EVERY_NODE)
    short = [p for p in bench.prompts if p.prompt.metadata["slots"] <= MOST_SLOTS]
    return replace(bench, prompts=short)


# --- truth -----------------------------------------------------------------------------------


def key_of(tree: Tree, node: State, child: int) -> Key:
    """What the success after a child depends on; spines of a question share prefixes."""
    rollout = tree.spines[node.spine].rollout
    others = node.children[:-1] if child == REST else ()
    return rollout.prompt.id, rollout.completion_ids[: node.depth], child, others


def truth(folder: Path, seed: int = 30) -> None:
    """2,000 rollouts of every branch of every state of 8 natural rollouts of 52 questions."""
    bench = bench_of_all(*TEACHERS)
    tree = plant(bench)
    ledger = Ledger(folder / "truth.jsonl")
    wanted: dict[str, dict[Key, State]] = defaultdict(dict)
    for node, counts in zip(tree.nodes, tree.rollouts, strict=True):
        for child, count in zip(node.children, counts, strict=True):
            if count:
                key = key_of(tree, node, child)
                wanted[key[0]].setdefault(key, node)
    started = time.monotonic()
    names = list(wanted)
    for place in np.random.default_rng(seed).permutation(len(names)):  # lengths mixed
        question, branches = names[place], wanted[names[place]]
        if question not in ledger:
            rng = np.random.default_rng([seed, *question.encode()])
            rows = list(measure(bench, tree, branches, rng))
            ledger.record(question, {"branches": rows})
            seconds = time.monotonic() - started
            print(f"{len(ledger)} of {len(names)} questions, {seconds:.0f} s", file=sys.stderr)


def measure(
    bench: Bench, tree: Tree, branches: Mapping[Key, State], rng: np.random.Generator
) -> Iterator[list]:
    """Right rollouts, rollouts and decoded tokens of the branches of one question."""
    starts: dict[int, list[tuple[Key, dict[tuple[int, ...], int]]]] = defaultdict(list)
    for key, node in branches.items():
        _, prefix, child, _ = key
        first = {child: TRUTH_ROLLOUTS}
        if child == REST:
            p = rest_of(bench.student, tree.spines[node.spine], [node])[node.name]
            drawn = rng.multinomial(TRUTH_ROLLOUTS, p / p.sum())
            first = {int(k): int(drawn[k]) for k in np.flatnonzero(drawn)}
        starts[len(prefix)].append((key, {(*prefix, k): n for k, n in first.items()}))
    spine = tree.spines[next(iter(branches.values())).spine]
    for depth in sorted(starts):
        for i in range(0, len(starts[depth]), 16):
            part = starts[depth][i : i + 16]
            right, tokens = follow(bench, spine.rollout, [begin for _, begin in part], rng)
            for (key, _), r, t in zip(part, right.tolist(), tokens.tolist(), strict=True):
                yield [*key[1:], r, TRUTH_ROLLOUTS, t]


@torch.no_grad()
def follow(
    bench: Bench,
    rollout: Rollout,
    starts: Sequence[Mapping[tuple[int, ...], int]],
    rng: np.random.Generator,
) -> tuple[ndarray, ndarray]:
    """Right rollouts and decoded tokens of many rollouts from some prefixes of one length.

    Rollouts that agree so far are one row with a count, which a multinomial draw splits: the law
    of the counts is that of as many rollouts drawn one by one.
    """
    student = bench.student
    right, tokens = np.zeros(len(starts), int), np.zeros(len(starts), int)
    rows = [(i, prefix, n) for i, begin in enumerate(starts) for prefix, n in begin.items()]
    cache: Any = None
    parents: list[int] = []
    while True:
        going = []
        for place, (owner, prefix, count) in enumerate(rows):
            if prefix[-1] in student.stop_ids or len(prefix) == bench.max_new_tokens:
                verdict = bench.verify(rollout.prompt, student.decode_text(prefix))
                right[owner] += count * int(verdict > 0)
            else:
                going.append(place)
        if not going:
            return right, tokens
        rows = [rows[place] for place in going]
        if cache is None:
            ids = torch.tensor([(*rollout.prompt_ids, *prefix) for _, prefix, _ in rows])
        else:
            cache.batch_select_indices(torch.tensor([parents[place] for place in going]))
            ids = torch.tensor([[prefix[-1]] for _, prefix, _ in rows])
        output = student.model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache = output.past_key_values
        p = output.logits[:, -1, : student.vocabulary].double().softmax(-1).numpy()
        counts = np.array([count for _, _, count in rows])
        np.add.at(tokens, [owner for owner, _, _ in rows], counts)
        p /= p.sum(-1, keepdims=True)
        drawn = np.zeros(p.shape, dtype=int)
        several, single = np.flatnonzero(counts > 1), np.flatnonzero(counts == 1)
        drawn[several] = rng.multinomial(counts[several], p[several])
        below = p[single].cumsum(-1) <= rng.random((len(single), 1))
        drawn[single, np.minimum(below.sum(-1), p.shape[1] - 1)] = 1
        parents, chosen = np.nonzero(drawn)
        numbers = drawn[parents, chosen].tolist()
        parents = parents.tolist()
        rows = [
            (rows[parent][0], (*rows[parent][1], token), number)
            for parent, token, number in zip(parents, chosen.tolist(), numbers, strict=True)
        ]


@dataclass(frozen=True)
class Known:
    """What 2,000 rollouts say of one branch."""

    right: int
    total: int
    tokens: int

    @property
    def s(self) -> float:
        """Success."""
        return self.right / self.total


def read_truth(folder: Path) -> dict[Key, Known]:
    """All branches that `truth` has done."""
    return {
        (record["unit"], tuple(prefix), child, tuple(others)): Known(right, total, tokens)
        for record in Ledger(folder / "truth.jsonl").records
        for prefix, child, others, right, total, tokens in record["branches"]
    }


def as_records(tree: Tree, known: Mapping[Key, Known]) -> list[dict]:
    """The truth in the form that rollouts of a tree have."""
    records = []
    nodes = {node.name: node for node in tree.nodes}
    for branch in tree.branches:
        node = nodes[f"{branch.spine.name}/{branch.depth}"]
        found = known[key_of(tree, node, branch.child)]
        half = found.right // 2
        right, total = [half, found.right - half], [found.total // 2] * 2
        counts = [[branch.depth, branch.child, *right, *total]]
        if max(right) > total[0]:
            raise ValueError(branch.name)
        record = {"unit": branch.name, "spine": branch.spine.name, "counts": counts}
        records.append({**record, "tokens": found.tokens, "unknown": 0})
    return records


def own(records: Sequence[dict]) -> list[dict]:
    """Outcomes at forced children alone, without credit to nodes reached naturally."""
    kept = []
    for record in records:
        _, depth, child = record["unit"].rsplit("/", 2)
        mine = [row for row in record["counts"] if row[:2] == [int(depth), int(child)]]
        kept.append({**record, "counts": mine})
    return kept


def run(bench: Bench, tree: Tree) -> list[dict]:
    """Real rollouts of a whole tree."""
    return records_of(bench, tree)


# --- real runs against the truth ---------------------------------------------------------------

COUNTED: dict[str, tuple[Callable[[Sequence[dict]], Sequence[dict]], bool]] = {
    "forced child": (own, False),
    "and nodes below": (list, False),
    "and backup": (list, True),
}


def nodes(folder: Path, seeds: Sequence[int] = range(100, 106)) -> None:
    """Every node of 2 spines of 26 questions, measured anew with 8 and 16 rollouts a child."""
    known = read_truth(folder)
    by_node, by_question, pooled_rows = [], [], []
    for rollouts in (8, 16):
        bench = bench_of_all(*TEACHERS)
        settings = EVERY_NODE.model_copy(
            update={"spines": 2, "floor": rollouts, "cap": rollouts, "rollouts": rollouts}
        )
        bench = replace(bench, settings=settings, prompts=bench.prompts[::2])
        tree = plant(bench)
        exact = gather(tree, as_records(tree, known), use_backup=False)
        due = np.array([sum(counts) > 0 for counts in tree.rollouts])
        runs = {seed: run(replace(bench, seed=seed), tree) for seed in seeds}
        print(
            f"{rollouts} a child: {int(due.sum())} nodes, {len(tree.branches)} branches, "
            f"{sum(r['tokens'] for r in runs[seeds[0]])} tokens a run, {len(seeds)} runs",
            file=sys.stderr,
        )
        for counted, (keep, use_backup) in COUNTED.items():
            found = {s: gather(tree, keep(r), use_backup=use_backup) for s, r in runs.items()}
            for c, teacher in enumerate(TEACHERS):
                true, _ = node_scores(exact, c, 0)
                places = [
                    np.flatnonzero([q == name for q in exact.questions])
                    for name in dict.fromkeys(exact.questions)
                ]
                w, lines, questions, pools = exact.weights, [], [], []
                for measured in found.values():
                    got, _ = node_scores(measured, c, 0)
                    v = dot_variance(measured.p, measured.moves[c, 0], measured.estimate)
                    noise = dot_variance(exact.p, exact.moves[c, 0], exact.estimate)
                    smooth = dot_variance(measured.p, measured.moves[c, 0], smoothed(measured))
                    off = got.dot - true.dot
                    held = np.abs(off) <= 1.96 * np.sqrt(v + noise)
                    both = due & ~np.isnan(got.cosine) & ~np.isnan(true.cosine)
                    lines.append(
                        [
                            *(
                                correlation(getattr(got, n)[due], getattr(true, n)[due])
                                for n in ("dot", "advantage")
                            ),
                            correlation(got.cosine[both], true.cosine[both]),
                            held[due].mean(),
                            held[due & (v > 0)].mean(),
                            (np.abs(off) <= 1.96 * np.sqrt(smooth + noise))[due].mean(),
                            (v[due] == 0).mean(),
                            (off[due] ** 2).sum(),
                            (v + noise)[due].sum(),
                        ]
                    )
                    sums = [(w[i] * off[i]).sum() for i in places]
                    errors = [np.sqrt((w[i] ** 2 * (v + noise)[i]).sum()) for i in places]
                    questions.append([sums, errors])
                    pools.append(pool(got, measured.questions, w, draws=100))
                table_ = np.array(lines)
                calibration = float(table_[:, 7].sum() / table_[:, 8].sum())
                by_node.append(
                    [rollouts, counted, teacher, *table_[:, :7].mean(0).tolist(), calibration]
                )
                sums, errors = np.array(questions).transpose(1, 0, 2)
                ok = errors > 0
                whole = sums.sum(1) / np.sqrt((errors**2).sum(1))
                print(by_node[-1], file=sys.stderr)
                by_question.append(
                    [
                        rollouts,
                        counted,
                        teacher,
                        int(ok.sum()),
                        float((np.abs(sums[ok]) <= 1.96 * errors[ok]).mean()),
                        float((sums**2).sum() / (errors**2).sum()),
                        " ".join(f"{z:+.1f}" for z in whole),
                    ]
                )
                true_pool = pool(true, exact.questions, w, draws=100)
                values = np.array([p.alignment.value for p in pools if p.alignment])
                pooled_rows.append(
                    [
                        rollouts,
                        counted,
                        teacher,
                        true_pool.alignment.value if true_pool.alignment else "no signal",
                        f"{values.mean():.3f} ± {values.std(ddof=1):.3f} ({len(values)})",
                        true_pool.advantage.value * 100,
                        f"{100 * np.mean([p.advantage.value for p in pools]):.3f} ± "
                        f"{100 * np.std([p.advantage.value for p in pools], ddof=1):.3f}",
                        float(np.mean([p.reliability for p in pools])),
                        true_pool.mean_cosine.value,
                        float(np.mean([p.mean_cosine.value for p in pools])),
                    ]
                )
    table(
        [
            "R",
            "counted",
            "teacher",
            "r of dot",
            "of advantage",
            "of cosine",
            "dot interval holds",
            "where it has width",
            "with s = (right + 1) / (R + 2)",
            "nodes without width",
            "squared error / variance",
        ],
        by_node,
    )
    table(
        [
            "R",
            "counted",
            "teacher",
            "questions x runs",
            "interval holds",
            "squared error / variance",
            "z of the whole, by run",
        ],
        by_question,
    )
    table(
        [
            "R",
            "counted",
            "teacher",
            "A, truth",
            "A, runs",
            "100 x advantage, truth",
            "runs",
            "reliability",
            "mean cosine, truth",
            "runs",
        ],
        pooled_rows,
    )


def smoothed(measured: Nodes) -> Success:
    """Success drawn towards 1/2 by one right and one wrong outcome: no child looks certain."""
    total = measured.counts.total_a + measured.counts.total_b
    s = (measured.counts.right_a + measured.counts.right_b + 1) / (total + 2)
    rolled = total > 4  # settled children count as 2 + 2
    return Success(s=s, variance=np.where(rolled, s * (1 - s) / (total + 2), 0.0), known=rolled)


def correlation(one: ndarray, other: ndarray) -> float:
    """Pearson's."""
    return float(np.corrcoef(one, other)[0, 1])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        cells = [f"{x:.3f}" if isinstance(x, float) else str(x) for x in row]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


# --- seconds ---------------------------------------------------------------------------------


def wall(folder: Path, rounds: int = 3) -> None:
    """The same targeted rollouts in three ways, taking turns."""
    settings = AlignConfig(questions=8, samples=8, spines=2, floor=8, cap=8, budget=6000)
    bench = bench_of({"compatible": embedded("compatible")}, 40, settings)
    student, tree = bench.student, plant(bench)
    plan = plan_of(tree)
    student.batch_size = 256  # the command's default

    def ours() -> int:
        return sum(record["tokens"] for record in run(bench, tree))

    def one_at_a_time() -> int:
        student.batch_size = 1
        tokens = ours()
        student.batch_size = 256
        return tokens

    def generate() -> int:
        return generate_by_node(bench, tree)

    ways = {"our batch": ours, "one at a time": one_at_a_time, "generate, a call a node": generate}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens = {}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            tokens[name] = way()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    print(f"{plan['targeted_rollouts']} rollouts, {len(tree.branches)} branches", file=sys.stderr)
    table(
        ["way", "tokens", "seconds, median", "all", "times ours"],
        [
            [
                name,
                tokens[name],
                medians[name],
                " ".join(f"{x:.2f}" for x in seconds[name]),
                medians[name] / medians["our batch"],
            ]
            for name in ways
        ],
    )


def generate_by_node(bench: Bench, tree: Tree) -> int:
    """All rollouts of a node in one `generate` call, judged; tokens decoded."""
    student, spent = bench.student, 0
    rng = np.random.default_rng(0)
    for node, counts in zip(tree.nodes, tree.rollouts, strict=True):
        if not sum(counts):
            continue
        spine = tree.spines[node.spine].rollout
        rests = rest_of(student, tree.spines[node.spine], [node])
        first: list[int] = []
        for child, count in zip(node.children, counts, strict=True):
            p = rests.get(node.name)
            drawn = [child] * count
            if child == REST:
                drawn = rng.choice(len(p), count, p=p / p.sum()).tolist()
            first += [token for token in drawn if token not in student.stop_ids]
        prefix = (*spine.prompt_ids, *spine.completion_ids[: node.depth])
        ids = torch.tensor([(*prefix, token) for token in first])
        room = bench.max_new_tokens - node.depth - 1
        written = student.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=room,
        )
        rollouts = []
        for index, row in enumerate(written[:, len(prefix) :].tolist()):
            ends = [i for i, token in enumerate(row) if i and token in student.stop_ids]
            below = row[: ends[0] + 1] if ends else row
            spent += len(below) - 1
            whole = (*spine.completion_ids[: node.depth], *below)
            text = student.decode_text(whole)
            rollouts.append(replace(spine, index=index, completion_ids=whole, text=text))
        bench.judge(rollouts)
    return spent


# --- one tree for many teachers ----------------------------------------------------------------


def eight_teachers(seed: int = 50) -> dict[str, LocalModel]:
    """The embedded teachers, each with noise on its weights, and one at two temperatures."""
    found = {name: embedded(name) for name in TEACHERS}
    generator = torch.Generator().manual_seed(seed)
    for name in TEACHERS:
        noisy = embedded(name)
        for weight in noisy.model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.data += 0.05 * weight.data.std() * noise
        found[f"{name}, noise"] = noisy
    for temperature in (0.7, 1.4):
        model = replace(embedded("compatible"), temperature=temperature)
        found[f"compatible, T {temperature}"] = model
    return found


def sharing(folder: Path, seed: int = 51) -> None:
    """Decoded tokens of one tree for eight teachers, over those of a tree for each."""
    models = eight_teachers()
    rows = []
    for label, window, budget in (("every state", 50, 10**9), ("drawn", 7, 20_000)):
        settings = AlignConfig(
            questions=16, samples=8, spines=4, floor=4, cap=4, window=window, budget=budget
        )
        found = {}
        trees = {"all eight": models, **{n: {n: m} for n, m in models.items()}}
        for name, teachers in trees.items():
            bench = bench_of(teachers, seed, settings)
            tree = plant(bench)
            multi = [sum(c) > 0 for c in tree.rollouts]
            read = sum(
                len(view) + len(spine.rollout.completion_ids)
                for spine in tree.spines.values()
                for view in spine.views.values()
            )
            tokens = sum(record["tokens"] for record in run(bench, tree))
            found[name] = [len(multi), sum(multi), len(tree.branches), tokens, read]
            print(label, name, found[name], file=sys.stderr)
        alone = [found[name][3] for name in models]
        shared = found["all eight"][3]
        rows += [[label, name, *numbers, shared / numbers[3]] for name, numbers in found.items()]
        rows.append(
            [
                label,
                "sum of the eight",
                *np.sum([found[n] for n in models], 0).tolist(),
                shared / sum(alone),
            ]
        )
    table(
        [
            "nodes",
            "teachers",
            "nodes drawn",
            "with two or more children",
            "branches",
            "decoded tokens",
            "tokens read by teachers",
            "shared / this",
        ],
        rows,
    )


# --- memory ------------------------------------------------------------------------------------


def memory(folder: Path, each: int = 2000) -> None:
    """Peak memory while a million rollouts of a tree are drawn, a branch as often as it takes."""
    settings = AlignConfig(questions=64, samples=8, spines=4, floor=each, cap=each, budget=10**9)
    bench = bench_of({"compatible": embedded("compatible")}, 60, settings)
    bench.student.batch_size = 256
    tree = plant(bench)
    branches = sorted(tree.branches, key=lambda b: b.depth - len(b.spine.rollout.completion_ids))
    rows, records, done, tokens = [["design alone", 0, 0, 0, peak()]], [], 0, 0
    started = time.perf_counter()
    marks = [10**4, 10**5, 10**6]
    for branch in reversed(branches):  # the shortest first
        for unit, record in grow(bench, tree, [branch]):
            records.append({"unit": unit.name, "spine": unit.spine.name, **record})
        done, tokens = done + each, tokens + records[-1]["tokens"]
        if done >= marks[0]:
            seconds = int(time.perf_counter() - started)
            size = len(json.dumps(records))
            rows.append([f"{done:,} rollouts", tokens, size, seconds, peak()])
            print(rows[-1], file=sys.stderr)
            marks.pop(0)
            if not marks:
                break
    table(["after", "decoded tokens", "bytes of records", "seconds", "peak MiB"], rows)


def peak() -> int:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# --- tokens for equal error --------------------------------------------------------------------


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
    table(["success", "design", "amount", "tokens", *KINDS, "reliability"], rows)
    for kind, found in curves.items():
        base = found[UNIFORM][1:]
        table(
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


PARTS: dict[str, Callable[[Path], None]] = {
    "truth": truth,
    "nodes": nodes,
    "cost": cost,
    "cost-noisy": cost_noisy,
    "wall": wall,
    "sharing": sharing,
    "memory": memory,
}


def main() -> None:
    """Run one part."""
    torch.set_num_threads(1)
    name = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/alignment-lab")
    started = time.perf_counter()
    PARTS[name](folder)
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
