"""Targeted rollouts on the embedded pair, against 2,000 rollouts of every branch.

    python benchmarks/alignment_lab.py truth      # first: minutes of one core; goes on after a stop
    python benchmarks/alignment_nodes.py          # real runs against it
    python benchmarks/alignment_cost.py           # what designs take for equal error
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
from results import print_table

from tutelage.alignment.bench import Bench, plant
from tutelage.alignment.growing import grow, records_of
from tutelage.alignment.moves import as_move
from tutelage.alignment.nodes import REST, State, rest_of
from tutelage.alignment.plan import plan_of
from tutelage.alignment.spines import Candidate
from tutelage.alignment.tree import Tree
from tutelage.config import AlignConfig, ForwardKL, Full, ModelConfig, PromptFormat, ReverseKL
from tutelage.data.render import render
from tutelage.data.verify import make_verifier
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
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


def run(bench: Bench, tree: Tree) -> list[dict]:
    """Real rollouts of a whole tree."""
    return records_of(bench, tree)


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
    print_table(
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
    print_table(
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
    print_table(["after", "decoded tokens", "bytes of records", "seconds", "peak MiB"], rows)


def peak() -> int:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


PARTS: dict[str, Callable[[Path], None]] = {
    "truth": truth,
    "wall": wall,
    "sharing": sharing,
    "memory": memory,
}


def run_part(parts: Mapping[str, Callable[[Path], None]]) -> None:
    """The part that the command line names."""
    torch.set_num_threads(1)
    name = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/alignment-lab")
    started = time.perf_counter()
    parts[name](folder)
    print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    run_part(PARTS)
