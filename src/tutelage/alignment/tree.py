"""The design of an alignment: spines, nodes and rollouts, all settled before an outcome is seen."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from tutelage.alignment.branches import HALVES, Branch, settled
from tutelage.alignment.moves import ObjectiveMove
from tutelage.alignment.nodes import State, choose_nodes, look, move_squares, state_sizes
from tutelage.alignment.spines import Candidate, Spine, choose_spines
from tutelage.config import AlignConfig
from tutelage.errors import DataError, UsageError
from tutelage.models.local import LocalModel
from tutelage.ops.alignment.design import allocate, depth_windows, inclusion
from tutelage.runs.directory import read_json, replace_text, to_json
from tutelage.runs.rollouts import rollout_from_json, rollout_to_json
from tutelage.runs.seals import digest_of, sealed, unsealed
from tutelage.types import Prompt, Rollout

_PARTS = ("spines.jsonl", "nodes.jsonl")


class NoSignal(DataError):
    """Every natural rollout got the same verdict."""

    def __init__(self, message: str, accuracy: float) -> None:
        super().__init__(message)
        self.accuracy = accuracy
        """1.0 where all were right, 0.0 where all were wrong."""


Judge = Callable[[Sequence[Rollout]], list[float | None]]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """What will be rolled out, and what is known without."""

    teachers: tuple[str, ...]
    """Names, in the order of every axis C."""
    objectives: tuple[str, ...]
    """Names, in the order of every axis O."""
    spines: Mapping[str, Spine]
    """By name."""
    nodes: tuple[State, ...]
    """Of all spines, spine by spine."""
    rollouts: tuple[tuple[int, ...], ...]
    """R of each child of each node; 0 where the outcome is settled, or has no alternative."""
    settled: tuple[tuple[float | None, ...], ...]
    """The outcome of each child after which nothing is sampled; None for all others."""
    squares: Mapping[str, ndarray]
    """||D||^2 [T, C, O] at every position of each spine."""
    natural: int
    """Natural rollouts drawn."""
    natural_tokens: int
    """Tokens they took."""
    expected_tokens: float
    """Tokens the branches are expected to take."""

    @property
    def accuracy(self) -> float:
        """Share of right natural rollouts, the mean over questions."""
        questions = {spine.question for spine in self.spines.values()}
        return sum(s.weight for s in self.spines.values() if s.right) / len(questions)

    @property
    def branches(self) -> list[Branch]:
        """Children to roll out, spine by spine."""
        return [
            Branch(spine=self.spines[node.spine], depth=node.depth, child=child, rollouts=count)
            for node, counts in zip(self.nodes, self.rollouts, strict=True)
            for child, count in zip(node.children, counts, strict=True)
            if count
        ]

    @property
    def settled_records(self) -> list[dict[str, Any]]:
        """Counts that stand for the settled children: enough equal outcomes to be certain."""
        return [
            {
                "spine": node.spine,
                "counts": [
                    [node.depth, child, *[2 * int(outcome > 0)] * HALVES, *[2] * HALVES]
                    for child, outcome in zip(node.children, outcomes, strict=True)
                    if outcome is not None
                ],
            }
            for node, outcomes in zip(self.nodes, self.settled, strict=True)
        ]


def spines_of(
    groups: Sequence[Sequence[Rollout]], count: int, seed: int
) -> list[tuple[Rollout, float]]:
    """The spines of every question, with their weights.

    Raises:
        DataError: nothing could be judged.
        NoSignal: every rollout got the same verdict.
    """
    verdicts = [r.reward for group in groups for r in group if r.reward is not None]
    if not verdicts:
        raise DataError(
            "not one natural rollout could be judged; check data.verifier against the answers"
        )
    if len(set(verdicts)) == 1:
        verdict = "right" if verdicts[0] else "wrong"
        raise NoSignal(
            f"all {len(verdicts)} natural rollouts were judged {verdict}, so no token can be told "
            f"to help; choose {'harder' if verdicts[0] else 'easier'} questions, or check "
            "data.verifier",
            accuracy=verdicts[0],
        )
    rng = np.random.default_rng([seed, 1])
    return [chosen for group in groups for chosen in choose_spines(group, count, rng)]


def design(
    student: LocalModel,
    candidates: Sequence[Candidate],
    objectives: Mapping[str, ObjectiveMove],
    spines: Sequence[Spine],
    groups: Sequence[Sequence[Rollout]],
    settings: AlignConfig,
    judge: Judge,
    *,
    max_new_tokens: int,
    seed: int,
) -> Tree:
    """Choose nodes and numbers of rollouts within the budget.

    Raises:
        UsageError: the budget does not reach one node a window at the fewest rollouts.
    """
    states = list(look(student, candidates, objectives, spines, settings.least))
    squares = {spine.name: move_squares(part) for spine, part in zip(spines, states, strict=True)}
    with np.errstate(invalid="ignore"):
        together = np.sqrt(np.concatenate(list(squares.values())))
        scale = np.nan_to_num(np.nanmean(together, axis=0))
    lengths = np.array([len(r.completion_ids) for group in groups for r in group])
    natural_tokens = int(lengths.sum())
    left = settings.budget - natural_tokens
    per_window = nodes_per_window(states, scale, lengths, settings, left)
    rng = np.random.default_rng([seed, 2])
    nodes = [
        node
        for part in states
        for node in choose_nodes(part, scale, per_window, settings.window, settings.explore, rng)
    ]
    by_name = {spine.name: spine for spine in spines}
    outcomes = [
        tuple(
            settled(
                by_name[node.spine],
                node.depth,
                child,
                student.stop_ids,
                max_new_tokens,
                judge,
                student.decode_text,
            )
            for child in node.children
        )
        for node in nodes
    ]
    rollouts, expected = allocate_rollouts(nodes, outcomes, by_name, scale, lengths, settings, left)
    return Tree(
        teachers=tuple(candidate.name for candidate in candidates),
        objectives=tuple(objectives),
        spines=by_name,
        nodes=tuple(nodes),
        rollouts=rollouts,
        settled=tuple(outcomes),
        squares=squares,
        natural=len(lengths),
        natural_tokens=natural_tokens,
        expected_tokens=expected,
    )


def _tokens_left(lengths: ndarray, depth: int) -> float:
    """Expected tokens of a rollout after a forced token at this depth."""
    longer = lengths[lengths > depth + 1]
    return float((longer - depth - 1).mean()) if len(longer) else 1.0


def nodes_per_window(
    states: Sequence[Sequence[State]],
    scale: ndarray,
    lengths: ndarray,
    settings: AlignConfig,
    left: int,
) -> int:
    """Nodes of each depth window of each spine that the budget pays for; nodes before rollouts.

    States are drawn by size, and large ones have more children than the mean state: what nodes
    cost is expected with their chances. `scale` is that of `state_sizes`.
    """
    strata: list[tuple[ndarray, ndarray]] = []  # sizes of the states of a window, and their costs
    for part in states:
        sizes = state_sizes(part, scale, settings.explore)
        branching = np.array([len(s.children) if len(s.children) > 1 else 0 for s in part])
        costs = branching * np.array([_tokens_left(lengths, s.depth) for s in part])
        windows = depth_windows(len(part), settings.window)
        strata += [(sizes[windows == w], costs[windows == w]) for w in np.unique(windows)]

    def tokens(count: int, rollouts: int) -> float:
        return rollouts * sum(float(inclusion(s, count) @ costs) for s, costs in strata)

    if tokens(1, settings.floor) > left:
        needed = round(tokens(1, settings.floor)) + int(lengths.sum())
        raise UsageError(
            f"not enough: align.budget {settings.budget:,} tokens is below the floor of about "
            f"{needed:,} for one node a depth window of each spine at align.floor "
            f"{settings.floor}; raise it, or lower align.questions or align.spines"
        )
    low, high = 1, max(len(sizes) for sizes, _ in strata)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if tokens(middle, settings.rollouts) <= left else (low, middle - 1)
        )
    return low


def allocate_rollouts(
    nodes: Sequence[State],
    outcomes: Sequence[Sequence[float | None]],
    spines: Mapping[str, Spine],
    scale: ndarray,
    lengths: ndarray,
    settings: AlignConfig,
    left: int,
) -> tuple[tuple[tuple[int, ...], ...], float]:
    """Rollouts of every child, and the tokens they are expected to take.

    `scale` [C, O] is that of `choose_nodes`, `lengths` those of natural rollouts, `left` the tokens
    to spend.
    """
    width = max(len(node.children) for node in nodes)
    teachers, objectives = nodes[0].moves.shape[:2]
    p = np.zeros((len(nodes), width))
    moves = np.zeros((teachers * objectives, len(nodes), width))
    kept = np.zeros((len(nodes), width), dtype=bool)
    costs = np.ones((len(nodes), width))
    for row, (node, settled_ones) in enumerate(zip(nodes, outcomes, strict=True)):
        k = len(node.children)
        p[row, :k] = node.p
        scaled = np.nan_to_num(node.moves) / np.where(scale > 0, scale, 1.0)[..., None]
        moves[:, row, :k] = scaled.reshape(-1, k)
        # Where only one outcome has mass, g and the advantage are 0 whatever its success.
        kept[row, :k] = [outcome is None and k > 1 for outcome in settled_ones]
        costs[row, :k] = _tokens_left(lengths, node.depth)
    weights = np.array([spines[node.spine].weight / node.chance for node in nodes])
    children = int(kept.sum())
    if not children:
        return tuple((0,) * len(node.children) for node in nodes), 0.0
    # What rollouts cost depends on where they go: search their number for the tokens there are.
    low, high = settings.floor * children, settings.cap * children
    best = allocate(p, moves, costs, weights, kept, low, settings.floor, settings.cap)
    while low < high:
        middle = (low + high + 1) // 2
        tried = allocate(p, moves, costs, weights, kept, middle, settings.floor, settings.cap)
        if float((tried * costs).sum()) <= left:
            low, best = middle, tried
        else:
            high = middle - 1
    counts = tuple(
        tuple(int(n) for n in row[: len(node.children)])
        for row, node in zip(best, nodes, strict=True)
    )
    return counts, float((best * costs).sum())


# --- on disk ---------------------------------------------------------------------------------


def save_tree(tree: Tree, folder: Path) -> None:
    """Write spines.jsonl, nodes.jsonl and, last, tree.json."""
    _write(
        folder / "spines.jsonl",
        [
            {
                **rollout_to_json(spine.rollout),
                "weight": spine.weight,
                "views": {k: None if v is None else list(v) for k, v in spine.views.items()},
                "squares": _listed(tree.squares[name]),
            }
            for name, spine in tree.spines.items()
        ],
    )
    _write(
        folder / "nodes.jsonl",
        [
            {
                **asdict(node),
                "p": _listed(node.p),
                "q": _listed(node.q),
                "moves": _listed(node.moves),
                "rollouts": counts,
                "settled": outcomes,
            }
            for node, counts, outcomes in zip(tree.nodes, tree.rollouts, tree.settled, strict=True)
        ],
    )
    names = ("teachers", "objectives", "natural", "natural_tokens", "expected_tokens")
    parts = {name: digest_of((folder / name).read_text(encoding="utf-8")) for name in _PARTS}
    content = {"parts": parts, **{name: getattr(tree, name) for name in names}}
    replace_text(folder / "tree.json", json.dumps(sealed(content), indent=1))


def load_tree(folder: Path, prompts: Mapping[str, Prompt]) -> Tree:
    """The tree that `save_tree` wrote.

    Raises:
        DataError: a file of it was changed since.
        UsageError: a file is missing, or the prompts are others.
    """
    content = unsealed(read_json(folder / "tree.json"), str(folder / "tree.json"))
    parts = content.pop("parts")
    spines: dict[str, Spine] = {}
    squares: dict[str, ndarray] = {}
    for record in _read(folder / "spines.jsonl", parts):
        if record["prompt"] not in prompts:
            raise UsageError(
                f"{folder} rolls out from answers to the prompt {record['prompt']!r}, which the "
                "prompts no longer hold; restore them, or start anew with another --output"
            )
        weight, views = record.pop("weight"), record.pop("views")
        square = _array(record.pop("squares"))
        spine = Spine(
            rollout=rollout_from_json(record, prompts),
            weight=weight,
            views={k: None if v is None else tuple(v) for k, v in views.items()},
        )
        spines[spine.name], squares[spine.name] = spine, square
    nodes: list[State] = []
    rollouts: list[tuple[int, ...]] = []
    outcomes: list[tuple[float | None, ...]] = []
    for record in _read(folder / "nodes.jsonl", parts):
        rollouts.append(tuple(record.pop("rollouts")))
        outcomes.append(tuple(record.pop("settled")))
        for name in ("p", "q", "moves"):
            record[name] = _array(record[name])
        for name in ("children", "teacher_entropies"):
            record[name] = tuple(record[name])
        nodes.append(State(**record))
    for name in ("teachers", "objectives"):
        content[name] = tuple(content[name])
    return Tree(
        **content,
        spines=spines,
        nodes=tuple(nodes),
        rollouts=tuple(rollouts),
        settled=tuple(outcomes),
        squares=squares,
    )


def _write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    replace_text(path, "".join(to_json(record) + "\n" for record in records))


def _read(path: Path, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if digest_of(text) != digests[path.name]:
        raise DataError(f"{path} is damaged: its content is not what was written")
    return [json.loads(line) for line in text.split("\n") if line]


def _listed(values: ndarray) -> Any:
    """Nested lists with null for NaN."""
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()


def _array(values: Any) -> ndarray:
    return np.array(values, dtype=float)
