"""The rollouts of an alignment, batch by batch: each is a unit that any worker may do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tutelage.alignment.bench import Bench
from tutelage.alignment.branches import Branch, roll_out
from tutelage.alignment.nodes import REST, State, rest_of
from tutelage.alignment.tree import Tree
from tutelage.config import Config
from tutelage.data.verify import make_verifier, verifier_settings
from tutelage.scale.sampling import load_sampler
from tutelage.scale.units import Job, MapUnits, in_process, nothing

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Growth:
    """Branches that are rolled out as one batch, and what their outcomes may count for."""

    branches: tuple[Branch, ...]
    """Which."""
    nodes: tuple[State, ...]
    """All nodes of their spines."""


def growths(tree: Tree, rows: int) -> list[Growth]:
    """All branches of a tree in batches, each of `rows` rollouts where there are so many.

    Whole questions come together, enough to fill a batch, and among them similar depths share
    one; so answers about finished questions are answers about a fair sample of them. The same
    branches share a batch however many are done already: a resumed alignment is the straight one
    to the bit.
    """
    return [part for block in _blocks(tree, rows) for part in batches(tree, block, rows)]


def batches(tree: Tree, branches: Sequence[Branch], rows: int) -> Iterator[Growth]:
    """These branches, similar depths in one batch."""
    batch: list[Branch] = []
    ordered = sorted(branches, key=lambda b: (b.depth, b.name))
    for place, branch in enumerate(ordered):
        batch.append(branch)
        if sum(b.rollouts for b in batch) >= rows or place == len(ordered) - 1:
            spines = {b.spine.name for b in batch}
            yield Growth(tuple(batch), tuple(n for n in tree.nodes if n.spine in spines))
            batch = []


def _blocks(tree: Tree, rows: int) -> Iterator[list[Branch]]:
    """Whole questions, until they fill a batch."""
    block: list[Branch] = []
    previous: str | None = None
    for branch in tree.branches:
        if branch.spine.question != previous and sum(b.rollouts for b in block) >= rows:
            yield block
            block = []
        previous = branch.spine.question
        block.append(branch)
    if block:
        yield block


def roll(bench: Bench, growth: Growth) -> list[tuple[str, Record]]:
    """The record of each branch of a batch, by its name."""
    nodes = {node.name: node for node in growth.nodes}
    open_ended = {(b.spine.name, b.depth) for b in growth.branches if b.child == REST}
    rests = {
        name: values
        for spine in {b.spine.name: b.spine for b in growth.branches}.values()
        for name, values in rest_of(
            bench.student,
            spine,
            [n for n in growth.nodes if n.spine == spine.name and (n.spine, n.depth) in open_ended],
        ).items()
    }
    grown = roll_out(
        bench.sampler,
        growth.branches,
        nodes,
        rests,
        bench.judge,
        bench.student.decode_text,
        stops=bench.student.stop_ids,
        max_new_tokens=bench.max_new_tokens,
        temperature=bench.temperature,
        seed=bench.seed,
    )
    return [(branch.name, record) for branch, record in grown]


def grow(bench: Bench, tree: Tree, branches: Sequence[Branch]) -> Iterator[tuple[Branch, Record]]:
    """Roll out some branches here; a record each as it is done."""
    by_name = {branch.name: branch for branch in branches}
    for growth in batches(tree, branches, bench.student.batch_size):
        for name, record in roll(bench, growth):
            yield by_name[name], record


def grow_all(
    bench: Bench,
    tree: Tree,
    map_units: MapUnits = in_process,
    *,
    config: Config | None = None,
    done: Callable[[str], bool] = lambda branch: False,
    between: Callable[[], None] = nothing,
) -> Iterator[list[tuple[str, Record]]]:
    """Records of all branches that are not done, batch by batch, in the order they are finished.

    `config` tells workers what to load; None rolls out here, as a served student always does.
    """
    if config is None or bench.sampler is not bench.student:
        map_units = in_process
    loader = no_config if config is None else partial(load_bench, config, bench.student.vocabulary)
    job: Job[Bench, Growth, list[tuple[str, Record]]] = Job(prepare=loader, work=roll, here=bench)
    units = {
        f"of {growth.branches[0].name}": growth
        for growth in growths(tree, bench.student.batch_size)
        if not all(done(branch.name) for branch in growth.branches)
    }
    for _, records in map_units(job, units, between=between):
        yield [(name, record) for name, record in records if not done(name)]


def records_of(
    bench: Bench,
    tree: Tree,
    map_units: MapUnits = in_process,
    config: Config | None = None,
    *,
    heard: Callable[[int], None] = lambda done: None,
) -> list[Record]:
    """The record of every branch, each with its name as `unit`; `heard` is told their number."""
    records: list[Record] = []
    for part in grow_all(bench, tree, map_units, config=config):
        records += ({"unit": name, **record} for name, record in part)
        heard(len(records))
    return records


def no_config() -> Bench:
    """A bench that is here needs no loading."""
    raise AssertionError("a bench without settings cannot be loaded elsewhere")


def load_bench(config: Config, vocabulary: int) -> Bench:
    """What a worker needs of a bench: the student and who judges."""
    student = load_sampler(config.student, "student", vocabulary)
    student.temperature, student.batch_size = config.rollout.temperature, config.rollout.batch_size
    settings = verifier_settings(config.data)
    assert settings is not None  # an alignment without a verifier was refused
    return Bench(
        student=student,
        sampler=student,
        candidates=(),
        objectives={},
        prompts=(),
        verify=make_verifier(settings),
        settings=config.align,
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        use_chat_template=config.data.use_chat_template,
        seed=config.run.seed,
    )
